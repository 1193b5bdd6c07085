"""The token MDP once more, in plain Python: one document at a time, unpadded, float64.

Written from the definitions only, to be compared with the batched code: nothing here imports it except the batch class
that `lay_out` fills.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inverselm.token_mdp import TokenBatch

EOS = 2
PAD = 0


@dataclass
class Document:
    """One trajectory: tokens, which of them the policy chose, and a row of logits after each token."""

    ids: list[int]
    actions: list[bool]
    logits: list[list[float]]


@dataclass
class Step:
    """One action of a document; `column` and `next_column` count from the document's first token."""

    column: int
    next_column: int | None
    q: float
    v: float
    next_v: float
    entropy: float
    greedy: bool

    @property
    def log_prob(self) -> float:
        return self.q - self.v


def logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(x - top) for x in values))


def steps(document: Document, eos: Sequence[int] = (EOS,), temperature: float = 1.0) -> list[Step]:
    """Q, V and V(next) of each action, straight from the definition."""
    rows = [[x / temperature for x in row] for row in document.logits]
    chosen = [t for t in range(1, len(document.ids)) if document.actions[t]]
    result = []
    for k, t in enumerate(chosen):
        v = logsumexp(rows[t - 1])
        probabilities = [math.exp(x - v) for x in rows[t - 1]]
        if k + 1 < len(chosen):
            next_column: int | None = chosen[k + 1] - 1
        elif document.ids[t] in eos:
            next_column = None
        else:
            next_column = len(document.ids) - 1
        result.append(
            Step(
                column=t,
                next_column=next_column,
                q=rows[t - 1][document.ids[t]],
                v=v,
                next_v=0.0 if next_column is None else logsumexp(rows[next_column]),
                entropy=-sum(p * math.log(p) for p in probabilities if p > 0),
                greedy=max(range(len(rows[t - 1])), key=rows[t - 1].__getitem__) == document.ids[t],
            )
        )
    return result


def random_documents(seed: int, count: int, vocab_size: int = 7, max_length: int = 9) -> list[Document]:
    """Random lengths, turns and EOS tokens (also where the user speaks, also none); the pad id occurs as a token."""
    rng = random.Random(seed)
    documents = []
    for _ in range(count):
        length = rng.randint(1, max_length)
        ids = [rng.choice([EOS, *range(vocab_size)]) for _ in range(length)]
        actions, policy_speaks = [], rng.random() < 0.5
        for _ in range(length):
            if rng.random() < 0.4:
                policy_speaks = not policy_speaks
            actions.append(policy_speaks)
        logits = [[rng.gauss(0, 2) for _ in range(vocab_size)] for _ in range(length)]
        documents.append(Document(ids, actions, logits))
    return documents


def example_documents(seed: int = 0, vocab_size: int = 5) -> list[Document]:
    """Two turns that end in EOS, and one answer that was cut off: small enough for finite differences."""
    rng = random.Random(seed)
    draw = lambda n: [[rng.gauss(0, 1) for _ in range(vocab_size)] for _ in range(n)]
    return [
        Document([3, 4, EOS, 3, 1, EOS], [False, True, True, False, True, True], draw(6)),
        Document([3, 1, 4], [False, True, True], draw(3)),
    ]


def lay_out(
    documents: Sequence[Document],
    how: str = "right",
    *,
    extra: int = 0,
    pad: int = PAD,
    eos: Sequence[int] = (EOS,),
    dtype: torch.dtype = torch.float64,
    garbage: float = 30.0,
) -> tuple[TokenBatch, torch.Tensor, list[tuple[int, int]]]:
    """The documents as a batch padded on the "right" or "left" (by `extra` columns more than needed), or "packed".

    Returns the batch, its (B, T, V) logits with `garbage` on padding, and (row, first column) of each document.
    """
    vocab_size = len(documents[0].logits[0])
    lengths = [len(d.ids) for d in documents]
    if how == "packed":
        rows, width = 1, sum(lengths)
        places = [(0, sum(lengths[:i])) for i in range(len(documents))]
    else:
        rows, width = len(documents), max(lengths) + extra
        places = [(i, width - n if how == "left" else 0) for i, n in enumerate(lengths)]
    ids = torch.full((rows, width), pad)
    actions = torch.zeros(rows, width, dtype=torch.bool)
    real = torch.zeros(rows, width, dtype=torch.long)
    positions = torch.zeros(rows, width, dtype=torch.long)
    logits = torch.full((rows, width, vocab_size), garbage, dtype=dtype)
    for document, (row, start), n in zip(documents, places, lengths, strict=True):
        ids[row, start : start + n] = torch.tensor(document.ids)
        actions[row, start : start + n] = torch.tensor(document.actions)
        real[row, start : start + n] = 1
        positions[row, start : start + n] = torch.arange(n)
        logits[row, start : start + n] = torch.tensor(document.logits, dtype=dtype)
    if how == "packed":
        batch = TokenBatch.build(ids, actions, eos_token_ids=eos, position_ids=positions)
    else:
        batch = TokenBatch.build(ids, actions, eos_token_ids=eos, attention_mask=real)
    return batch, logits, places


def place(
    values: Sequence[Sequence[float]], documents: Sequence[Document], batch: TokenBatch, places: list
) -> torch.Tensor:
    """Numbers per action of each document -> a (B, T) tensor, 0 elsewhere."""
    result = torch.zeros(batch.input_ids.shape, dtype=torch.float64)
    for numbers, document, (row, start) in zip(values, documents, places, strict=True):
        for number, step in zip(numbers, steps(document), strict=True):
            result[row, start + step.column] = number
    return result


def naive_returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """sum_{k >= t} gamma^(k-t) r_k, as it is written."""
    return [sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]


LAYOUTS = ["right", "left", "packed"]
