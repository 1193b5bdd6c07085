"""Several answers to one prompt: the prompt is read once, and its keys and values serve all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..token_mdp import Projection, TokenBatch, project, run_with_head

_WORTH = 0.8
"""Prompts are shared if that leaves at most this part of the tokens to compute, padding counted."""


class CannotShareError(Exception):
    """The model keeps no keys and values that several answers could continue from."""


@dataclass(frozen=True)
class Prefixes:
    """Prompts without their last token, which several rows of a batch continue.

    Attributes:
        input_ids: (P, W) left-padded token ids of the distinct prompts.
        attention_mask: (P, W) True on real tokens.
        row: (B,) which prefix each row of the batch continues.
    """

    input_ids: Tensor
    attention_mask: Tensor
    row: Tensor

    def project(self, model: nn.Module, batch: TokenBatch) -> Projection:
        """`project` for a batch whose rows are a prompt's last token and an answer.

        Raises:
            CannotShareError: the model's cache is not a plain one of keys and values.
            SoftHeadError: the output layer is none that the soft-Q head can stand in for.
        """
        mask = self.attention_mask.long()
        outputs, _ = run_with_head(
            model,
            lambda head: (head.hidden,),
            input_ids=self.input_ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=True,
        )
        cache = outputs.get("past_key_values")
        if not _is_plain(cache):
            raise CannotShareError
        cache.batch_select_indices(self.row)
        mask = mask[self.row]
        return project(
            model,
            batch,
            past_key_values=cache,
            use_cache=True,
            attention_mask=torch.cat([mask, batch.attention_mask.long()], dim=1),
            position_ids=mask.sum(dim=1, keepdim=True) + batch.position_ids,
        )


def _is_plain(cache: Any) -> bool:
    """One layer of all keys and values for each of the model's layers: no windows, no recurrent states."""
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", None)
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@dataclass(frozen=True)
class PrefixedBatch(TokenBatch):
    """Rows of a prompt's last token and an answer; what stands before is in `prefixes`."""

    prefixes: Prefixes | None = None


def prefixed(
    batch: TokenBatch, prompt_ids: Sequence[Sequence[int]], *, pad_token_id: int, device: torch.device
) -> PrefixedBatch:
    """A batch of last prompt tokens with answers, and the distinct prompts they continue."""
    place: dict[tuple[int, ...], int] = {}
    row = [place.setdefault(tuple(ids[:-1]), len(place)) for ids in prompt_ids]
    width = max(map(len, place))
    ids = torch.full((len(place), width), pad_token_id)
    real = torch.zeros(len(place), width, dtype=torch.bool)
    for i, prefix in enumerate(place):
        ids[i, width - len(prefix) :] = torch.tensor(prefix)
        real[i, width - len(prefix) :] = True
    tensors = {f.name: getattr(batch, f.name) for f in fields(TokenBatch)}
    return PrefixedBatch(
        **tensors, prefixes=Prefixes(ids.to(device), real.to(device), torch.tensor(row, device=device))
    )


def plan(
    prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], batch_size: int, *, share: bool
) -> tuple[list[list[int]], bool]:
    """Row indices in batches of like length, and whether rows of a batch share prompts: what computes fewer tokens.

    The longest come first, which shows at once whether memory suffices.
    """
    p, c = list(map(len, prompt_ids)), list(map(len, completion_ids))
    alone = _cut(sorted(range(len(p)), key=lambda i: -p[i] - c[i]), batch_size)
    if not share or any(length < 2 for length in p):
        return alone, False
    prompts = [tuple(ids) for ids in prompt_ids]
    longest: dict[tuple[int, ...], int] = {}
    for prompt, length in zip(prompts, c, strict=True):
        longest[prompt] = max(longest.get(prompt, 0), length)
    together = _cut(sorted(range(len(p)), key=lambda i: (-longest[prompts[i]], prompts[i], -c[i])), batch_size)
    tokens = sum(len(rows) * max(p[i] + c[i] for i in rows) for rows in alone)
    shared = sum(
        len(rows) * (1 + max(c[i] for i in rows)) + len({prompts[i] for i in rows}) * max(p[i] for i in rows)
        for rows in together
    )
    return (together, True) if shared <= _WORTH * tokens else (alone, False)


def _cut(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
