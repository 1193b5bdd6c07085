"""Pairwise judging, the pure part: what a judge is asked, how its verdict is read, what the two orders say together.

Every pair of answers is asked about twice, with the answers in both orders. Its score is 1 if both verdicts are for the
run, 0 if both are for the run it is compared with, and 1/2 otherwise: a judge that decides by position ties everything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..errors import UserError

MARKS = ("[[A]]", "[[B]]", "[[C]]")
"""What the last line of a judge's answer says: the first answer is better, the second one, neither."""

CRITERIA = (
    "does it do what was asked, is what it says true, does it leave out nothing that matters, is it clear? "
    "Neither the order of the answers nor their length nor their layout is a merit."
)

TEMPLATE = """\
Two answers to one request are given below. Say which of them serves the person who made the request better.

What counts: {criteria}

<request>
{prompt}
</request>

{reference}<answer_a>
{answer_a}
</answer_a>

<answer_b>
{answer_b}
</answer_b>

First compare the two answers in a few sentences. Then end with one line that holds your decision and nothing else:
[[A]] if answer A is better, [[B]] if answer B is better, [[C]] if neither is.
"""

REFERENCE = """\
<reference_answer>
{reference}
</reference_answer>

"""

_PLACES = re.compile(r"\{(prompt|answer_a|answer_b|reference|criteria)\}")
_NEEDED = ("prompt", "answer_a", "answer_b")
_ORNAMENT = " \t*_`#>."

FIRST, SECOND, NEITHER = "A", "B", "C"


@dataclass(frozen=True)
class Prompting:
    """How a judge is asked.

    Attributes:
        template: text with `{prompt}`, `{answer_a}`, `{answer_b}`, and if wanted `{criteria}` and `{reference}` (a
            section with the reference answer; nothing where there is none). It must name the three marks.
        criteria: what counts.
        marks: what the last line says for the first answer, the second one, and neither.

    Raises:
        UserError: a place or a mark that the template lacks; marks that are empty or part of each other.
    """

    template: str = TEMPLATE
    criteria: str = CRITERIA
    marks: Sequence[str] = MARKS

    def __post_init__(self) -> None:
        marks = [mark.strip() for mark in self.marks]
        if len(marks) != 3 or not all(mark.strip(_ORNAMENT) for mark in marks):
            raise UserError("the judge's marks are three texts: first answer better, second answer better, neither")
        bare = [mark.strip(_ORNAMENT) for mark in marks]
        if any(a in b for i, a in enumerate(bare) for j, b in enumerate(bare) if i != j):
            raise UserError(f"the judge's marks {' '.join(marks)}: one is part of another; take others")
        places = set(_PLACES.findall(self.template))
        missing = [name for name in _NEEDED if name not in places]
        if missing:
            needed = "it needs {prompt}, {answer_a} and {answer_b}"
            raise UserError(f"the judge's template has no {{{missing[0]}}}; {needed}")
        unnamed = [mark for mark in marks if mark not in self.template]
        if unnamed:
            raise UserError(f"the judge's template never names {unnamed[0]}, so that no judge would answer it")
        object.__setattr__(self, "marks", tuple(marks))

    @property
    def shows_reference(self) -> bool:
        """Whether the template has a place for a reference answer."""
        return "reference" in _PLACES.findall(self.template)

    def messages(self, prompt: str, first: str, second: str, reference: str | None = None) -> list[dict[str, str]]:
        """The conversation to send: one user message.

        Texts are filled in once: braces in them stay as they are.

        >>> tiny = "{prompt}|{answer_a}|{answer_b}|[[A]][[B]][[C]]"
        >>> Prompting(tiny).messages("p", "{answer_b}", "b")[0]["content"]
        'p|{answer_b}|b|[[A]][[B]][[C]]'
        """
        section = REFERENCE.replace("{reference}", reference) if reference else ""
        texts = {"prompt": prompt, "answer_a": first, "answer_b": second}
        texts |= {"reference": section, "criteria": self.criteria}
        return [{"role": "user", "content": _PLACES.sub(lambda place: texts[place[1]], self.template)}]

    def verdict(self, text: str | None) -> str | None:
        """`A`, `B` or `C` (neither) from a judge's answer; None if it gives no verdict. See `parse_verdict`."""
        return parse_verdict(text, self.marks)


def parse_verdict(text: str | None, marks: Sequence[str] = MARKS) -> str | None:
    """The verdict of a judge's answer: `A` (the first answer), `B` (the second), `C` (neither), or None.

    The last line that is not blank must be a mark. Markdown's ornaments and a full stop around it are ignored, and a
    label that ends in a colon may precede it. A mark anywhere else, or two of them, is no verdict.

    >>> parse_verdict("A is wrong.\\n\\n**Decision: [[B]]**")
    'B'
    >>> parse_verdict("I would say [[A]] or [[B]]") is None
    True
    """
    lines = [line for line in (text or "").splitlines() if line.strip(_ORNAMENT)]
    if not lines:
        return None
    last = lines[-1].strip(_ORNAMENT)
    if sum(last.count(mark.strip(_ORNAMENT)) for mark in marks) != 1:
        return None
    for mark, verdict in zip(marks, (FIRST, SECOND, NEITHER), strict=True):
        bare = mark.strip(_ORNAMENT)
        label = last.removesuffix(bare).rstrip(_ORNAMENT)
        if last.endswith(bare) and (not label or label.endswith(":")):
            return verdict
    return None


class Pair(NamedTuple):
    """Two answers to one prompt.

    Attributes:
        prompt: what was asked, as text.
        answers: of the run, and of the run it is compared with.
        reference: a reference answer for the judge to see, if there is one.
        number: of the prompt, from 0.
        seed: which pair of files the answers are from, from 0.
        sample: which of the prompt's answers, from 0.
    """

    prompt: str
    answers: tuple[str, str]
    reference: str | None = None
    number: int = 0
    seed: int = 0
    sample: int = 0

    @property
    def identical(self) -> bool:
        """Equal texts are a tie that no judge is asked about."""
        return self.answers[0].strip() == self.answers[1].strip()

    def requests(self, prompting: Prompting, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What to send: the run's answer first, and then second; nothing for identical answers."""
        if self.identical:
            return []
        run, against = self.answers
        orders = ((run, against), (against, run))
        return [{**body, "messages": prompting.messages(self.prompt, *o, self.reference)} for o in orders]


@dataclass(frozen=True)
class Judged:
    """A pair with what the judge said.

    Attributes:
        pair: the two answers.
        verdicts: with the run's answer first, and second: `A`, `B`, `C`, or None if there is none.
        answered: whether the judge answered, in each order; an answer without a verdict is one too.
        texts: the judge's answers.
    """

    pair: Pair
    verdicts: tuple[str | None, str | None] = (None, None)
    answered: tuple[bool, bool] = (True, True)
    texts: tuple[str | None, str | None] = (None, None)

    @property
    def scores(self) -> tuple[float | None, float | None]:
        """Of the run, by each verdict: 1 better, 1/2 neither, 0 worse, None without one."""
        first, second = self.verdicts
        return (
            None if first is None else {FIRST: 1.0, SECOND: 0.0, NEITHER: 0.5}[first],
            None if second is None else {FIRST: 0.0, SECOND: 1.0, NEITHER: 0.5}[second],
        )

    @property
    def score(self) -> float | None:
        """1 won, 1/2 tied, 0 lost; None if one of the two verdicts is missing.

        >>> pair = Pair("p", ("a", "b"))
        >>> [Judged(pair, verdicts).score for verdicts in (("A", "B"), ("A", "A"), ("B", "A"), ("A", None))]
        [1.0, 0.5, 0.0, None]
        """
        if self.pair.identical:
            return 0.5
        first, second = self.scores
        if first is None or second is None:
            return None
        return first if first == second else 0.5


def judged(pair: Pair, texts: Sequence[str | None], answered: Sequence[bool], prompting: Prompting) -> Judged:
    """A pair with the judge's answers, read."""
    result = Judged(pair)
    if not texts:  # identical answers
        return result
    one, two = texts
    verdicts = (prompting.verdict(one), prompting.verdict(two))
    return replace(result, verdicts=verdicts, answered=(answered[0], answered[1]), texts=(one, two))


def as_text(prompt: Any) -> str:
    """A prompt as text; of a conversation, every message under its role.

    >>> as_text([{"role": "user", "content": "Hi"}])
    'Hi'
    >>> as_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    'system: Be brief.\\n\\nuser: Hi'
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return _content(prompt[0])
    return "\n\n".join(f"{message.get('role', 'user')}: {_content(message)}" for message in prompt)


def _content(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may be a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or "") for part in content)
    return content or ""
