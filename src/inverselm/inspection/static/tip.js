// The numbers of the token under the pointer or the focus: beside it, or at the bottom of a small screen.
import { $, el } from "./dom.js";

const GAP = 8;

/** Show rows of [label, value, kind] next to a node: the first is the title; the kind "strong" stands out. */
export function showTip(node, rows) {
  const tip = $("tip");
  const [head, ...rest] = rows;
  const list = el("dl");
  for (const [label, value, kind] of rest) {
    list.append(el("div", { class: kind ?? null }, el("dt", {}, label), el("dd", {}, value)));
  }
  tip.replaceChildren(el("p", {}, head[0]), list);
  tip.hidden = false;
  if (window.matchMedia("(max-width: 640px)").matches) {
    tip.style.left = tip.style.top = "";
    return;
  }
  const at = node.getClientRects()[0] ?? node.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(GAP, Math.min(at.left, document.documentElement.clientWidth - width - GAP));
  const below = at.bottom + GAP, above = at.top - GAP - height;
  tip.style.left = `${left}px`;
  tip.style.top = `${below + height < window.innerHeight || above < 0 ? below : above}px`;
}

export function hideTip() {
  $("tip").hidden = true;
}
