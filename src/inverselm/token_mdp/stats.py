"""The few numbers per token that every objective, reward and credit rule is a function of."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenStats:
    """What a language model says of each action, read as a soft Q-function. All tensors are (B, T), aligned to tokens.

    Logits are soft Q-values: Q(s,a) = logit, V(s) = logsumexp_a Q(s,a), pi = softmax(Q), so log pi = Q - V
    (arXiv 2409.01369, sec. 3). Where `action_mask` is False every float is exactly 0.

    Attributes:
        action_logit: Q(s_t, a_t), in nats.
        value: V(s_t), the soft value of the state in which the action was taken.
        next_value: V of the next state in which the policy acts; 0 after termination, bootstrapped after truncation.
        action_mask: True on actions.
        document_ids: the document (episode) of each token; -1 on padding. Returns never cross documents.
        entropy: H(pi(.|s_t)) in nats, if asked for.
        greedy: True where the action is the model's argmax, if asked for.
    """

    action_logit: Float[Tensor, "B T"]
    value: Float[Tensor, "B T"]
    next_value: Float[Tensor, "B T"]
    action_mask: Bool[Tensor, "B T"]
    document_ids: Int[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None = None
    greedy: Bool[Tensor, "B T"] | None = None

    @property
    def log_prob(self) -> Float[Tensor, "B T"]:
        """log pi(a_t|s_t) = Q(s_t,a_t) - V(s_t); 0 off the actions."""
        return self.action_logit - self.value

    @property
    def num_actions(self) -> Int[Tensor, ""]:
        """Number of actions, as a 0-d tensor."""
        return self.action_mask.sum()

    def rows(self, part: slice) -> TokenStats:
        """Some of the rows."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[part] for k, v in tensors.items() if isinstance(v, Tensor)})

    def detach(self) -> TokenStats:
        """The same numbers outside the graph."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.detach() for k, v in tensors.items() if isinstance(v, Tensor)})


def masked_sum(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Sum of `values` over `mask`; garbage (inf, nan) off the mask is not read, and an empty mask keeps the graph."""
    return torch.where(mask, values, 0.0).sum()


def masked_mean(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Mean of `values` over `mask`; 0 for an empty mask."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)
