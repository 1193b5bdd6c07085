"""Rewards of a single model: its soft Bellman residual, or log pi alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..token_mdp import TokenBatch, bellman_residual
from .base import TokenScorer
from .frozen import FrozenLM, is_encoder_decoder, load_frozen

KINDS = ("bellman", "log_prob")


class QFunctionReward(TokenScorer):
    """The reward a model's logits are soft-optimal for, or the same up to shaping.

    "bellman": r_t = Q(s_t,a_t) - gamma V(s_{t+1}) (arXiv 2409.01369, eq. 8-9), for IQLearn's models, whose V means
    something. "log_prob": r_t = log pi(a_t|s_t), equal up to potential-based shaping; the control for every reward.

    Raises:
        UserError: unknown kind.

    Example:
        >>> QFunctionReward.from_checkpoint("runs/iqlearn").score(["2+2="], ["4"])[0].total
    """

    def __init__(self, tokenizer: Any, model: FrozenLM, *, kind: str = "bellman", gamma: float = 1.0) -> None:
        super().__init__(tokenizer, model.model)
        self.shares_prompts = not is_encoder_decoder(model.model)
        if kind not in KINDS:
            raise UserError(f"The reward of a single model is one of {KINDS}, not {kind!r}.")
        self.model, self.kind, self.gamma = model, kind, gamma

    @classmethod
    def from_checkpoint(
        cls,
        model: Any,
        *,
        tokenizer: Any = None,
        device: Any = None,
        dtype: Any = "auto",
        trust_remote_code: bool = False,
        **options: Any,
    ) -> QFunctionReward:
        """From a checkpoint folder, a hub name or a loaded model (then with its tokenizer)."""
        from .token_reward import _load_tokenizer

        if isinstance(model, (str, Path)) and device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = tokenizer if tokenizer is not None else _load_tokenizer(model, trust_remote_code)
        frozen = load_frozen(model, name="model", device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        return cls(tokenizer, frozen, **options)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def score_with_reference(self, batch: TokenBatch) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        stats = self.model.read(batch).stats()
        rewards = bellman_residual(stats, self.gamma) if self.kind == "bellman" else stats.log_prob
        return rewards, stats.log_prob
