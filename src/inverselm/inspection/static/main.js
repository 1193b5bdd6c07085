// The page: two sides (answers), two panes (an answer under a reward), a list of rows.
import { $, count, el, named, whole } from "./dom.js";
import { getJob, getMeta, getRow, save, setJob } from "./api.js";
import { compare } from "./diff.js";
import { exportOf } from "./exports.js";
import { installKeys } from "./keys.js";
import { RowList, rowsPanel } from "./list.js";
import { Pane } from "./pane.js";
import { askReplacement } from "./replace.js";
import { coloured, fullColour, place } from "./series.js";
import { fit, Side } from "./sides.js";

const state = { mode: "one", colour: "token", rewards: { a: "", b: "" }, scale: null, samePrompt: true };
const asks = { a: null, b: null }; // the row that each side was last asked to open
let meta, sides, panes, list = null;

function say(error) {
  $("message").hidden = !error;
  $("message").textContent = error ? error.message : "";
}

/** The reading and the reward that a pane shows: the chosen one, or the first that there is. */
function shownReading(side, wanted) {
  const stored = side.edited ? null : side.stored; // another tokenizer may have cut the file's tokens
  const has = (d) => (d.id === "file" ? Boolean(stored) : Boolean(side.reading?.rewards[d.id]));
  const definitions = side.reading ? meta.definitions.filter(has) : meta.definitions;
  const id = (definitions.find((d) => d.id === wanted) ?? definitions[0])?.id ?? wanted;
  const reading = id === "file" && !side.reading?.rewards.file ? stored : side.reading;
  return { reading, id, definitions };
}

function viewOf(name) {
  const side = state.mode === "rewards" ? sides.a : sides[name];
  const { reading, id, definitions } = shownReading(side, state.rewards[state.mode === "answers" ? "a" : name]);
  const comparable = side.changed && reading && side.original.reading.rewards[id];
  const diff = comparable ? compare(side.original.reading, reading, id) : null;
  const titles = { one: "Answer", answers: `Answer ${name.toUpperCase()}`, rewards: `Reward ${name.toUpperCase()}` };
  const waiting = side.busy ? "Reading…" : "An answer appears here with its tokens coloured by reward.";
  return {
    title: titles[state.mode], reading, id, definitions, diff, reference: side.original?.reading, side,
    choose: state.mode !== "answers" || name === "a", busy: side.busy,
    colour: !diff && state.colour === "change" ? "token" : state.colour,
    empty: meta.can_score ? waiting : "Open a row.",
  };
}

/** Bring everything on the page in line with the state. */
function update() {
  const two = state.mode !== "one";
  const views = { a: viewOf("a"), ...(two ? { b: viewOf("b") } : {}) };
  const values = Object.values(views).map((v) => (v.reading ? coloured(v.colour, v.reading, v.id, v.diff) : null));
  const shared = values.filter(Boolean);
  Object.values(views).forEach((view, n) => {
    const own = state.mode === "rewards" ? (values[n] ? [values[n]] : []) : shared;
    view.scale = state.scale ?? (own.length ? fullColour(own.map((c) => c.values), own[0].quantile) : 1);
  });
  $("panes").dataset.panes = two ? "2" : "1";
  $("inputs").dataset.mode = state.mode;
  $("pane-b").hidden = !two;
  const answers = state.mode === "answers";
  document.querySelector(".answer-b").hidden = !answers;
  document.querySelector(".prompt-b").hidden = !answers || state.samePrompt;
  $("label-a").textContent = answers ? "Answer A" : "Answer";
  for (const name of ["a", "b"]) {
    const pinnable = sides[name].changed && !sides[name].busy;
    $(`pin-${name}`).hidden = !pinnable;
    $(`revert-${name}`).hidden = !sides[name].edited;
  }
  const change = document.querySelector("#colour input[value=change]");
  change.disabled = !Object.values(views).some((view) => view.diff);
  for (const radio of document.querySelectorAll("#colour input")) radio.checked = radio.value === views.a.colour;
  for (const radio of document.querySelectorAll("#mode input")) radio.checked = radio.value === state.mode;
  panes.a.show(views.a);
  if (two) panes.b.show(views.b);
  const any = Object.values(views).some((view) => view.reading);
  $("save-html").disabled = !any;
  $("save-png").disabled = !any || !meta.png;
}

async function openRow(index, side, stay) {
  const asked = asks[side] = {};
  try {
    const row = await getRow(index);
    if (asked !== asks[side]) return; // another row was opened meanwhile
    say(null);
    const messages = typeof row.prompt === "string" ? null : row.prompt;
    $("chat").checked = false;
    if (side === "b") {
      state.mode = "answers";
      state.samePrompt = row.prompt_text === sides.a.prompt.value;
    } else {
      facts(row.facts);
      history.replaceState(null, "", `#row=${index + 1}`);
      state.samePrompt = state.samePrompt && (sides.b.isEmpty || sides.b.prompt.value === row.prompt_text);
    }
    if (!stay) document.body.classList.remove("list-open");
    await sides[side].load({
      prompt: row.prompt_text, messages, answer: row.completion, eos: row.add_eos, row: index, stored: row.stored,
    });
  } catch (error) { say(error); }
}

function facts(entries) {
  const pair = ([name, text]) => el("div", {}, el("dt", {}, name), el("dd", { title: text }, text));
  $("facts").replaceChildren(...Object.entries(entries).map(pair));
  $("facts").hidden = !Object.keys(entries).length;
}

function replaceToken(name, i, node) {
  const { side, reading } = panes[name].view;
  if (side.answer.readOnly) return;
  const at = place(reading.texts, i, side.answer.value);
  if (at) askReplacement(node, reading.texts[i], (text) => side.replace(...at, text));
  else side.answer.focus(); // EOS, or a part of a character
}

async function exportFile(format) {
  const button = $(`save-${format}`);
  button.disabled = true;
  try {
    const names = state.mode === "one" ? ["a"] : ["a", "b"];
    const views = names.map((name) => panes[name].view).filter((view) => view.reading);
    const scale = state.mode === "rewards" && state.scale === null ? null : views[0].scale;
    await save(exportOf(format, views, Object.values(meta.models).join(" · "), scale), `token-rewards.${format}`);
    say(null);
  } catch (error) { say(error); }
  button.disabled = false;
}

/** Go to the lowest token of the pane that has the focus, else of A; from there to the next lowest. */
function nextLowest() {
  const pane = panes[$("pane-b").contains(document.activeElement) ? "b" : "a"];
  if (!pane.view?.reading) return;
  const order = pane.rewards.map((_, i) => i).filter((i) => Number.isFinite(pane.rewards[i]));
  order.sort((i, j) => pane.rewards[i] - pane.rewards[j]);
  const focused = Number(document.activeElement.dataset.i ?? -1);
  const from = focused === pane.walked ? order.indexOf(focused) : -1;
  pane.walked = order[(from + 1) % order.length];
  pane.heat.focus(pane.walked);
}

const cycle = (list, value) => list[(list.indexOf(value) + 1) % list.length];

function setMode(mode) {
  state.mode = mode;
  if (mode === "answers" && sides.b.isEmpty && !sides.a.isEmpty && meta.can_score) {
    const { prompt, answer, eos, reading } = sides.a.original ?? {};
    state.samePrompt = true;
    if (reading) sides.b.load({ prompt, messages: sides.a.messages, answer, eos });
  }
  if (mode === "rewards" && state.rewards.b === state.rewards.a) {
    state.rewards.b = cycle(meta.definitions.map((d) => d.id), state.rewards.a);
  }
  update();
  for (const id of ["answer-a", "answer-b"]) fit($(id));
}

function nextColour() {
  const open = [...document.querySelectorAll("#colour input:not(:disabled)")].map((radio) => radio.value);
  state.colour = cycle(open, panes.a.view.colour);
  update();
}

function nextReward() {
  const name = state.mode === "rewards" && $("pane-b").contains(document.activeElement) ? "b" : "a";
  state.rewards[name] = cycle(panes[name].view.definitions.map((d) => d.id), panes[name].view.id);
  update();
}

function search() {
  document.body.classList.add("list-open");
  $("search").focus();
}

function shortcuts() {
  const modes = { 1: "one", 2: "answers", 3: "rewards" };
  const able = (mode) => !document.querySelector(`#mode input[value=${mode}]`).disabled;
  return [
    { keys: ["←", "→", "↑", "↓"], text: "walk through the tokens; Home, End, Page keys too" },
    { keys: ["Enter"], text: "replace the token" },
    { keys: ["t"], text: "to the tokens", run: () => panes.a.heat.focus(panes.a.heat.current) },
    { keys: ["l"], text: "to the lowest token, then the next lowest", run: nextLowest },
    { keys: ["e"], text: "edit the answer", run: () => sides.a.answer.focus() },
    { keys: ["r"], text: "back to the unedited answer", run: () => { sides.a.revert(); sides.b.revert(); } },
    { keys: ["p"], text: "keep the answer as the unedited one", run: () => sides.a.pin() },
    { keys: ["c"], text: "colour by token, sum, sentence, change", run: nextColour },
    { keys: ["d"], text: "the next definition of the reward", run: nextReward },
    {
      keys: Object.keys(modes), text: "one answer, two answers, two rewards",
      run: (event) => { if (able(modes[event.key])) setMode(modes[event.key]); },
    },
    ...(!list ? [] : [
      { keys: ["j"], text: "open the next row", run: () => list.next(1) },
      { keys: ["k"], text: "open the previous row", run: () => list.next(-1) },
      { keys: ["/"], text: "search the rows", run: search },
      { keys: ["b"], text: "in the rows: show as answer B" },
    ]),
  ];
}

function build() {
  const names = { model: "model", baseline: "baseline", q_function: "Q-function" };
  const models = Object.entries(meta.models).map(([role, name]) => `${names[role] ?? role}: ${named(name)}`);
  $("models").textContent = models.join("  ·  ");
  const hooks = { onChange: () => { if (panes) update(); }, onError: say };
  sides = { a: new Side("a", meta.can_score, hooks), b: new Side("b", meta.can_score, hooks) };
  const twin = { a: "b", b: "a" };
  const made = (name) => new Pane($(`pane-${name}`), {
    onReward: (id) => { state.rewards[name] = id; update(); },
    onReplace: (i, node) => replaceToken(name, i, node),
    onMark: (i) => {
      const other = panes[twin[name]];
      if (state.mode === "rewards" && other.view.reading === panes[name].view.reading) other.mark(i);
    },
  });
  panes = { a: made("a"), b: made("b") };
  state.rewards.a = meta.definitions[0]?.id ?? "";
  state.rewards.b = meta.definitions[1]?.id ?? state.rewards.a;
  document.querySelector("#mode input[value=rewards]").disabled = meta.definitions.length < 2;
  $("mode").addEventListener("change", (event) => setMode(event.target.value));
  $("colour").addEventListener("change", (event) => { state.colour = event.target.value; update(); });
  $("scale").addEventListener("input", () => {
    const value = Number.parseFloat($("scale").value);
    state.scale = value > 0 ? value : null;
    update();
  });
  sides.a.prompt.addEventListener("input", () => {
    if (!state.samePrompt || sides.b.isEmpty || sides.b.messages) return;
    sides.b.prompt.value = sides.a.prompt.value;
    sides.b.later();
  });
  sides.b.answer.addEventListener("input", () => {
    if (state.samePrompt && !sides.b.messages) sides.b.prompt.value = sides.a.prompt.value;
  });
  $("same-prompt").addEventListener("click", () => {
    state.samePrompt = true;
    const [prompt, answer, eos] = [sides.a.prompt.value, sides.b.answer.value, sides.b.eos.checked];
    sides.b.load({ prompt, messages: sides.a.messages, answer, eos });
  });
  $("chat-box").hidden = !meta.chat;
  $("chat").checked = meta.chat;
  $("chat").addEventListener("change", () => { sides.a.now(); if (!sides.b.isEmpty) sides.b.now(); });
  for (const format of ["png", "html"]) $(`save-${format}`).addEventListener("click", () => exportFile(format));
  if (!meta.png) $("save-png").title = "needs matplotlib: pip install 'inverselm[report]'";
}

function buildRows() {
  $("rows").hidden = $("to-rows").hidden = false;
  document.body.classList.add("with-rows");
  list = new RowList($("list"), {
    onOpen: openRow, onError: say,
    onCount: (total) => {
      const some = total === meta.file.rows ? "" : `${whole(total)} of `;
      $("row-count").textContent = `${some}${count(meta.file.rows, "row")}`;
    },
  });
  $("to-rows").addEventListener("click", () => document.body.classList.toggle("list-open"));
  return rowsPanel(meta, list, { getJob, setJob, onError: say });
}

async function begin() {
  try {
    meta = await getMeta();
  } catch (error) { say(error); return; }
  build();
  const rows = meta.file ? buildRows() : null;
  installKeys(shortcuts());
  update();
  const wanted = /^#row=(\d+)$/.exec(location.hash);
  if (meta.start.prompt !== undefined || meta.start.completion !== undefined) {
    await sides.a.load({ prompt: meta.start.prompt ?? "", answer: meta.start.completion ?? "" });
  } else if (rows) {
    await rows;
    if (list.cursor >= 0) return; // a row was chosen before all was ready
    const index = wanted ? Number(wanted[1]) - 1 : 0; // at first the list is in the file's order
    list.open(index < meta.file.rows ? index : 0, "a", true);
  }
}

begin();
