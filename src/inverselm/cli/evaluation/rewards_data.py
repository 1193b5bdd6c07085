"""The data of `inverselm rewards`: scored answers, preference pairs, and answers with planted errors, as token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from ...errors import UserError
from .rewards_models import Pair
from .rewards_scores import score_reader, text_of


class Coder:
    """Rows to ids, as the models read them.

    Args:
        tokenizer: of the models.
        config: of the SFT model: causal or encoder-decoder, and how many positions it has.
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        from ...inputs.models import positions_of
        from ...scorers.seq2seq import position_limits

        self.tokenizer, self.encoder_decoder = tokenizer, bool(config.is_encoder_decoder)
        self.limits = position_limits(config) if self.encoder_decoder else (positions_of(config), None)

    def encode(self, prompt: Any, completion: Any, ends: bool = True) -> Pair:
        """A row's ids; a completion of ids is kept as it is."""
        from ...scorers.seq2seq import encode_seq2seq_pair
        from ...scorers.text import encode_pair

        encode = encode_seq2seq_pair if self.encoder_decoder else encode_pair
        pair = encode(self.tokenizer, prompt, completion, ends)
        return Pair(tuple(pair.prompt_ids), tuple(pair.completion_ids))

    def sampled(self, row: dict[str, Any]) -> Pair:
        """The ids that were sampled, where the row has them and they say what its text says; else the text's."""
        ids, text = row.get("token_ids"), row["completion"]
        if ids and isinstance(text, str) and max(ids) < len(self.tokenizer):
            said = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if said == text:
                return self.encode(row["prompt"], list(ids))
        return self.encode(row["prompt"], text, row.get("finished", True) is not False)

    def fits(self, pair: Pair) -> bool:
        """Whether the models have positions for it."""
        first, second = (float("inf") if limit is None else limit for limit in self.limits)
        if self.encoder_decoder:  # the decoder's start token has a position too
            return len(pair.prompt_ids) <= first and len(pair.ids) < second
        return len(pair.prompt_ids) + len(pair.ids) <= first


MANY = 1000
"""Demonstrations that take long enough for a progress bar."""


@dataclass
class Part:
    """Answers of one kind.

    Attributes:
        kind: "answers" (with scores), "pairs" (chosen and rejected) or "planted".
        name: of the data.
        pairs: the answers as ids.
        prompts: what answers belong together.
        scores: of "answers" and "pairs" (1 chosen, 0 rejected).
        groups: of "pairs": the row of each answer.
        planted: of "planted": which tokens were planted.
        records: of "planted": prompt, completion, wrong, span.
        score: where the scores come from, in words.
    """

    kind: str
    name: str
    pairs: list[Pair] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    planted: list[list[bool]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    score: str = ""


def read_answers(args: Any, coder: Coder) -> Part:
    """`--dataset_name`: answers with scores, or preference pairs.

    Raises:
        UserError: missing columns, unusable rows, scores that are not numbers.
    """
    from ...inputs.data import check_demonstrations, load_rows

    name = args.dataset_name
    rows = load_rows(name, split=args.dataset_split)
    if isinstance(rows[0].get("metrics"), dict):  # as `inverselm evaluate` writes them
        rows = rows.map(lambda row: {k: v for k, v in row["metrics"].items() if k not in row})
    if {"chosen", "rejected"} <= set(rows.column_names):
        return _preferences(rows, name, coder)
    sampled = "finished" in rows.column_names  # by `inverselm generate`: an answer may be EOS alone
    found = check_demonstrations(rows, name, need="answers", allow_empty=sampled)
    _check_kind(name, found, coder)
    source, score_of = score_reader(rows, args)
    part = Part("answers", name, score=source)
    rejects = _Rejects(name, coder)
    for number, row in enumerate(rows, 1):
        where = row.get("__line__") or f"{name}: row {number}"
        pair = coder.sampled(row)
        if rejects.fits(pair):
            part.pairs.append(pair)
            part.prompts.append(_key(row["prompt"]))
            part.scores.append(score_of(row, where))
    rejects.report()
    if len(set(part.scores)) == 1:
        raise UserError(f"{name}: all scores ({source}) are {part.scores[0]:g}: there is nothing to rank")
    return part


def _preferences(rows: Any, name: str, coder: Coder) -> Part:
    from ...inputs.data import check_demonstrations

    if "prompt" not in rows.column_names:
        raise UserError(f"{name}: 'chosen' and 'rejected' need their 'prompt' in a column of its own")
    for column in ("chosen", "rejected"):
        kept = [n for n in ("prompt", column, "__line__") if n in rows.column_names]
        try:
            found = check_demonstrations(
                rows.select_columns(kept).rename_column(column, "completion"), name, need="answers"
            )
        except UserError as error:
            raise UserError(str(error).replace("'completion'", f"'{column}'")) from error
        _check_kind(name, found, coder)
    part = Part("pairs", name, score="chosen before rejected")
    rejects = _Rejects(name, coder)
    for number, row in enumerate(rows):
        both = [coder.encode(row["prompt"], row[column]) for column in ("chosen", "rejected")]
        fits = [rejects.fits(pair) for pair in both]
        if all(fits):
            part.pairs += both
            part.prompts += [_key(row["prompt"])] * 2
            part.scores += [1.0, 0.0]
            part.groups += [number] * 2
    rejects.report()
    return part


def read_demonstrations(args: Any, coder: Coder) -> Part:
    """`--demonstrations`: right answers in which errors are planted, or rows that bring `wrong` and `span`.

    Raises:
        UserError: missing columns, unusable rows or spans, no answer with room for an error.
    """
    from ...evaluation.planting import Planted, plant_errors
    from ...inputs.data import check_demonstrations, load_rows

    name = args.demonstrations
    rows = load_rows(name, split=args.demonstrations_split)
    found = check_demonstrations(rows, name, need="answers")
    _check_kind(name, found, coder)
    prompts, texts = list(rows["prompt"]), [text_of(c) for c in rows["completion"]]
    planted: Sequence[Planted | None]
    if {"wrong", "span"} & set(rows.column_names):
        if args.plant is not None:
            raise UserError(f"{name}: brings its own errors ('wrong' and 'span'); leave --plant out")
        planted = [_given(row, row.get("__line__") or f"{name}: row {i}") for i, row in enumerate(rows, 1)]
    else:
        kind = args.plant or "digit"
        before = None if coder.encoder_decoder else prompts
        long = len(texts) >= MANY
        planted = plant_errors(texts, kind, seed=args.seed, tokenizer=coder.tokenizer, prompts=before, progress=long)
        missing = sum(p is None for p in planted)
        if missing == len(planted):
            other = "word" if kind == "digit" else "digit"
            raise UserError(f"{name}: no answer has room for a wrong {kind}; try --plant {other}")
        if missing:
            print(f"{missing:,} of {len(planted):,} demonstrations have no {kind} to change: left out.")
    part = Part("planted", name, score="given" if args.plant is None and "wrong" in rows.column_names else "")
    rejects, unclear = _Rejects(name, coder), 0
    answers = zip(prompts, texts, rows["completion"], planted, strict=True)
    bar = tqdm(answers, total=len(texts), desc="Tokenizing", unit="answer", disable=len(texts) < MANY)
    for prompt, right, completion, error in bar:
        if error is None:
            continue
        pair, labels = _planted_ids(coder, prompt, completion, error)
        if not any(labels) or all(labels):
            unclear += 1
        elif rejects.fits(pair):
            part.pairs.append(pair)
            part.prompts.append(_key(prompt))
            part.planted.append(labels)
            record = {"prompt": prompt, "completion": right, "wrong": error.wrong, "span": [error.start, error.end]}
            part.records.append(record)
    if unclear:
        print(f"{unclear:,} answers are left out: the error cannot be told from the other tokens.")
    rejects.report()
    if not part.pairs:
        raise UserError(f"{name}: no answer with a planted error is left")
    return part


def _planted_ids(coder: Coder, prompt: Any, completion: Any, error: Any) -> tuple[Pair, list[bool]]:
    """The wrong answer's ids, EOS included, and which of them were planted."""
    from ...evaluation.localisation import planted_tokens
    from ...scorers.text import token_spans

    right = coder.encode(prompt, completion)
    if error.token_ids is not None:
        pair = Pair(right.prompt_ids, (*error.token_ids, *right.ids[len(error.token_ids) :]))
    else:
        pair = coder.encode(prompt, _with_text(completion, error.wrong))
    text, spans = token_spans(coder.tokenizer, list(pair.ids))
    shift = _shift(text, error.wrong)
    if shift is None:
        return pair, [False] * len(pair.ids)
    labels = planted_tokens(spans, error.start + shift, error.end + shift, ids=pair.ids, right_ids=right.ids)
    return pair, labels


def _shift(text: str, wrong: str) -> int | None:
    """How far the answer begins into the text of its tokens (a template, or a tokenizer that drops a space)."""
    bare = wrong.lstrip(" ")
    place = text.find(wrong)
    if place >= 0:
        return place
    place = text.find(bare)
    return None if place < 0 else place - (len(wrong) - len(bare))


def _given(row: dict[str, Any], where: str) -> Any:
    """The user's own error."""
    from ...evaluation.planting import Planted

    wrong, span, right = row.get("wrong"), row.get("span"), text_of(row["completion"])
    if not isinstance(wrong, str) or not wrong.strip():
        raise UserError(f"{where}: 'wrong' is not text; give the answer with the error in it")
    if wrong == right:
        raise UserError(f"{where}: 'wrong' is the same as 'completion'")
    if isinstance(span, str):  # of a CSV file
        try:
            span = json.loads(span)
        except ValueError:
            span = None
    good = isinstance(span, list) and len(span) == 2 and all(type(x) is int for x in span)
    if not good or not 0 <= span[0] < span[1] <= len(wrong):
        raise UserError(f"{where}: 'span' must be [start, end], characters of 'wrong' with 0 <= start < end")
    return Planted(wrong, span[0], span[1], "")


def _check_kind(name: str, found: str, coder: Coder) -> None:
    from ..common import check_chat_template

    if found == "messages":
        raise UserError(f"{name}: needs 'prompt' and 'completion'; split 'messages': the last one is the completion")
    check_chat_template(coder.tokenizer, found, name)


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def _with_text(completion: Any, text: str) -> Any:
    return text if isinstance(completion, str) else [*completion[:-1], {**completion[-1], "content": text}]


class _Rejects:
    """Counts answers without a token, or with more than the model has positions."""

    def __init__(self, name: str, coder: Coder) -> None:
        self.name, self.coder, self.total, self.empty, self.longer = name, coder, 0, 0, 0

    def fits(self, pair: Pair) -> bool:
        self.total += 1
        empty = not pair.ids or not pair.prompt_ids
        longer = not empty and not self.coder.fits(pair)
        self.empty, self.longer = self.empty + empty, self.longer + longer
        return not (empty or longer)

    def report(self) -> None:
        if self.empty + self.longer == self.total:
            raise UserError(f"{self.name}: every answer is empty, or longer than the model has positions")
        for count, why in ((self.longer, "longer than the model has positions"), (self.empty, "without a token")):
            if count:
                print(f"{count:,} of {self.total:,} answers ({count / self.total:.1%}) are left out: {why}.")
