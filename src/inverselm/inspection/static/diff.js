// An edited answer against the unedited one: which tokens stayed, and what the edit did to their rewards.
import { isNumber } from "./dom.js";

const CELLS = 4_000_000; // of the table of common subsequences; a larger middle counts as replaced

/** For every new token the index of the old token that it is, or -1. */
export function align(before, after) {
  const same = (i, j) => before.ids[i] === after.ids[j] && before.texts[i] === after.texts[j];
  const n = before.ids.length, m = after.ids.length;
  const from = new Array(m).fill(-1);
  let head = 0, tail = 0;
  while (head < n && head < m && same(head, head)) { from[head] = head; head += 1; }
  while (tail < Math.min(n, m) - head && same(n - 1 - tail, m - 1 - tail)) { tail += 1; from[m - tail] = n - tail; }
  const rows = n - head - tail, columns = m - head - tail;
  if (!rows || !columns || rows * columns > CELLS) return from;
  const width = columns + 1;
  const best = new Uint32Array((rows + 1) * width); // longest common subsequence of what is left from (i, j) on
  for (let i = rows - 1; i >= 0; i -= 1) {
    for (let j = columns - 1; j >= 0; j -= 1) {
      best[i * width + j] = same(head + i, head + j)
        ? best[(i + 1) * width + j + 1] + 1
        : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < rows && j < columns;) {
    if (same(head + i, head + j)) { from[head + j] = head + i; i += 1; j += 1; }
    else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) i += 1;
    else j += 1;
  }
  return from;
}

/**
 * What an edit did: `from` (see align), `old` (the reward of the old token; for a new token the mean of the tokens that
 * it replaces, 0 if none), `delta` (the reward less that), the numbers of tokens `added` and `removed`, and the sums
 * `before` and `after`.
 */
export function compare(before, after, id) {
  const old = before.rewards[id], now = after.rewards[id];
  const from = align(before, after);
  const reference = new Array(now.length).fill(0);
  for (let j = 0, next = 0; j < now.length;) {
    if (from[j] >= 0) { reference[j] = old[from[j]]; next = from[j] + 1; j += 1; continue; }
    let end = j;
    while (end < now.length && from[end] < 0) end += 1;
    const replaced = old.slice(next, end < now.length ? from[end] : old.length).filter(isNumber);
    const mean = replaced.length ? replaced.reduce((a, b) => a + b, 0) / replaced.length : 0;
    for (; j < end; j += 1) reference[j] = mean;
  }
  const kept = new Set(from);
  const sum = (numbers) => numbers.filter(isNumber).reduce((a, b) => a + b, 0);
  return {
    from,
    old: reference,
    delta: now.map((reward, j) => (isNumber(reward) && isNumber(reference[j]) ? reward - reference[j] : NaN)),
    removed: old.filter((_, i) => !kept.has(i)).length,
    added: from.filter((i) => i < 0).length,
    before: sum(old),
    after: sum(now),
  };
}
