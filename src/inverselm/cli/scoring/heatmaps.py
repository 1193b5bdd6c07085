"""Token rewards for the eye: in the terminal, and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...scorers import ScoredCompletion


def terminal_heatmap(scored: ScoredCompletion, color: bool = True) -> str:
    """Tokens on blue (positive) or orange (negative) in a terminal; a table without colour."""
    scale = max((abs(r) for r in scored.rewards), default=0.0) or 1.0
    lines = ["".join(_painted(scored, scale))] if color else []
    lines += [f"{token.reward:+8.3f}  {token.text!r}" for token in scored.tokens]
    lines.append(f"{scored.total:+8.3f}  sum of {len(scored.tokens)} tokens, nats")
    return "\n".join(lines)


def _painted(scored: ScoredCompletion, scale: float) -> Iterator[str]:
    for token in scored.tokens:
        share = min(1.0, abs(token.reward) / scale)
        target = (86, 180, 233) if token.reward >= 0 else (230, 159, 0)
        red, green, blue = (round(255 + (c - 255) * share) for c in target)
        yield f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;0;0;0m{_plain(token.text)}\x1b[0m"


def _plain(text: str) -> str:
    """Control characters of an answer must not reach the terminal."""
    return "".join(c if c.isprintable() else "⏎\n" if c == "\n" else "·" for c in text)


def write_page(path: str, records: Sequence[dict[str, Any]], title: str) -> None:
    """Records of `inverselm score` as an HTML page of token heatmaps."""
    from ...report.heatmap import ScoredAnswer, ScoredToken, heatmap_page

    answers = [
        ScoredAnswer(
            tokens=[ScoredToken(token["text"], token["reward"]) for token in item["tokens"]],
            title=f"Answer {i}: {item['reward']:+.2f} nats",
            prompt=_shown(item["prompt"]),
        )
        for i, item in enumerate(records, 1)
    ]
    Path(path).write_text(heatmap_page(answers, title), encoding="utf-8")


def _shown(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{m.get('role')}: {m.get('content')}" for m in prompt)
