"""Probe numbers in the place of logits: what a model does to its logits, read off what becomes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tiles import HeadSpec

_PROBES = (2.0**-10, 1.0, -2.0, 30.0, -40.0, 1e3, -1e6, 1e6)
_TOLERANCE = 1e-5


def probe_rows(vocab: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(rows, vocab): each column meets each probe, so that what is done to any column shows; one row without ties."""
    columns = torch.arange(vocab, device=device)
    values = torch.tensor(_PROBES, dtype=dtype, device=device)
    rows = [values[(columns + shift) % len(_PROBES)] for shift in range(len(_PROBES))]
    return torch.stack([*rows, torch.linspace(-4.0, 4.0, vocab, dtype=dtype, device=device)])


def read_probes(logits: Any, probes: Tensor) -> HeadSpec | None:
    """Scale and cap from what became of the probes, and of their gradients; None if it was anything else."""
    if not isinstance(logits, Tensor) or logits.shape != probes.shape:
        return None
    answers, given = logits.detach(), probes.detach()
    scale, cap = answers.flatten()[0] / _PROBES[0], answers.amax()
    tanh = (given * (scale / cap)).tanh()
    plain, capped = _close(answers, given * scale), _close(answers, tanh * cap)
    if probes.requires_grad:
        upstream = given.flip(-1)
        slope = _gradient(logits, probes, upstream)
        if slope is None:
            return None
        full = upstream * scale
        plain = plain & _close(slope, full)
        capped = capped & _close(slope, full * (1 - tanh * tanh), relative_to=full)
    numbers = torch.stack([scale, cap, plain, capped]).tolist()
    if not 0.0 < numbers[0] < float("inf") or not (numbers[2] or numbers[3]):
        return None
    return HeadSpec(scale=numbers[0], softcap=None if numbers[2] else numbers[1])


def _close(found: Tensor, expected: Tensor, relative_to: Tensor | None = None) -> Tensor:
    size = expected if relative_to is None else relative_to
    return ((found - expected).abs() <= _TOLERANCE * size.abs()).all()


def _gradient(logits: Tensor, probes: Tensor, upstream: Tensor) -> Tensor | None:
    """The gradient that reaches the probes; None if none does, or if any reaches something else (a learnt scale)."""
    if not _leads_only_to(probes, logits):
        return None
    try:
        return torch.autograd.grad(logits, probes, upstream)[0]
    except RuntimeError:
        return None


def _leads_only_to(leaf: Tensor, result: Tensor) -> bool:
    """Whether gradients of `result` reach the leaf and no other: a learnt scale would lose its own."""
    nodes: list[Any] = [result.grad_fn]
    met: set[Any] = set()
    leaves: list[Any] = []
    while nodes and len(met) < 1000:
        node = nodes.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        nodes += [following for following, _ in node.next_functions]
    return not nodes and len(leaves) == 1 and leaves[0] is leaf
