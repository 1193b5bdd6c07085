// What the panes show, as an export takes it (see export.py).
import { signed } from "./dom.js";
import { coloured, summary, rewardsOf } from "./series.js";

/** views: of the panes, see main.js. An edited answer comes with the unedited one before it. */
export function exportOf(format, views, subtitle, scale) {
  return { format, title: "Token rewards", subtitle, scale, answers: views.flatMap(answersOf) };
}

function answersOf(view) {
  const name = view.definitions.find((d) => d.id === view.id)?.name ?? "reward";
  const one = (reading, diff, title, marked) => {
    const colour = view.colour === "change" && !diff ? "token" : view.colour;
    const { values, label } = coloured(colour, reading, view.id, diff);
    return {
      title: `${title}: ${name}, sum ${signed(summary(rewardsOf(reading, view.id)).sum)}`,
      prompt: view.side.prompt.value, caption: `Colour: ${label}.`, marked,
      tokens: reading.texts.map((text, i) => [text, Number.isFinite(values[i]) ? values[i] : null]),
    };
  };
  if (!view.diff) return [one(view.reading, null, view.title, null)];
  const fresh = view.diff.from.map((from, i) => (from < 0 ? i : -1)).filter((i) => i >= 0);
  const marked = fresh.length ? [fresh[0], fresh[fresh.length - 1] + 1] : null;
  return [one(view.reference, null, "Unedited", null), one(view.reading, view.diff, "Edited", marked)];
}
