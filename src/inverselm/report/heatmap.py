"""Token rewards as coloured text: an HTML fragment that needs no script, no network and no other style sheet."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from inverselm.errors import UserError

from .colors import LEVELS, heatmap_style

FOCUSABLE_TOKENS = 200
"""Answers up to this many tokens can be walked with the Tab key."""

_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]")
_GLYPHS = re.compile(r"\r\n|\r|\n|\t|⟨U\+[0-9A-F]{4}⟩")


@dataclass(frozen=True)
class ScoredToken:
    """One token of an answer: its text exactly as it is decoded (spaces and newlines kept) and its reward.

    >>> ScoredToken(" 42", -0.7).reward
    -0.7
    """

    text: str
    reward: float


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer for `heatmap_page`; the fields are the arguments of `token_heatmap`.

    >>> ScoredAnswer([ScoredToken("Yes", 0.3)], title="first answer").caption
    ''
    """

    tokens: Sequence[ScoredToken]
    title: str = ""
    prompt: str = ""
    marked: tuple[int, int] | None = None
    caption: str = ""


def token_heatmap(
    tokens: Sequence[ScoredToken],
    *,
    title: str = "",
    prompt: str = "",
    scale: float | None = None,
    marked: tuple[int, int] | None = None,
    caption: str = "",
) -> str:
    """An HTML `<figure>` of the answer: blue tokens have a positive reward, orange ones a negative, neutral is zero.

    `scale` is the reward shown in full colour, on both sides (default: the 98th percentile of |reward| in this answer;
    see `shared_scale` to compare answers). `marked` underlines the tokens [start, end), for example a planted error.
    A reward that is not finite is neutral, has a dashed outline and reads "n/a". All text is escaped.

    >>> html = token_heatmap([ScoredToken("2+2", 0.1), ScoredToken("=5", -0.9)], title="Sum", marked=(1, 2))
    >>> "reward −0.900" in html
    True
    """
    full = check_scale(scale) if scale is not None else shared_scale([tokens])
    start, end = check_marked(marked, len(tokens))
    spans = _spans(tokens, full)
    if start < end:
        spans = [*spans[:start], "<mark>", *spans[start:end], "</mark>", *spans[end:]]
    label = escape(visible_text(f"Token rewards: {title}" if title else "Token rewards"), quote=True)
    parts = [
        f'<figure class="irl-heat" aria-label="{label}">{heatmap_style()}',
        f'<p class="irl-title" dir="auto">{_shown(title)}</p>' if title else "",
        f'<p class="irl-label">Prompt</p><div class="irl-prompt" dir="auto">{_shown(prompt)}</div>' if prompt else "",
        '<p class="irl-label">Answer</p>' if prompt else "",
        f'<div class="irl-tokens" dir="auto">{"".join(spans)}</div>',
        _legend(tokens, full, start < end),
        f'<figcaption dir="auto">{_shown(caption)}</figcaption>' if caption else "",
        "</figure>",
    ]
    return "".join(parts)


def shared_scale(answers: Iterable[Sequence[ScoredToken]], quantile: float = 0.98) -> float:
    """The `quantile` of |reward| over all tokens of all answers: one scale, so that their colours can be compared.

    Rewards that are not finite are left out; without any other reward the scale is 1.

    >>> shared_scale([[ScoredToken("a", 1.0)], [ScoredToken("b", -3.0)]], quantile=1.0)
    3.0
    """
    if not 0 < quantile <= 1:
        raise UserError(f"quantile must be above 0 and at most 1, not {quantile}")
    sizes = sorted(abs(float(t.reward)) for tokens in answers for t in tokens if math.isfinite(t.reward))
    if not sizes or sizes[-1] == 0:
        return 1.0
    place = quantile * (len(sizes) - 1)
    low, high = sizes[math.floor(place)], sizes[math.ceil(place)]
    value = low + (high - low) * (place - math.floor(place))
    return value if value > 0 else sizes[-1]


def heatmap_page(answers: Sequence[ScoredAnswer], title: str, *, subtitle: str = "", scale: float | None = None) -> str:
    """One self-contained HTML document with a heatmap per answer, all on one scale (default: `shared_scale`).

    >>> page = heatmap_page([ScoredAnswer([ScoredToken("Hello", 0.2)])], "My answers")
    >>> page.startswith("<!doctype html>")
    True
    """
    from .page import Page

    full = check_scale(scale) if scale is not None else shared_scale([answer.tokens for answer in answers])
    page = Page(title, subtitle)
    for answer in answers:
        fragment = token_heatmap(
            answer.tokens,
            title=answer.title,
            prompt=answer.prompt,
            scale=full,
            marked=answer.marked,
            caption=answer.caption,
        )
        page.html(fragment)
    return page.render()


def format_reward(value: float) -> str:
    """A signed number with a real minus sign; "n/a" when it is not finite.

    >>> format_reward(0.25), format_reward(-0.5), format_reward(float("nan"))
    ('+0.250', '−0.500', 'n/a')
    """
    if not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0.000"
    return f"{value:{'+.3f' if 1e-3 <= abs(value) < 1e5 else '+.2e'}}".replace("-", "−")


def reward_level(reward: float, scale: float) -> int | None:
    """The step of the colour ramp for a reward, from -LEVELS to LEVELS; None when the reward is not finite.

    >>> reward_level(0.5, 0.5) == LEVELS, reward_level(-9.0, 0.5) == -LEVELS, reward_level(0.0, 0.5)
    (True, True, 0)
    """
    if not math.isfinite(reward):
        return None
    return round(LEVELS * max(-1.0, min(1.0, reward / scale)))


def visible_text(text: str) -> str:
    """The text with invisible control, direction and invalid characters spelled out, newlines and tabs kept.

    >>> visible_text("a\\x00b")
    'a⟨U+0000⟩b'
    """
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def check_scale(scale: float) -> float:
    """`scale` if it is a positive finite number, else a `UserError`."""
    if not (math.isfinite(scale) and scale > 0):
        raise UserError(f"scale must be a positive number (the reward shown in full colour), not {scale}")
    return float(scale)


def check_marked(marked: tuple[int, int] | None, count: int) -> tuple[int, int]:
    """`marked` if it lies within `count` tokens, (0, 0) for None, else a `UserError`."""
    start, end = marked or (0, 0)
    if not 0 <= start <= end <= count:
        raise UserError(f"marked=({start}, {end}) must be a range [start, end) within the answer's {count} tokens")
    return start, end


def _spans(tokens: Sequence[ScoredToken], scale: float) -> list[str]:
    focus = ' tabindex="0"' if len(tokens) <= FOCUSABLE_TOKENS else ""
    spans, total = [], 0.0
    for token in tokens:
        reward = float(token.reward)
        total += reward if math.isfinite(reward) else 0.0
        name = escape(_GLYPHS.sub(_plain_glyph, visible_text(token.text)), quote=True)
        tip = f"“{name}” · reward {format_reward(reward)} · sum so far {format_reward(total)}"
        spans.append(
            f'<span{_color_class(reward, scale)} title="{tip}"{focus}>{_shown(token.text) or _faint("∅")}</span>'
        )
    return spans


def _color_class(reward: float, scale: float) -> str:
    level = reward_level(reward, scale)
    if level == 0:
        return ""
    name = "na" if level is None else f"{'p' if level > 0 else 'n'}{abs(level)}"
    return f' class="{name}"'


def _shown(text: str) -> str:
    return _GLYPHS.sub(_html_glyph, escape(visible_text(text), quote=True))


def _faint(glyph: str) -> str:
    return f'<i aria-hidden="true">{glyph}</i>'


def _plain_glyph(match: re.Match[str]) -> str:
    return {"\n": "↵", "\r\n": "↵", "\r": "␍", "\t": "⇥"}.get(match[0], match[0])


def _html_glyph(match: re.Match[str]) -> str:
    after = {"\n": "\n", "\r\n": "\n", "\t": "\t"}.get(match[0], "")
    return _faint(_plain_glyph(match)) + after


def _legend(tokens: Sequence[ScoredToken], scale: float, marked: bool) -> str:
    rewards = [float(token.reward) for token in tokens]
    finite = [reward for reward in rewards if math.isfinite(reward)]
    limit = format_reward(scale).lstrip("+")
    count = f"{len(tokens):,} token{'' if len(tokens) == 1 else 's'}"
    bar = f"colour scale from minus {limit} (orange) over zero to plus {limit} (blue)"
    bar = f'<span class="irl-bar" role="img" aria-label="{bar}"></span>'
    facts = [f'<span class="irl-scale">reward −{limit} {bar} +{limit}</span>', f"<span>{count}</span>"]
    if finite:
        total = sum(finite)
        facts.append(f"<span>sum {format_reward(total)}</span><span>mean {format_reward(total / len(finite))}</span>")
    if marked:
        facts.append("<span><mark>marked span</mark></span>")
    if len(finite) < len(rewards):
        facts.append(f'<span><span class="na">n/a</span> {len(rewards) - len(finite):,} without a finite reward</span>')
    return f'<div class="irl-legend">{"".join(facts)}</div>'
