// Replace one token where it stands: a small field beside it.
import { $ } from "./dom.js";
import { quoted } from "./heat.js";

/** Ask for the text that stands in place of a token's; calls `done(text)`, or nothing if the person leaves. */
export function askReplacement(node, text, done) {
  const form = $("replace"), input = $("replacement");
  $("replace-label").textContent = `Instead of ${quoted(text)}`;
  input.value = text;
  form.hidden = false;
  const at = node.getClientRects()[0] ?? node.getBoundingClientRect();
  const { width, height } = form.getBoundingClientRect();
  form.style.left = `${Math.max(8, Math.min(at.left, document.documentElement.clientWidth - width - 8))}px`;
  const below = at.bottom + 8;
  form.style.top = `${below + height < window.innerHeight ? below : Math.max(8, at.top - 8 - height)}px`;
  input.focus();
  input.setSelectionRange(text.length - text.trimStart().length, text.length);
  const close = (back) => {
    form.hidden = true;
    form.onsubmit = form.onkeydown = $("replace-cancel").onclick = null;
    if (back && node.isConnected) node.focus();
  };
  form.onsubmit = (event) => {
    event.preventDefault();
    const value = input.value;
    close(true);
    if (value !== text) done(value);
  };
  form.onkeydown = (event) => {
    if (event.key === "Escape") { event.stopPropagation(); close(true); }
  };
  $("replace-cancel").onclick = () => close(true);
}
