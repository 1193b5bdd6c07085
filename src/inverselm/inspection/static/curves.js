// Curves over the tokens: the reward so far, V(s_t), entropy. Plain SVG, drawn to the width that is there.
import { el, isNumber, plain, svg, whole } from "./dom.js";

const HEIGHT = 104, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 18;

/** A round number near `span / 3`. */
function step(span) {
  const rough = span / 3, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
}

/** Round numbers around [low, high]: {found, digits} with the first and the last of them outside or at the ends. */
function ticks(low, high) {
  const by = step(high - low), first = Math.floor(low / by + 1e-9), last = Math.ceil(high / by - 1e-9);
  const found = Array.from({ length: last - first + 1 }, (_, n) => (first + n) * by);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(by) + 1e-9)) };
}

export class Curves {
  /** hooks: onHover(i or -1), onPick(i). */
  constructor(hooks) {
    this.hooks = hooks;
    this.root = el("div", { class: "curves" });
    this.charts = [];
    this.count = 0;
    this.width = 0;
    new ResizeObserver(() => { if (Math.abs(this.#cell() - this.width) > 1) this.#draw(); }).observe(this.root);
  }

  /** charts: [{title, about, lines: [{values, kind, name}], zero}]; `count` tokens lie on the axis. */
  show(charts, count) {
    this.charts = charts;
    this.count = count;
    this.#draw();
  }

  /** The crosshair; -1 for none. */
  mark(i) {
    for (const { cross, x } of this.drawn ?? []) {
      cross.setAttribute("visibility", i < 0 ? "hidden" : "visible");
      if (i >= 0) { cross.setAttribute("x1", x(i)); cross.setAttribute("x2", x(i)); }
    }
  }

  #cell() {
    const wide = this.root.clientWidth;
    const columns = Math.max(1, Math.min(this.charts.length, Math.floor((wide + 16) / 296)));
    return (wide - 16 * (columns - 1)) / columns;
  }

  #draw() {
    this.width = this.#cell();
    this.drawn = [];
    if (this.width > 80) this.root.replaceChildren(...this.charts.map((chart) => this.#chart(chart)));
  }

  #chart({ title, about, lines, zero }) {
    const width = Math.floor(this.width), count = this.count;
    const all = lines.flatMap((line) => line.values).filter(isNumber);
    let low = Math.min(...(all.length < 50_000 ? all : [0])), high = Math.max(...(all.length < 50_000 ? all : [1]));
    if (zero || !all.length) { low = Math.min(low, 0); high = Math.max(high, 0); }
    if (!isNumber(low) || !isNumber(high)) { low = 0; high = 1; }
    if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
    const { found, digits } = ticks(low, high);
    [low, high] = [found[0], found[found.length - 1]];
    const longest = Math.max(count, ...lines.map((line) => line.values.length));
    const x = (i) => LEFT + (longest < 2 ? 0.5 : i / (longest - 1)) * (width - LEFT - RIGHT);
    const y = (v) => TOP + ((high - v) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const spoken = this.#spoken(title, lines[0]);
    const size = { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT };
    const picture = svg("svg", { ...size, role: "img", "aria-label": spoken });
    for (const t of found) {
      picture.append(
        svg("line", { class: t === 0 ? "axis zero" : "axis", x1: LEFT, x2: width - RIGHT, y1: y(t), y2: y(t) }),
        svg("text", { class: "tick", x: LEFT - 6, y: y(t) + 3.5, "text-anchor": "end" }, plain(t, digits)),
      );
    }
    const foot = { class: "tick", y: HEIGHT - 4 };
    picture.append(svg("text", { ...foot, x: LEFT }, "1"));
    picture.append(svg("text", { ...foot, x: width - RIGHT, "text-anchor": "end" }, `token ${whole(longest)}`));
    const cross = svg("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    picture.append(cross);
    for (const line of [...lines].reverse()) {
      picture.append(svg("path", { class: `line ${line.kind}`, d: path(line.values, x, y) }));
    }
    this.drawn.push({ cross, x });
    const index = (event) => {
      const box = picture.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * width;
      return Math.max(0, Math.min(count - 1, Math.round(((at - LEFT) / (width - LEFT - RIGHT)) * (longest - 1))));
    };
    picture.addEventListener("pointermove", (event) => this.hooks.onHover(index(event)));
    picture.addEventListener("pointerleave", () => this.hooks.onHover(-1));
    picture.addEventListener("click", (event) => this.hooks.onPick(index(event)));
    const keys = lines.length < 2 ? [] : lines.map((line) => el("span", { class: `key ${line.kind}` }, line.name));
    const caption = el("figcaption", { title: about }, el("strong", {}, title), ...keys);
    return el("figure", { class: "curve" }, caption, picture);
  }

  #spoken(title, line) {
    const known = line.values.filter(isNumber);
    if (!known.length) return `${title}: no values`;
    const least = known.reduce((a, b) => Math.min(a, b)), most = known.reduce((a, b) => Math.max(a, b));
    const ends = `from ${plain(known[0])} to ${plain(known[known.length - 1])}`;
    return `${title}: ${ends}, lowest ${plain(least)}, highest ${plain(most)}`;
  }
}

function path(values, x, y) {
  let d = "", pen = "M";
  values.forEach((value, i) => {
    if (!isNumber(value)) { pen = "M"; return; }
    d += `${pen}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  });
  return d || "M0 0";
}
