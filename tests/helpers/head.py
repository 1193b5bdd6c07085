"""Problems for the soft-Q head: hidden states, an output layer and a batch; and the same numbers from full logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from helpers.mdp import Document, lay_out, random_documents
from inverselm.objectives import Loss, entropy_regularised_mle, iqlearn, mle, policy_gradient
from inverselm.token_mdp import HeadSpec, TokenBatch, TokenStats, head_loss, head_stats, stats_from_logits

NUMBERS = ("action_logit", "value", "next_value", "entropy")


@dataclass(frozen=True)
class Problem:
    """What a head is called with."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    batch: TokenBatch

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]

    def to(self, dtype: torch.dtype) -> Problem:
        """A copy in another dtype, with leaves that want gradients."""
        moved = [None if x is None else x.detach().to(dtype, copy=True) for x in (self.hidden, self.weight, self.bias)]
        return Problem(*(None if x is None else x.requires_grad_() for x in moved), self.batch)


def mixed_batch(layout: str = "right", seed: int = 0, vocab_size: int = 7) -> TokenBatch:
    """Turns with gaps, EOS tokens, truncated answers, documents of one token, and one without any action."""
    documents = random_documents(seed, count=5, vocab_size=vocab_size)
    documents.insert(2, Document([3, 4, 5], [False] * 3, [[0.0] * vocab_size] * 3))
    documents.append(Document([3, 4, 5, 6, 3, 4, 5, 6], [False] + [True] * 7, [[0.0] * vocab_size] * 8))
    return lay_out(documents, layout, extra=seed % 3)[0]


def problem(batch: TokenBatch, vocab_size: int = 7, *, features: int = 5, bias: bool = False, seed: int = 0) -> Problem:
    """Random hidden states and weights in float64, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    hidden, weight = draw(*batch.input_ids.shape, features), draw(vocab_size, features)
    return Problem(hidden, weight, draw(vocab_size) if bias else None, batch).to(torch.float64)


torch.float64 = torch.float64
CASES = {  # vocabulary size, with a bias, spec
    "plain": (7, False, HeadSpec(dtype=torch.float64)),
    "tile of 1": (7, True, HeadSpec(dtype=torch.float64, tile=1)),
    "capped tile of 1": (7, False, HeadSpec(dtype=torch.float64, tile=1, softcap=2.0)),
    "tile does not divide": (11, False, HeadSpec(dtype=torch.float64, tile=4)),
    "tile divides": (12, True, HeadSpec(dtype=torch.float64, tile=4)),
    "scale and temperature": (11, True, HeadSpec(dtype=torch.float64, tile=4, scale=0.3, temperature=0.7)),
    "capped": (11, True, HeadSpec(dtype=torch.float64, tile=4, scale=1.7, softcap=2.0, temperature=1.6)),
}
SIZES = (1, 2, 3, None)


def per_token(p, seed=1):
    """Advantages and log-probs like those of other policies."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(p.batch.input_ids.shape, generator=generator, dtype=torch.float64)
    return {"advantages": draw(), "old_log_prob": -draw().abs(), "ref_log_prob": -draw().abs()}


OBJECTIVES = {  # objective, entropy
    "mle": (mle, "none"),
    "iqlearn": (partial(iqlearn, td_coef=0.3, gamma=0.9), "log"),
    "entropy": (partial(entropy_regularised_mle, entropy_coef=0.2), "grad"),
    "policy gradient": (partial(policy_gradient, clip_range=0.3, kl_coef=0.1), "log"),
}


def make_case(case, layout="right", seed=0):
    vocab, bias, spec = CASES[case]
    return problem(mixed_batch(layout, seed), vocab, bias=bias, seed=seed), spec


def dense_logits(p: Problem, spec: HeadSpec | None = None, product: torch.dtype | None = None) -> Tensor:
    """(B, T, V) logits with the product in a dtype, as a model computes them; the temperature is left to the stats."""
    spec, hidden, weight = spec or HeadSpec(), p.hidden, p.weight
    z = hidden @ weight.T if product is None else hidden.to(product) @ weight.to(product).T
    z = z if z.dtype == torch.float64 else z.float()
    z = (z if p.bias is None else z + p.bias) * spec.scale
    return spec.softcap * torch.tanh(z / spec.softcap) if spec.softcap else z


def dense_stats(p: Problem, spec: HeadSpec | None = None, product: torch.dtype | None = None) -> TokenStats:
    """The reference: full logits."""
    temperature = 1.0 if spec is None else spec.temperature
    return stats_from_logits(
        dense_logits(p, spec, product), p.batch, entropy=True, greedy=True, temperature=temperature
    )


def plain(p: Problem, spec: HeadSpec, **kwargs: object) -> TokenStats:
    return head_stats(p.hidden, p.weight, p.batch, bias=p.bias, spec=spec, **{"entropy": True, **kwargs})


def fused(p: Problem, spec: HeadSpec, objective: Callable[..., Loss], **kwargs: object) -> tuple[Loss, TokenStats]:
    return head_loss(p.hidden, p.weight, p.batch, objective, bias=p.bias, spec=spec, **kwargs)


def gradients(loss: Tensor, p: Problem, factor: float = 1.0) -> list[Tensor]:
    """d(factor loss), over factor again: what a gradient scaler makes of it."""
    found = torch.autograd.grad(loss * factor if factor != 1.0 else loss, p.leaves)
    return [g.double() / factor for g in found]


def assert_same_stats(got: TokenStats, expected: TokenStats, tolerance: float = 1e-9) -> None:
    for name in NUMBERS:
        left, right = getattr(got, name), getattr(expected, name)
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")
    for name in ("greedy", "action_mask", "document_ids"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name


def assert_same_gradients(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-9) -> None:
    for name, left, right in zip(("hidden", "weight", "bias"), got, expected, strict=False):
        torch.testing.assert_close(
            left, right, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"gradient of {name}: {m}"
        )
    assert len(got) == len(expected)


def with_nan_padding(p: Problem) -> Problem:
    """The same problem with hidden states of padding that must not be read."""
    padding = ~p.batch.attention_mask
    return replace(p, hidden=p.hidden.detach().masked_fill(padding[..., None], torch.nan).requires_grad_())


REGIMES = ("spread", "small", "uniform", "peaked", "unlikely", "shifted", "massive", "constant")


def realistic(regime: str, *, vocab_size: int = 5000, features: int = 64, rows: int = 3, columns: int = 32) -> Problem:
    """Logits of the kinds that models have, in float64.

    spread: up to about 50. small: up to about 15. uniform: within .5 of 0. peaked: the action has all but about 1e-4.
    unlikely: actions drawn without regard to the logits. shifted: all logits around -36, by a direction that all
    weights share (as GPT-2's are). massive: all around -60, by one hidden feature of -200. constant: the same, and the
    weights of that feature do not differ. Actions are otherwise drawn from the policy.
    """
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    weight, hidden = draw(vocab_size, features) / features**0.5, draw(rows, columns, features)
    ids = torch.randint(3, vocab_size, (rows, columns), generator=generator)
    if regime == "peaked":
        own = weight[ids.roll(-1, 1)]
        hidden = 0.3 * hidden + 21.0 * own / own.square().sum(dim=-1, keepdim=True)
    else:
        hidden = hidden * {"spread": 10.0, "small": 3.0, "uniform": 0.1, "unlikely": 5.0}.get(regime, 4.0)
    if regime == "shifted":
        direction = torch.nn.functional.normalize(draw(features), dim=0)
        weight, hidden = weight + 3 * direction, hidden - 12 * direction
    if regime in ("massive", "constant"):
        weight[:, 7] = 0.3 + (0.02 * weight[:, 7] if regime == "massive" else 0.0)
        hidden[..., 7] = 3 * hidden[..., 7] - 200
    if regime not in ("peaked", "unlikely"):
        probabilities = (hidden @ weight.T).softmax(dim=-1).flatten(0, 1)
        ids[:, 1:] = torch.multinomial(probabilities, 1, generator=generator).view(rows, columns)[:, :-1]
    actions = torch.ones_like(ids)
    actions[:, :4] = 0
    return Problem(hidden, weight, None, TokenBatch.build(ids, actions, eos_token_ids=[2]))
