// The rows of a file, of any number: only what can be seen is in the page.
import { $, el, isNumber, signed, whole } from "./dom.js";
import { getRows } from "./api.js";

const ROW = 64, PAGE = 100, PAGES = 12;
const TALLEST = 8_000_000; // pixels that browsers can scroll; longer lists are scrolled in proportion

export class RowList {
  /** hooks: onOpen(index, side, stay), onCount(total), onError(error). */
  constructor(root, hooks) {
    this.root = root;
    this.hooks = hooks;
    this.query = { q: "", sort: "", by: "", order: "asc" };
    this.total = 0;
    this.cursor = -1;
    this.opened = -1;
    this.pages = new Map();
    this.epoch = 0;
    this.space = el("div", { class: "list-space" });
    root.append(this.space);
    root.addEventListener("scroll", () => this.#soon());
    root.addEventListener("keydown", (event) => this.#key(event));
    root.addEventListener("click", (event) => {
      const item = event.target.closest("[data-at]");
      if (item) this.open(Number(item.dataset.at), event.target.closest("[data-b]") ? "b" : "a");
    });
    new ResizeObserver(() => this.#soon()).observe(root);
  }

  /** Show the rows of another search or order, from the top. */
  async ask(query, keep = false) {
    this.query = { ...this.query, ...query };
    this.epoch += 1;
    this.pages.clear();
    if (!keep) { this.cursor = -1; this.root.scrollTop = 0; }
    await this.#page(Math.floor(keep ? this.#offset() / ROW / PAGE : 0));
  }

  /** Open the row at a place of the list; `stay` leaves the list of a small screen open. */
  async open(at, side = "a", stay = false) {
    if (at < 0 || at >= this.total) return;
    this.#to(at);
    const epoch = this.epoch;
    const row = await this.#row(at);
    if (row && epoch === this.epoch) {
      if (side === "a") this.opened = row.index;
      this.hooks.onOpen(row.index, side, stay);
      this.#draw();
    }
  }

  next(step) {
    this.open(this.cursor < 0 ? 0 : Math.max(0, Math.min(this.total - 1, this.cursor + step)));
  }

  async #row(at) {
    await this.#page(Math.floor(at / PAGE));
    return this.pages.get(Math.floor(at / PAGE))?.rows?.[at % PAGE];
  }

  #page(number) {
    const kept = this.pages.get(number);
    if (kept) {
      this.pages.delete(number);
      this.pages.set(number, kept); // most recently used last
      return kept.promise;
    }
    const epoch = this.epoch, page = { rows: null };
    page.promise = getRows({ ...this.query, start: number * PAGE, count: PAGE }).then(
      (found) => {
        if (epoch !== this.epoch) return;
        page.rows = found.rows;
        if (found.total !== this.total || number === 0) this.hooks.onCount(found.total);
        this.total = found.total;
        this.#draw();
      },
      (error) => { this.pages.delete(number); if (epoch === this.epoch) this.hooks.onError(error); },
    );
    this.pages.set(number, page);
    while (this.pages.size > PAGES) this.pages.delete(this.pages.keys().next().value);
    return page.promise;
  }

  #height() { return Math.min(TALLEST, this.total * ROW); }

  /** Pixels of the whole list above what is seen. */
  #offset() {
    const { scrollTop, clientHeight } = this.root, all = this.total * ROW;
    if (all <= TALLEST) return scrollTop;
    return (scrollTop / Math.max(1, TALLEST - clientHeight)) * (all - clientHeight);
  }

  #to(at) {
    this.cursor = at;
    const { clientHeight } = this.root, all = this.total * ROW;
    let offset = this.#offset();
    if (at * ROW < offset) offset = at * ROW;
    else if ((at + 1) * ROW > offset + clientHeight) offset = (at + 1) * ROW - clientHeight;
    else return this.#draw();
    this.root.scrollTop = all <= TALLEST ? offset : (offset / (all - clientHeight)) * (TALLEST - clientHeight);
    this.#draw();
  }

  #soon() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.#draw(); });
  }

  #draw() {
    this.space.style.height = `${this.#height()}px`;
    const offset = this.#offset(), shift = this.root.scrollTop - offset;
    const first = Math.max(0, Math.floor(offset / ROW) - 4);
    const last = Math.min(this.total, Math.ceil((offset + this.root.clientHeight) / ROW) + 4);
    const items = [];
    for (let at = first; at < last; at += 1) {
      const page = this.pages.get(Math.floor(at / PAGE));
      if (!page) this.#page(Math.floor(at / PAGE));
      const item = this.#item(at, page?.rows?.[at % PAGE]);
      item.style.transform = `translateY(${at * ROW + shift}px)`;
      items.push(item);
    }
    this.space.replaceChildren(...items);
    const seen = this.cursor >= first && this.cursor < last;
    if (seen) this.root.setAttribute("aria-activedescendant", `row-${this.cursor}`);
    else this.root.removeAttribute("aria-activedescendant");
  }

  #item(at, row) {
    const open = Boolean(row) && row.index === this.opened;
    const attributes = {
      id: `row-${at}`, "data-at": at, class: `row${at === this.cursor ? " cursor" : ""}${open ? " opened" : ""}`,
      role: "option", "aria-setsize": this.total, "aria-posinset": at + 1, "aria-selected": String(open),
    };
    if (!row) return el("div", attributes, el("span", { class: "row-prompt" }, "…"));
    const line = (text) => text.replace(/\s+/g, " ");
    const key = this.query.sort || "sum", value = row.stats[this.query.by]?.[key];
    const text = !isNumber(value) ? "" : key === "tokens" ? whole(value) : signed(value);
    const sign = !isNumber(value) || key === "tokens" ? "" : value < 0 ? "down" : "up";
    const beside = { type: "button", class: "row-b", "data-b": "", tabindex: -1, title: "Beside the other answer (b)" };
    return el("div", attributes,
      el("span", { class: "row-prompt" }, el("bdi", {}, line(row.prompt))),
      el("span", { class: "row-answer" }, line(row.completion)),
      el("span", { class: `row-value ${sign}` }, text),
      el("span", { class: "row-number quiet" }, `#${whole(row.index + 1)}`),
      el("button", beside, "as B"),
    );
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.total) return;
    const page = Math.max(1, Math.floor(this.root.clientHeight / ROW) - 1);
    const to = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      this.#to(Math.max(0, Math.min(this.total - 1, Math.max(-1, this.cursor) + to)));
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.open(Math.max(0, this.cursor));
    } else if (event.key === "b") {
      event.preventDefault();
      event.stopPropagation();
      this.open(Math.max(0, this.cursor), "b");
    }
  }
}

/** The panel around the list: search, order, scoring of rows that have no rewards. */
export function rowsPanel(meta, list, { getJob, setJob, onError }) {
  $("file-name").textContent = meta.file.name.split(/[\\/]/).pop();
  $("file-name").title = meta.file.name;
  const by = $("sort-by"), definitions = meta.file.scored ? [...meta.definitions].reverse() : meta.definitions;
  by.append(...definitions.map((d) => el("option", { value: d.id }, d.name)));
  by.hidden = definitions.length < 2;
  let waiting = 0;
  $("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => list.ask({ q: $("search").value }), 200);
  });
  const direction = $("direction");
  const order = (descending) => {
    direction.textContent = descending ? "↓" : "↑";
    direction.title = descending ? "Largest first" : "Smallest first";
    direction.setAttribute("aria-label", direction.title);
    direction.setAttribute("aria-pressed", String(descending));
    return descending ? "desc" : "asc";
  };
  let descending = false;
  order(descending);
  direction.addEventListener("click", () => { descending = !descending; list.ask({ order: order(descending) }); });
  $("sort").addEventListener("change", () => list.ask({ sort: $("sort").value }));
  by.addEventListener("change", () => list.ask({ by: by.value }));
  if (meta.can_score && meta.file.scored < meta.file.rows) jobPanel(list, getJob, setJob, onError);
  return list.ask({ by: by.value });
}

function jobPanel(list, getJob, setJob, onError) {
  const button = $("job-button"), bar = $("job-progress"), text = $("job-text");
  let timer = 0, running = false;
  const show = (state) => {
    const left = state.total - state.done;
    $("job").hidden = !state.running && !left && !state.skipped && !state.error;
    button.hidden = !state.running && !left;
    button.textContent = state.running ? "Stop" : `Score ${whole(left)} rows`;
    button.title = state.running ? "" : "So that all rows can be sorted by reward";
    bar.hidden = !state.running;
    bar.value = state.done / state.total;
    const skipped = state.skipped ? `${whole(state.skipped)} cannot be scored.` : "";
    text.textContent = state.error || (state.running ? `${whole(state.done)} of ${whole(state.total)}` : skipped);
    if (running && !state.running) list.ask({}, true);
    running = state.running;
    clearTimeout(timer);
    if (running) timer = setTimeout(poll, 500);
  };
  const poll = () => getJob().then(show, onError);
  button.addEventListener("click", () => setJob(running ? "stop" : "start").then(show, onError));
  poll();
}
