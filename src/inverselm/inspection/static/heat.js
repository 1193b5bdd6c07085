// The tokens of an answer as coloured text that can be walked: one Tab stop, arrows inside.
import { el, named, tokenNodes } from "./dom.js";

export class Heat {
  /**
   * hooks: label(i) -> the spoken text of a token; onActive(i, node, how) with how "hover" or "focus"; onLeave();
   * onReplace(i, node).
   */
  constructor(hooks) {
    this.hooks = hooks;
    this.root = el("div", { class: "tokens", role: "listbox", "aria-orientation": "horizontal", dir: "auto" });
    this.nodes = [];
    this.texts = null;
    this.current = 0;
    this.marked = -1;
    this.root.addEventListener("mouseover", (event) => this.#at(event, (i) => this.#active(i, "hover")));
    this.root.addEventListener("mouseleave", () => {
      const focused = this.nodes.indexOf(document.activeElement);
      if (focused >= 0) this.#active(focused, "focus");
      else this.#leave();
    });
    this.root.addEventListener("focusin", (event) => this.#at(event, (i) => this.#focused(i)));
    this.root.addEventListener("focusout", () => this.#leave());
    this.root.addEventListener("click", (event) => this.#at(event, (i) => this.focus(i)));
    this.root.addEventListener("dblclick", (event) => this.#at(event, (i) => hooks.onReplace(i, this.nodes[i])));
    this.root.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Draw tokens; `classes` has one class string per token. Nodes are kept where the texts stay. */
  show(texts, classes, label) {
    this.root.setAttribute("aria-label", label);
    if (!this.texts || texts.length !== this.texts.length || texts.some((text, i) => text !== this.texts[i])) {
      const hadFocus = this.root.contains(document.activeElement);
      if (this.marked >= 0) this.#leave(); // the node under the pointer goes without a word
      this.nodes = texts.map((text, i) => {
        const node = el("span", { role: "option", tabindex: -1, "data-i": i });
        node.append(...tokenNodes(text));
        return node;
      });
      this.root.replaceChildren(...this.nodes);
      this.texts = texts;
      this.current = Math.min(this.current, Math.max(0, texts.length - 1));
      this.marked = -1;
      if (this.nodes.length) this.nodes[this.current].tabIndex = 0;
      if (hadFocus) this.nodes[this.current]?.focus({ preventScroll: true });
    }
    this.nodes.forEach((node, i) => {
      if (node.dataset.c !== classes[i]) node.className = node.dataset.c = classes[i];
    });
    if (this.marked >= 0) this.mark(this.marked);
  }

  /** Move the focus to a token; `stay` refreshes what is said of it, without scrolling. */
  focus(i, stay = false) {
    const node = this.nodes[i];
    if (!node) return;
    if (document.activeElement === node) this.#focused(i);
    else node.focus({ preventScroll: stay });
    if (!stay) node.scrollIntoView({ block: "nearest" });
  }

  /** Outline a token without moving the focus (the same place in the other pane, or under a curve); -1 for none. */
  mark(i) {
    this.nodes[this.marked]?.classList.remove("at");
    this.marked = i;
    this.nodes[i]?.classList.add("at");
  }

  #focused(i) {
    if (this.nodes[this.current]) this.nodes[this.current].tabIndex = -1;
    this.current = i;
    this.nodes[i].tabIndex = 0;
    this.nodes[i].setAttribute("aria-label", this.hooks.label(i));
    this.#active(i, "focus");
  }

  #at(event, then) {
    const node = event.target.closest("[data-i]");
    if (node && this.root.contains(node)) then(Number(node.dataset.i));
  }

  #active(i, how) {
    this.mark(i);
    this.hooks.onActive(i, this.nodes[i], how);
  }

  #leave() {
    this.mark(-1);
    this.hooks.onLeave();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.nodes.length) return;
    const last = this.nodes.length - 1;
    const to = {
      ArrowRight: () => Math.min(last, this.current + 1),
      ArrowLeft: () => Math.max(0, this.current - 1),
      ArrowDown: () => this.#line(1),
      ArrowUp: () => this.#line(-1),
      Home: () => 0,
      End: () => last,
      PageDown: () => Math.min(last, this.current + 50),
      PageUp: () => Math.max(0, this.current - 50),
    }[event.key];
    if (to) {
      event.preventDefault();
      this.focus(to());
    } else if (event.key === "Enter" || event.key === "F2") {
      event.preventDefault();
      this.hooks.onReplace(this.current, this.nodes[this.current]);
    }
  }

  /** The token below (1) or above (-1) the current one. */
  #line(step) {
    const box = (i) => this.nodes[i].getClientRects()[0] ?? this.nodes[i].getBoundingClientRect();
    const start = box(this.current), x = (start.left + start.right) / 2;
    let best = this.current, distance = Infinity, line = null;
    for (let i = this.current + step; i >= 0 && i < this.nodes.length; i += step) {
      const here = box(i);
      if (Math.abs(here.top - start.top) < start.height / 2) continue;
      if (line === null) line = here.top;
      if (Math.abs(here.top - line) > start.height / 2) break;
      const away = Math.abs((here.left + here.right) / 2 - x);
      if (away < distance) { distance = away; best = i; }
    }
    return best;
  }
}

/** A token for people: its text in quotes. */
export const quoted = (text) => `“${named(text)}”`;
