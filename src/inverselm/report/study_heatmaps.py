"""Token heatmaps of a study: a few test answers of the reference under its dense reward and an IQLearn model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inverselm.errors import UserError

from .heatmap import ScoredToken, shared_scale, token_heatmap
from .study_words import number

if TYPE_CHECKING:
    from ..study.answers import Answers
    from ..study.contents import Study


@dataclass(frozen=True)
class Heatmap:
    """One answer under one reward."""

    reward: str
    title: str
    prompt: str
    tokens: Sequence[ScoredToken]
    caption: str = ""


def choose_answers(records: Sequence[Mapping[str, Any]], metric: str, count: int) -> list[Mapping[str, Any]]:
    """`count` first answers to different prompts, evenly from the lowest to the highest by a metric.

    >>> rows = [{"sample": 0, "token_ids": [1], "metrics": {"wer": w}} for w in (0.0, 1.0, 0.5)]
    >>> [row["metrics"]["wer"] for row in choose_answers(rows, "wer", 2)]
    [0.0, 1.0]
    """
    first = [record for record in records if record["sample"] == 0 and record["token_ids"]]
    first.sort(key=lambda record: float(record["metrics"].get(metric, 0.0)))
    if count >= len(first):
        return first
    places = [round(n * (len(first) - 1) / max(1, count - 1)) for n in range(count)]
    return [first[place] for place in places]


def study_heatmaps(study: Study, answers: Answers, count: int) -> tuple[list[list[Heatmap]], str]:
    """Heatmaps of the largest size with a whole reference, and a note on what could not be scored.

    Loads models: the reference with its baseline, and the first seed's IQLearn model that is best on validation data.

    Returns:
        ([[Heatmap, ..] per answer], note); the note is empty if nothing is missing.
    """
    size = next((size for size in reversed(study.sizes) if study.seeds_of(size)), None)
    if size is None:
        return [], "there are no answers of the reference yet"
    seed = study.seeds_of(size)[0]
    folder = study.cells[size, study.reference, seed].folder / "model"
    if not _has_model(folder):
        return [], "the reference's model is not there any more"
    sampler = "greedy" if "greedy" in study.samplers else study.samplers[0]
    chosen = choose_answers(answers.records(size, study.reference, seed, sampler), study.main, count)
    scorers, notes = _scorers(study, size, seed, folder)
    found: list[list[Heatmap]] = [[] for _ in chosen]
    for name, scorer in scorers.items():
        for place, tokens in enumerate(_score(scorer, chosen)):
            record = chosen[place]
            value = number(float(record["metrics"].get(study.main, float("nan"))))
            references = " | ".join(map(str, record.get("references") or ()))
            found[place].append(
                Heatmap(
                    name, f"{name}; {study.main} {value}", _text(record["prompt"]), tokens, f"Reference: {references}"
                )
            )
    return [row for row in found if row], "; ".join(notes)


def _scorers(study: Study, size: str, seed: int, folder: Any) -> tuple[dict[str, Any], list[str]]:
    from ..scorers import QFunctionReward, TokenReward
    from ..scorers.markers import read_marker

    found: dict[str, Any] = {}
    notes: list[str] = []
    label = study.methods[study.reference].label
    try:
        found[f"Dense reward of {label}"] = TokenReward.from_checkpoints(str(folder))
    except UserError as error:
        notes.append(f"no dense reward: {error}")
    iqlearn = _best_iqlearn(study, size, seed)
    if iqlearn is None:
        notes.append("no IQLearn model is there")
        return found, notes
    path = study.cells[size, iqlearn, seed].folder / "model"
    gamma = float(read_marker(path).get("gamma", 1.0))
    try:
        found[f"Q − γV′ of {study.methods[iqlearn].label}"] = QFunctionReward.from_checkpoint(str(path), gamma=gamma)
    except (UserError, OSError, ValueError) as error:
        notes.append(f"no Q − γV′ of {study.methods[iqlearn].label}: {error}")
    return found, notes


def _best_iqlearn(study: Study, size: str, seed: int) -> str | None:
    """The IQLearn model that is best on validation data, of those that are there."""
    from ..study.verdicts import best_pick

    names = [
        name
        for name, method in study.methods.items()
        if method.command == "iqlearn"
        and method.role == "method"
        and (size, name, seed) in study.cells
        and _has_model(study.cells[size, name, seed].folder / "model")
    ]
    pick = best_pick(study.valid_means(size), names, lower=study.lower_is_better)
    return None if pick is None else pick.method


def _has_model(folder: Any) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _score(scorer: Any, records: Sequence[Mapping[str, Any]]) -> list[list[ScoredToken]]:
    """The sampled ids as they are; nothing is tokenised again but the prompts."""
    from ..scorers.text import prompt_ids, token_spans

    prompts = [prompt_ids(scorer.tokenizer, record["prompt"]) for record in records]
    scores = scorer.score_ids(prompts, [record["token_ids"] for record in records])
    found = []
    for record, score in zip(records, scores, strict=True):
        text, spans = token_spans(scorer.tokenizer, record["token_ids"])
        rewards = score.rewards.tolist()
        found.append([ScoredToken(text[a:b], reward) for (a, b), reward in zip(spans, rewards, strict=True)])
    return found


def heatmap_fragments(answers: Sequence[Sequence[Heatmap]]) -> list[list[str]]:
    """HTML of every heatmap; one reward has one colour scale."""
    scales = reward_scales(answers)
    return [
        [
            token_heatmap(h.tokens, title=h.title, prompt=h.prompt, scale=scales[h.reward], caption=h.caption)
            for h in row
        ]
        for row in answers
    ]


def reward_scales(answers: Sequence[Sequence[Heatmap]]) -> dict[str, float]:
    """reward -> the value shown in full colour."""
    names = dict.fromkeys(heatmap.reward for row in answers for heatmap in row)
    return {name: shared_scale([h.tokens for row in answers for h in row if h.reward == name]) for name in names}


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{m.get('role')}: {m.get('content')}" for m in prompt)
