// Numbers of an answer: pure functions of a reading (see inspector.py) and the name of a reward.
import { isNumber } from "./dom.js";

const finite = (value) => (isNumber(value) ? value : 0);

export const rewardsOf = (reading, id) => reading.rewards[id].map((r) => (r === null ? NaN : r));

/** Sum of the rewards up to and with each token. */
export function cumulative(rewards) {
  let sum = 0;
  return rewards.map((reward) => (sum += finite(reward)));
}

/** {sum, mean, lowest (its index), tokens} over the finite rewards. */
export function summary(rewards) {
  const known = rewards.filter(isNumber);
  const sum = known.reduce((a, b) => a + b, 0);
  let lowest = -1;
  rewards.forEach((r, i) => { if (isNumber(r) && (lowest < 0 || r < rewards[lowest])) lowest = i; });
  return { sum, mean: known.length ? sum / known.length : NaN, lowest, tokens: rewards.length };
}

/** One {sum, mean, tokens} per sentence. */
export function sentences(numbers, rewards) {
  const out = [];
  numbers.forEach((n, i) => {
    while (out.length <= n) out.push({ sum: 0, mean: 0, tokens: 0 });
    out[n].sum += finite(rewards[i]);
    out[n].tokens += 1;
  });
  for (const sentence of out) sentence.mean = sentence.sum / Math.max(1, sentence.tokens);
  return out;
}

/** What colours the tokens: {values, label, quantile} for "token", "cumulative", "sentence" or "change". */
export function coloured(colour, reading, id, diff) {
  const rewards = rewardsOf(reading, id);
  if (colour === "cumulative") return { values: cumulative(rewards), label: "sum so far, nats", quantile: 1 };
  if (colour === "sentence") {
    const of = sentences(reading.sentences, rewards);
    const values = reading.sentences.map((n) => of[n].mean);
    return { values, label: "mean of the sentence, nats per token", quantile: 1 };
  }
  if (colour === "change" && diff) {
    return { values: diff.delta, label: "change against the unedited answer, nats", quantile: 0.98 };
  }
  return { values: rewards, label: "reward of the token, nats", quantile: 0.98 };
}

/** The `quantile` of |value|, linearly interpolated; 1 if there is nothing but zeros. As report/heatmap.py has it. */
export function fullColour(lists, quantile = 0.98) {
  const sizes = lists.flat().filter(isNumber).map(Math.abs).sort((a, b) => a - b);
  const largest = sizes[sizes.length - 1];
  if (!largest) return 1;
  const place = quantile * (sizes.length - 1);
  const low = sizes[Math.floor(place)];
  const value = low + (sizes[Math.ceil(place)] - low) * (place - Math.floor(place));
  return value > 0 ? value : largest;
}

/** Class of the colour ramp for a value: p1 .. p20, n1 .. n20, "" for zero, "na" for none. */
export function level(value, scale) {
  if (!isNumber(value)) return "na";
  const step = Math.round(20 * Math.max(-1, Math.min(1, value / scale)));
  return step === 0 ? "" : step > 0 ? `p${step}` : `n${-step}`;
}

/** Where token i lies in the answer's text as [start, end], or null if the text is not found there as it is. */
export function place(texts, i, answer) {
  if (!texts[i]) return null;
  const before = texts.slice(0, i).join("");
  for (const offset of [0, answer.length - answer.trimStart().length]) { // some tokenizers drop the first space
    const start = offset + before.length;
    if (answer.startsWith(before + texts[i], offset)) return [start, start + texts[i].length];
  }
  return null;
}
