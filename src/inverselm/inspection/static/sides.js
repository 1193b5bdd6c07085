// What a person looks at: up to two answers, each with the unedited one beside it.
import { score } from "./api.js";
import { $ } from "./dom.js";

const DELAY = 250; // milliseconds after the last key

/** One answer: its texts, its reading, and the reading it is compared with. */
export class Side {
  /** hooks: onChange(), onError(error or null). */
  constructor(name, canScore, hooks) {
    Object.assign(this, { name, canScore, hooks });
    this.messages = null; // a prompt of chat messages, as the file has it
    this.reading = null; // of the texts, or of those a moment ago
    this.original = null; // {prompt, answer, eos, reading}: unedited
    this.row = null;
    this.given = {}; // prompt and answer as they were put in: a field makes one line break of every kind
    this.busy = false; // the reading is not yet that of the texts
    this.timer = 0;
    this.controller = null;
    this.prompt = $(`prompt-${name}`);
    this.answer = $(`answer-${name}`);
    this.eos = $(`eos-${name}`);
    for (const field of [this.prompt, this.answer]) {
      field.addEventListener("input", () => { fit(field); this.later(); });
    }
    this.eos.addEventListener("change", () => this.now());
    $(`pin-${name}`).addEventListener("click", () => this.pin());
    $(`revert-${name}`).addEventListener("click", () => this.revert());
  }

  /** Whether the texts differ from the unedited ones. */
  get edited() {
    const old = this.original;
    if (!old) return false;
    return old.answer !== this.answer.value || old.prompt !== this.prompt.value || old.eos !== this.eos.checked;
  }

  /** Whether the reading belongs to an edit, and has something to be compared with. */
  get changed() { return this.edited && this.reading !== this.original.reading; }

  get isEmpty() { return this.answer.value === ""; }

  /** Put texts in, as the unedited ones. */
  load({ prompt, messages = null, answer, eos = true, row = null, stored = null }) {
    this.cancel();
    Object.assign(this, { messages, row, stored, reading: stored, original: null, given: { prompt, answer } });
    this.prompt.value = prompt;
    this.prompt.readOnly = Boolean(messages) || !this.canScore;
    this.answer.value = answer;
    this.answer.readOnly = !this.canScore;
    this.eos.checked = eos;
    this.eos.disabled = !this.canScore;
    [this.prompt, this.answer].forEach(fit);
    this.hooks.onChange();
    return this.now();
  }

  /** Score soon: another key may follow. */
  later() {
    this.cancel();
    this.busy = this.canScore && !this.isEmpty;
    this.timer = setTimeout(() => this.now(), DELAY);
    this.hooks.onChange();
  }

  /** Score what is in the fields. */
  async now() {
    this.cancel();
    const nothing = this.isEmpty && (this.row === null || this.edited || !this.eos.checked); // else EOS alone
    if (!this.canScore || nothing) {
      if (nothing) { this.reading = null; this.original = null; }
      this.hooks.onChange();
      return;
    }
    const controller = new AbortController();
    this.controller = controller;
    this.busy = true;
    this.hooks.onChange();
    const answer = this.answer.value;
    const asked = { prompt: this.#asked(), completion: this.#text("answer"), add_eos: this.eos.checked };
    if (this.row !== null && !this.edited) asked.row = this.row;
    try {
      const reading = await score(asked, controller.signal);
      if (this.controller !== controller) return;
      if (this.stored && same(this.stored.texts, reading.texts)) reading.rewards.file = this.stored.rewards.file;
      this.reading = reading;
      this.original ??= { prompt: this.prompt.value, answer, eos: asked.add_eos, reading };
      if (!this.edited) this.original.reading = reading;
      this.hooks.onError(null);
    } catch (error) {
      if (error.name === "AbortError" || this.controller !== controller) return;
      this.hooks.onError(error);
    }
    this.busy = false;
    this.hooks.onChange();
  }

  cancel() {
    clearTimeout(this.timer);
    this.controller?.abort();
    this.controller = null;
    this.busy = false;
  }

  /** Take the answer as it stands for the unedited one. */
  pin() {
    if (!this.reading || this.busy) return;
    const [prompt, answer, eos] = [this.prompt.value, this.answer.value, this.eos.checked];
    this.original = { prompt, answer, eos, reading: this.reading };
    this.hooks.onChange();
  }

  revert() {
    if (!this.edited) return;
    const { prompt, answer, eos, reading } = this.original;
    this.cancel();
    this.prompt.value = prompt;
    this.answer.value = answer;
    this.eos.checked = eos;
    this.reading = reading;
    [this.prompt, this.answer].forEach(fit);
    this.hooks.onError(null);
    this.hooks.onChange();
  }

  /** Replace characters [start, end) of the answer. */
  replace(start, end, text) {
    this.answer.value = this.answer.value.slice(0, start) + text + this.answer.value.slice(end);
    fit(this.answer);
    return this.now();
  }

  #asked() {
    if (this.messages) return this.messages;
    const text = this.#text("prompt");
    return $("chat").checked ? [{ role: "user", content: text }] : text;
  }

  /** What is in a field; as it was put in, if that is what it shows. */
  #text(name) {
    const given = this.given[name], shown = this[name].value;
    return given?.replace(/\r\n?/g, "\n") === shown ? given : shown;
  }
}

const same = (a, b) => a.length === b.length && a.every((text, i) => text === b[i]);

/** A field as high as its text, up to the height that the style sheet allows. */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}
