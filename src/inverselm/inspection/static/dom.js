// Elements and texts. Text from data becomes text nodes, never markup.

export const $ = (id) => document.getElementById(id);

/** An element with attributes (`class`, `title`, ..; null leaves one out) and children: nodes, or strings as text. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** A signed number with a real minus sign; "n/a" for what is none. */
export function signed(value, digits = 3) {
  if (!isNumber(value)) return "n/a";
  const size = Math.abs(value);
  if (size < 0.5 * 10 ** -digits) return (0).toFixed(digits);
  const text = size >= 1e5 ? size.toExponential(2) : size.toFixed(digits);
  return (value < 0 ? "−" : "+") + text;
}

/** A number without a plus sign. */
export const plain = (value, digits = 3) => signed(value, digits).replace("+", "");

export const whole = (number) => number.toLocaleString("en-US");

export const count = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;

const CONTROL = "\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f-\\u009f";
const HIDDEN = new RegExp(`[${CONTROL}\\u202a-\\u202e\\u2066-\\u2069\\ufeff\\ufffe\\uffff]|\\p{Surrogate}`, "gu");
const GLYPHS = /(\r\n|\r|\n|\t|⟨U\+[0-9A-F]{4}⟩)/;
const NAMES = { "\n": "↵", "\r\n": "↵", "\r": "␍", "\t": "⇥" };

/** Control, direction and invalid characters spelled out, newlines and tabs kept. */
export const visible = (text) =>
  text.replace(HIDDEN, (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

/** A token's text on one line, for labels. */
export const named = (text) => visible(text).split(GLYPHS).map((part) => NAMES[part] ?? part).join("") || "∅";

const faint = (text) => el("i", { "aria-hidden": "true" }, text);

/** The nodes of a token's text: what cannot be seen as a faint glyph. */
export function tokenNodes(text) {
  if (text === "") return [faint("∅")];
  const nodes = [];
  for (const part of visible(text).split(GLYPHS)) {
    if (part === "") continue;
    if (!GLYPHS.test(part)) nodes.push(part);
    else {
      nodes.push(faint(NAMES[part] ?? part));
      if (part === "\n" || part === "\r\n") nodes.push("\n");
      if (part === "\t") nodes.push("\t");
    }
  }
  return nodes;
}

/** Whether keys typed now belong to a field. */
export function typing(target) {
  return target instanceof HTMLElement && (target.isContentEditable || /^(TEXTAREA|SELECT)$/.test(target.tagName) ||
    (target.tagName === "INPUT" && !/^(checkbox|radio)$/.test(target.type)));
}
