// One answer under one reward: its numbers, its tokens, its curves.
import { count, el, isNumber, signed, whole } from "./dom.js";
import { Curves } from "./curves.js";
import { Heat, quoted } from "./heat.js";
import { coloured, cumulative, level, rewardsOf, sentences, summary } from "./series.js";
import { hideTip, showTip } from "./tip.js";

const NOTABLE = 0.15; // of full colour: a change that is marked

export class Pane {
  /** hooks: onReward(id), onReplace(i, node), onMark(i) (the same place elsewhere). */
  constructor(root, hooks) {
    this.root = root;
    this.hooks = hooks;
    this.view = null;
    this.walked = -1; // the token that the search for low ones has come to
    this.title = el("h2");
    this.select = el("select", { "aria-label": "Reward" });
    this.select.addEventListener("change", () => hooks.onReward(this.select.value));
    this.about = el("span", { class: "quiet about" });
    this.numbers = el("dl", { class: "numbers" });
    this.change = el("p", { class: "changed", "aria-live": "polite" });
    this.empty = el("p", { class: "empty" });
    this.legend = el("div", { class: "legend" });
    this.heat = new Heat({
      label: (i) => this.#spoken(i),
      onActive: (i, node) => { showTip(node, this.#describe(i)); this.curves.mark(i); hooks.onMark(i); },
      onLeave: () => { hideTip(); this.curves.mark(-1); hooks.onMark(-1); },
      onReplace: (i, node) => hooks.onReplace(i, node),
    });
    this.curves = new Curves({
      onHover: (i) => { this.heat.mark(i); this.curves.mark(i); hooks.onMark(i); },
      onPick: (i) => this.heat.focus(i),
    });
    root.append(
      el("header", { class: "pane-head" }, this.title, this.select, this.about),
      this.numbers, this.change, this.empty, this.heat.root, this.legend, this.curves.root,
    );
  }

  /** view: {title, reading, id, definitions, choose, colour, diff, scale, busy, empty}; see main.js. */
  show(view) {
    this.view = view;
    const { reading, definitions, id } = view;
    this.title.textContent = view.title;
    const options = definitions.map((d) => el("option", { value: d.id, selected: d.id === id }, d.name));
    this.select.replaceChildren(...options);
    this.select.hidden = !view.choose;
    const definition = definitions.find((d) => d.id === id);
    this.about.textContent = view.choose ? definition?.about ?? "" : definition?.name ?? "";
    this.root.classList.toggle("busy", Boolean(view.busy));
    this.root.setAttribute("aria-busy", String(Boolean(view.busy)));
    for (const part of [this.numbers, this.heat.root, this.legend, this.curves.root]) part.hidden = !reading;
    this.empty.hidden = Boolean(reading);
    this.empty.textContent = view.empty;
    this.change.hidden = !reading || !view.diff;
    if (!reading) return;
    this.shown = coloured(view.colour, reading, id, view.diff);
    this.rewards = rewardsOf(reading, id);
    this.sums = cumulative(this.rewards);
    this.of = sentences(reading.sentences, this.rewards);
    this.#numbers();
    this.#changed();
    const classes = this.shown.values.map((value, i) => `${level(value, view.scale)} ${this.#mark(i)}`.trim());
    const label = `${view.title}, ${definition?.name ?? ""}: ${count(reading.texts.length, "token")}`;
    this.heat.show(reading.texts, classes, label);
    this.#legend();
    this.curves.show(this.#charts(definition), reading.texts.length);
    if (this.heat.root.contains(document.activeElement)) this.heat.focus(this.heat.current, true);
  }

  /** Outline a token here because it is looked at elsewhere. */
  mark(i) {
    this.heat.mark(i);
    this.curves.mark(i);
  }

  #mark(i) {
    const { diff, scale } = this.view;
    if (!diff) return "";
    if (diff.from[i] < 0) return "new";
    const delta = diff.delta[i];
    return Math.abs(delta) < NOTABLE * scale ? "" : delta < 0 ? "fell" : "rose";
  }

  #numbers() {
    const { sum, mean, lowest, tokens } = summary(this.rewards);
    const pair = (label, ...value) => el("div", {}, el("dt", {}, label), el("dd", {}, ...value));
    const parts = [pair("Sum", signed(sum)), pair("Mean", signed(mean))];
    if (lowest >= 0) {
      const jump = el("button", { type: "button", class: "link", title: "Go to the lowest token (l)" },
        `${signed(this.rewards[lowest])} ${quoted(this.view.reading.texts[lowest])}`);
      jump.addEventListener("click", () => this.heat.focus(lowest));
      parts.push(pair("Lowest", jump));
    }
    parts.push(pair("Tokens", whole(tokens)));
    if (!this.view.reading.terminated) parts.push(pair("End", "cut, no EOS"));
    this.numbers.replaceChildren(...parts);
  }

  #changed() {
    const { diff, reading } = this.view;
    if (!diff) return;
    let worst = -1;
    diff.delta.forEach((delta, i) => { if (isNumber(delta) && (worst < 0 || delta < diff.delta[worst])) worst = i; });
    const parts = [el("strong", {}, "Edited: "), `sum ${signed(diff.before)} → ${signed(diff.after)} `,
      el("strong", {}, `(${signed(diff.after - diff.before)})`),
      `; ${count(diff.added, "new token")}, ${whole(diff.removed)} gone.`];
    if (worst >= 0 && diff.delta[worst] < 0) {
      const text = `${signed(diff.delta[worst])} at ${quoted(reading.texts[worst])}`;
      const jump = el("button", { type: "button", class: "link" }, text);
      jump.addEventListener("click", () => this.heat.focus(worst));
      parts.push(" Largest fall: ", jump);
    }
    this.change.replaceChildren(...parts);
  }

  #legend() {
    const { scale, diff } = this.view, limit = signed(scale).slice(1);
    const spoken = `from minus ${limit} (orange) over zero to plus ${limit} (blue)`;
    const ramp = el("span", { class: "ramp", role: "img", "aria-label": spoken });
    const key = el("span", { class: "scale-key" }, `−${limit} `, ramp, ` +${limit}`);
    const parts = [key, el("span", {}, this.shown.label)];
    if (diff) {
      const samples = [["new", "new token"], ["fell", "fell"], ["rose", "rose"]];
      parts.push(...samples.map(([kind, text]) => el("span", { class: `sample ${kind}` }, text)));
    }
    if (this.rewards.some((r) => !isNumber(r))) parts.push(el("span", { class: "sample na" }, "no finite reward"));
    this.legend.replaceChildren(...parts);
  }

  #charts(definition) {
    const { reading, diff, reference, id } = this.view, whose = definition?.curves;
    const lines = (kind, values, old) => [
      { values, kind, name: diff ? "edited" : "" },
      ...(diff && old ? [{ values: old, kind: "old", name: "unedited" }] : []),
    ];
    const charts = [{
      title: "Reward so far", about: "Sum of the rewards up to and with each token, nats", zero: true,
      lines: lines("one", this.sums, diff && cumulative(rewardsOf(reference, id))),
    }];
    if (definition?.has_value && reading.values[whose]) {
      charts.push({
        title: "Value V(s)", zero: false, lines: lines("two", reading.values[whose], reference?.values[whose]),
        about: "logsumexp of the logits before each token; the last point is the value after it, 0 if the answer ended",
      });
    }
    if (whose && reading.entropy[whose]) {
      charts.push({
        title: "Entropy", about: "H(π) in the state before each token, nats", zero: true,
        lines: lines("three", reading.entropy[whose], reference?.entropy[whose]),
      });
    }
    return charts;
  }

  #describe(i) {
    const { reading, definitions, id, diff } = this.view, n = reading.sentences[i], sentence = this.of[n];
    const own = definitions.find((d) => d.id === id), whose = own?.curves;
    const known = reading.ids[i] >= 0 ? ` · id ${reading.ids[i]}` : "";
    const rows = [[`${quoted(reading.texts[i])} · token ${whole(i + 1)}${known}`]];
    rows.push([own?.name ?? "reward", signed(this.rewards[i]), "strong"]);
    if (diff) {
      rows.push([diff.from[i] < 0 ? "tokens it replaces, mean" : "unedited", signed(diff.old[i])]);
      rows.push(["change", signed(diff.delta[i]), "strong"]);
    }
    rows.push(["sum so far", signed(this.sums[i])]);
    rows.push([`sentence ${n + 1}: sum, mean`, `${signed(sentence.sum)}, ${signed(sentence.mean)}`]);
    for (const d of definitions) {
      if (d.id !== id && reading.rewards[d.id]) rows.push([d.name, signed(reading.rewards[d.id][i])]);
    }
    if (own?.has_value && reading.values[whose]) rows.push(["V(s)", signed(reading.values[whose][i])]);
    if (reading.entropy[whose]) rows.push(["entropy", signed(reading.entropy[whose][i]).replace("+", "")]);
    return rows;
  }

  #spoken(i) {
    return this.#describe(i).slice(0, 6).map((row) => row.slice(0, 2).join(" ")).join(", ");
  }
}
