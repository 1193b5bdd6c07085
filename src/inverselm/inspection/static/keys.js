// Keyboard shortcuts, and the list of them.
import { $, el, typing } from "./dom.js";

/** shortcuts: [{keys: ["e"], text, run}]; entries without `run` are only listed. None runs while one types. */
export function installKeys(shortcuts) {
  const dialog = $("shortcuts");
  const open = () => { if (!dialog.open) dialog.showModal(); };
  const last = [{ keys: ["?"], text: "this list", run: open }, { keys: ["Esc"], text: "leave a field, close" }];
  const all = [...shortcuts, ...last];
  $("shortcut-list").replaceChildren(...all.flatMap(({ keys, text }) => [
    el("dt", {}, ...keys.flatMap((key) => [el("kbd", {}, key), " "])), el("dd", {}, text),
  ]));
  $("to-help").addEventListener("click", open);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && typing(event.target) && !dialog.open) {
      event.target.blur();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (dialog.open || typing(event.target)) return;
    const found = all.find(({ keys, run }) => run && keys.includes(event.key));
    if (found) {
      event.preventDefault();
      found.run(event);
    }
  });
}
