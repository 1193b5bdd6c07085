"""What `inverselm filter` writes for people: rows to review with their heatmaps, and a report on the data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .scored_rows import AnswerRow

if TYPE_CHECKING:
    from ...evaluation.data_report import DataReport
    from ...inference.filtering import Place
    from ...scorers import ScoredCompletion

_BAR = 30  # characters of the longest bar of a histogram
_NAMES = ("min", "1%", "5%", "25%", "median", "75%", "95%", "99%", "max")


@dataclass(frozen=True)
class Judged:
    """A row with its rewards.

    Attributes:
        number: in the data, from 0.
        row: as it was read.
        scored: its tokens with their rewards.
        score: what rows are ranked by.
        token: its lowest token.
        step: the sentence or line around it.
        first: the first token that is at most a third as high as the lowest one.
    """

    number: int
    row: AnswerRow
    scored: ScoredCompletion
    score: float
    token: Place
    step: Place
    first: Place

    def facts(self) -> dict[str, Any]:
        """What the files say of a row."""
        places = {"lowest_token": asdict(self.token), "lowest_step": asdict(self.step)}
        places["first_low_token"] = asdict(self.first)
        return {"score": self.score, "reward": self.scored.total, "tokens": len(self.scored.tokens), **places}


def write_review(folder: Path, items: Sequence[Judged], what: str, args: Any) -> None:
    """review.jsonl and review.html: the most suspicious rows, the worst first."""
    from ...report.heatmap import ScoredAnswer, ScoredToken, heatmap_page
    from ...report.page import write_whole
    from .heatmaps import _shown

    records, answers = [], []
    for place, item in enumerate(items, 1):
        row, token = item.row, item.token
        content = {"prompt": row.prompt, "completion": row.completion, "scored_text": item.scored.text}
        records.append({"row": item.number, "where": row.where, **item.facts(), **content})
        answers.append(
            ScoredAnswer(
                tokens=[ScoredToken(t.text, t.reward) for t in item.scored.tokens],
                title=f"{place}. {row.where}: score {item.score:+.3f}",
                prompt=_shown(row.prompt),
                marked=(token.first, token.last + 1),
                caption=_caption(item, args.step),
            )
        )
    lines = "".join(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records)
    write_whole(folder / "review.jsonl", lines.encode("utf-8", "surrogatepass"))
    subtitle = f"{args.dataset_name}: the {len(items)} rows with the lowest score ({what}); the lowest token is marked"
    page = heatmap_page(answers, "Demonstrations to review", subtitle=subtitle)
    write_whole(folder / "review.html", page.encode("utf-8", "replace"))


def _caption(item: Judged, step: str) -> str:
    """The places in words."""
    token, around, first = item.token, item.step, item.first
    text = f"Lowest token: {token.text!r} at character {token.start}, {token.reward:+.3f} nats. "
    text += f"Its {step}: {around.text.strip()!r}, {around.reward:+.3f} nats per token."
    if first.first != token.first:
        text += f" First low token: {first.text!r} at character {first.start}, {first.reward:+.3f} nats."
    return text


def write_report(folder: Path, report: DataReport, judged: Sequence[Judged], what: str, args: Any) -> str:
    """report.txt, report.html and report.json; returns the text."""
    from ...report.page import Page, write_whole

    facts, correlations = _facts(report), _correlations(report)
    shown = lambda name, x: f"{x:.0f}" if name == "tokens" else _number(x)
    tables = {name: [shown(name, x) for x in values] for name, values in report.quantiles.items()}
    text = "\n".join(
        [
            f"{args.dataset_name}: {what}",
            *(f"  {line}" for line in facts),
            "",
            *_lines([("", *_NAMES), *((name, *values) for name, values in tables.items())]),
            "",
            *correlations,
        ]
    )
    bars = [line for name in report.histograms for line in ("", name, *_bars(*report.histograms[name]))]
    write_whole(folder / "report.txt", ("\n".join([text, *bars]) + "\n").encode("utf-8", "replace"))
    page = Page("What the data is like", f"{args.dataset_name}: {what}")
    page.text("\n".join(f"- {_escaped(line)}" for line in facts))
    page.table(("", *_NAMES), [(name, *values) for name, values in tables.items()], "Quantiles; rewards in nats.")
    page.text("\n\n".join(map(_escaped, correlations)))
    for name, (edges, counts) in report.histograms.items():
        page.heading(name[0].upper() + name[1:], 3)
        rows = [(_number(edge), f"{count:,}", _bar(count, counts)) for edge, count in zip(edges, counts, strict=False)]
        page.table(("from", "rows", ""), rows, "The first and last bins hold what lies outside.", align="rrl")
    page.write(folder / "report.html")
    content = {"settings": {k: v for k, v in vars(args).items() if k not in ("overwrite", "resume")}, "what": what}
    scores = sorted(item.score for item in judged)
    content |= {"scores": {"lowest": scores[0], "highest": scores[-1]}, **report.as_dict()}
    write_whole(folder / "report.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return text


def _facts(report: DataReport) -> list[str]:
    lines = [f"{report.rows:,} rows, {report.rows - sum(report.unscored.values()):,} with a reward"]
    lines += [f"{count:,} without: {why}" for why, count in report.unscored.items()]
    lines.append(f"{report.duplicates:,} repeat an earlier row (prompt and completion)")
    lines.append(f"{report.contradictions:,} prompts have several different completions")
    return lines


def _correlations(report: DataReport) -> list[str]:
    lines = []
    for name, (rank, linear) in report.length_correlation.items():
        found = "is not defined" if math.isnan(rank) else f"{rank:+.2f} (Pearson {linear:+.2f})"
        lines.append(f"Spearman of {name} with length: {found}.")
    return lines


def _bars(edges: Sequence[float], counts: Sequence[int]) -> list[str]:
    return [f"{_number(e):>10}  {c:>8,}  {_bar(c, counts)}".rstrip() for e, c in zip(edges, counts, strict=False)]


def _bar(count: int, counts: Sequence[int]) -> str:
    length = _BAR * count / max(counts)
    return "█" * round(length) or ("▏" if count else "")


def _number(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:.3f}"


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def _escaped(text: str) -> str:
    """Without what `Page.text` takes for markup."""
    return text.replace("*", "∗").replace("`", "'").replace("[", "(").replace("]", ")")
