r"""Plants one error in each right answer: a digit, a word or a token; says where, in characters."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from ..errors import UserError

KINDS = ("digit", "word", "token")

_NUMBER = re.compile(r"(?<![\w.,])(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?!\w)", re.ASCII)
_MARK = re.compile(r"<<[^<>=]*=([^<>=]+)>>")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE_END = frozenset(".!?:;\n")


@dataclass(frozen=True)
class Planted:
    """An answer with one error in it.

    Attributes:
        wrong: the answer's text with the error.
        start: where the error begins in `wrong`, in characters.
        end: where it ends; `wrong[start:end]` is the planted text.
        original: what stood there.
        token_ids: ids of `wrong`, of planted tokens only: to be scored as they are, since its text may be cut into
            other tokens. Without EOS.
    """

    wrong: str
    start: int
    end: int
    original: str
    token_ids: tuple[int, ...] | None = None

    @property
    def planted(self) -> str:
        """The planted text."""
        return self.wrong[self.start : self.end]


def plant_errors(
    completions: Sequence[str],
    kind: str = "digit",
    *,
    seed: int = 0,
    tokenizer: Any = None,
    prompts: Sequence[Any] | None = None,
    progress: bool = False,
) -> list[Planted | None]:
    r"""One error in each answer, and nothing else changed; None where there is no room for one.

    - `digit`: one digit of one number becomes another (no new leading zero). If an answer has calculator marks,
      `3*4=<<3*4=12>>12`, it is a digit of a result between `=` and `>>`, and the repetition behind it stays right.
    - `word`: one word becomes another word of the answers that stands at the same place of a sentence (first, last,
      between) with the same capitals, about as often (within a factor of two, or as close as there is).
    - `token`: one token becomes another that follows the same token in the answers, drawn as often as it does there;
      failing that, one about as frequent. Special tokens and parts of characters are left alone.

    Args:
        completions: right answers; they are also the corpus that words and tokens are taken from.
        kind: one of `KINDS`.
        seed: each answer has its own stream, so that the first answers of a longer list get the same errors (digits;
            words and tokens depend on the corpus).
        tokenizer: for `token`.
        prompts: for `token`: texts or messages before the answers, as tokens may join across the border.
        progress: show a bar with the time left, on stderr.

    Raises:
        UserError: an unknown kind, or `token` without a tokenizer.

    Example:
        >>> [found] = plant_errors([" 3*4=<<3*4=7>>12"])
        >>> found.original, found.wrong[:found.start], found.wrong[found.end:]
        ('7', ' 3*4=<<3*4=', '>>12')
    """
    if isinstance(completions, str):
        raise UserError("completions is one string; give a list, [completion]")
    if kind not in KINDS:
        raise UserError(f"unknown kind of error {kind!r}; one of {', '.join(KINDS)}")
    plant: Callable[[int, random.Random], Planted | None]
    if kind == "digit":
        plant = lambda i, rng: _plant_digit(completions[i], rng)
    elif kind == "word":
        words = _Words(completions)
        plant = lambda i, rng: words.plant(completions[i], rng)
    else:
        if tokenizer is None:
            raise UserError("planting tokens needs the tokenizer: plant_errors(.., 'token', tokenizer=tokenizer)")
        tokens = _Tokens(completions, tokenizer, prompts)
        plant = tokens.plant
    rows = tqdm(range(len(completions)), desc="Planting", unit="answer", disable=not progress)
    return [plant(i, random.Random(f"{kind} {seed} {i}")) for i in rows]


def _plant_digit(text: str, rng: random.Random) -> Planted | None:
    inside = [mark.span(1) for mark in _MARK.finditer(text)]
    areas = inside or [(0, len(text))]
    numbers = [m for a, b in areas for m in _NUMBER.finditer(text, a, b)]
    if not numbers:
        return None
    number = rng.choice(numbers)
    places = [i for i in range(*number.span()) if text[i].isdigit()]
    place = rng.choice(places)
    leading = place == places[0] and len(places) > 1 and text[place + 1 : place + 2] != "."
    digit = rng.choice([d for d in "0123456789" if d != text[place] and not (leading and d == "0")])
    return Planted(text[:place] + digit + text[place + 1 :], place, place + 1, text[place])


class _Words:
    """The words of a corpus by place in the sentence, capitals and frequency."""

    def __init__(self, completions: Sequence[str]) -> None:
        self.counts = Counter(m.group() for text in completions for m in _WORD.finditer(text))
        seen: dict[tuple[str, str], set[str]] = defaultdict(set)
        for text in completions:
            for match in _WORD.finditer(text):
                seen[_place(text, match), _capitals(match.group())].add(match.group())
        self.classes: dict[tuple[str, str], dict[int, list[str]]] = {}
        for key, words in seen.items():
            levels: dict[int, list[str]] = defaultdict(list)
            for word in sorted(words):
                levels[self._level(word)].append(word)
            self.classes[key] = levels

    def _level(self, word: str) -> int:
        return self.counts[word].bit_length()  # 1; 2 and 3; 4 to 7; ...

    def plant(self, text: str, rng: random.Random) -> Planted | None:
        matches = list(_WORD.finditer(text))
        rng.shuffle(matches)
        for match in matches:
            candidates = self._like(match.group(), _place(text, match))
            if candidates:
                word, (start, end) = rng.choice(candidates), match.span()
                return Planted(text[:start] + word + text[end:], start, start + len(word), match.group())
        return None

    def _like(self, word: str, place: str) -> list[str]:
        """Words of the same class in the nearest level of frequency that has any."""
        levels = self.classes[place, _capitals(word)]
        for level in sorted(levels, key=lambda level: (abs(level - self._level(word)), level)):
            others = [other for other in levels[level] if other.lower() != word.lower()]
            if others:
                return others
        return []


def _place(text: str, match: re.Match[str]) -> str:
    before, after = text[: match.start()].rstrip(" "), text[match.end() :].lstrip(" ")
    if not before or before[-1] in _SENTENCE_END:
        return "first"
    return "last" if not after or after[0] in _SENTENCE_END else "between"


def _capitals(word: str) -> str:
    if word.isupper() and len(word) > 1:
        return "all"
    return "first" if word[0].isupper() else "none"


class _Tokens:
    """The tokens of a corpus, and which follow which."""

    def __init__(self, completions: Sequence[str], tokenizer: Any, prompts: Sequence[Any] | None) -> None:
        from ..scorers.text import encode_pair

        self.tokenizer = tokenizer
        if prompts is None:
            self.ids = [list(tokenizer(text=t, add_special_tokens=False)["input_ids"]) for t in completions]
        else:
            pairs = zip(prompts, completions, strict=True)
            self.ids = [encode_pair(tokenizer, p, c, add_eos=False).completion_ids for p, c in pairs]
        special = set(tokenizer.all_special_ids)
        self.counts = Counter(i for ids in self.ids for i in ids if i not in special)
        for token in [t for t in self.counts if not self._is_whole(t)]:
            del self.counts[token]
        self.after: dict[int | None, Counter[int]] = defaultdict(Counter)
        for ids in self.ids:
            for previous, token in zip([None, *ids], ids, strict=False):
                if token in self.counts:
                    self.after[previous][token] += 1
        self.levels: dict[int, list[int]] = defaultdict(list)
        for token in sorted(self.counts):
            self.levels[self.counts[token].bit_length()].append(token)

    def _is_whole(self, token: int) -> bool:
        text = self._decode([token])
        return bool(text) and "\ufffd" not in text

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def plant(self, index: int, rng: random.Random) -> Planted | None:
        ids = self.ids[index]
        places = [place for place, token in enumerate(ids) if token in self.counts]
        rng.shuffle(places)
        for place in places:
            others = self._like(ids[place - 1] if place else None, ids[place])
            while others:
                token = rng.choices(list(others), weights=list(others.values()))[0]
                found = self._replaced(ids, place, token)
                if found is not None:
                    return found
                del others[token]
        return None

    def _like(self, previous: int | None, token: int) -> dict[int, int]:
        followers = {other: count for other, count in sorted(self.after[previous].items()) if other != token}
        return followers or {t: 1 for t in self.levels[self.counts[token].bit_length()] if t != token}

    def _replaced(self, ids: list[int], place: int, token: int) -> Planted | None:
        """The answer with another token at `place`, unless its text stays the same or parts of characters meet."""
        from ..scorers.text import token_spans

        wrong = [*ids[:place], token, *ids[place + 1 :]]
        before, (after, spans) = self._decode(ids), token_spans(self.tokenizer, wrong)
        start, end = spans[place]
        if start == end or after == before or after.count("\ufffd") > before.count("\ufffd"):
            return None
        return Planted(after, start, end, before[start : len(before) - (len(after) - end)], tuple(wrong))
