"""The dense reward of an SFT run: log pi_SFT - log pi_baseline, per token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..token_mdp import TokenBatch, centre, clip, floor_log_ratio, log_ratio, mix_baselines
from .base import TokenScorer
from .checks import check_different_checkpoints, check_same_tokenizer, check_tokenizer_has_eos
from .frozen import FrozenLM, adapter_base, is_encoder_decoder, load_frozen, load_model
from .markers import find_baseline


class TokenReward(TokenScorer):
    """r_t = log pi_SFT(a_t|s_t) - log pi_baseline(a_t|s_t) in nats (arXiv 2510.02493, eq. 5).

    The baseline is an earlier checkpoint of the same SFT run. Options beyond the paper are off by default.

    Args:
        tokenizer: shared by all models.
        sft: the SFT model.
        baselines: one or more earlier checkpoints.
        mix: how several baselines become one, "log" or "probability" (see `mix_baselines`).
        floor_alpha: bound the reward below by log(1 - alpha) (see `floor_log_ratio`); 1 is off.
        clip_range: (low, high) in nats, either None.
        centred: subtract KL(pi_SFT || pi_baseline)(s_t), the reward's expectation under the SFT model (one baseline).

    Raises:
        UserError: no baseline, or a bad combination.

    Example:
        >>> reward = TokenReward.from_checkpoints("runs/sft")       # finds its baseline by itself
        >>> reward.score(["2+2="], ["5"])[0].rewards
    """

    def __init__(
        self,
        tokenizer: Any,
        sft: FrozenLM,
        baselines: Sequence[FrozenLM],
        *,
        mix: str = "log",
        floor_alpha: float = 1.0,
        clip_range: tuple[float | None, float | None] = (None, None),
        centred: bool = False,
    ) -> None:
        super().__init__(tokenizer, sft.model)
        self.shares_prompts = not is_encoder_decoder(sft.model)
        if not baselines:
            raise UserError("TokenReward needs at least one baseline.")
        if centred and len(baselines) > 1:
            raise UserError("centred is defined for one baseline; give one, or leave it off.")
        self.sft, self.baselines = sft, list(baselines)
        self.mix, self.floor_alpha, self.clip_range, self.centred = mix, floor_alpha, clip_range, centred

    @classmethod
    def from_checkpoints(
        cls,
        sft: Any,
        baseline: Any = None,
        *,
        tokenizer: Any = None,
        device: Any = None,
        dtype: Any = "auto",
        trust_remote_code: bool = False,
        **options: Any,
    ) -> TokenReward:
        """From checkpoint folders or hub names (full models or adapters), loaded models, or (PeftModel, adapter) pairs.

        Args:
            sft: the SFT model.
            baseline: an earlier checkpoint, or a list of them; None finds the one `inverselm sft` kept in the folder.
            tokenizer: None loads it from `sft`.
            device: None takes the GPU if there is one (folders only; loaded models stay where they are).
            dtype: of loaded folders, as in transformers.
            trust_remote_code: run a checkpoint's own Python code.
            options: of the constructor.

        Raises:
            UserError: no baseline to be found, the same checkpoint twice, tokenizers that differ, nothing that loads.
        """
        if baseline is None:
            if not isinstance(sft, (str, Path)):
                raise UserError("Name the baseline: only an SFT folder can find its own.")
            baseline = find_baseline(sft)
        sources = list(baseline) if isinstance(baseline, list) else [baseline]
        tokenizer = _checked_tokenizer(sft, sources, tokenizer, trust_remote_code)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        loading = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        if all(isinstance(s, (str, Path)) and adapter_base(s) for s in [sft, *sources]):
            models = load_adapters([sft, *sources], **loading)
        else:
            models = [load_frozen(s, name=n, **loading) for s, n in zip([sft, *sources], _names(sources), strict=True)]
        return cls(tokenizer, models[0], models[1:], **options)

    @classmethod
    def from_frozen(
        cls,
        sft: Any,
        baselines: Sequence[Any],
        frozen: Sequence[FrozenLM],
        *,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> TokenReward:
        """From models that are in memory already, first the SFT model's, checked by the folders they came from."""
        return cls(_checked_tokenizer(sft, baselines, None, trust_remote_code), frozen[0], frozen[1:], **options)

    @property
    def device(self) -> torch.device:
        return self.sft.device

    def score_with_reference(self, batch: TokenBatch) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        outputs = self.sft.read(batch)
        sft = outputs.stats().log_prob
        log_probs, expected = [], None
        for frozen in self.baselines:
            other = frozen.read(batch)
            log_probs.append(other.stats().log_prob)
            if self.centred:
                expected = outputs.kl(other)
        rewards = log_ratio(sft, mix_baselines(log_probs, self.mix), batch.action_mask)
        rewards = torch.where(batch.action_mask, floor_log_ratio(rewards, self.floor_alpha), 0.0)
        if expected is not None:
            rewards = centre(rewards, expected)
        return clip(rewards, *self.clip_range), sft


def _checked_tokenizer(sft: Any, baselines: Sequence[Any], tokenizer: Any, trust_remote_code: bool) -> Any:
    """The tokenizer all models share, after refusing equal checkpoints and tokenizers that differ."""
    tokenizer = tokenizer if tokenizer is not None else _load_tokenizer(sft, trust_remote_code)
    check_tokenizer_has_eos(tokenizer, str(sft) if isinstance(sft, (str, Path)) else "the SFT model")
    for source in baselines:
        if isinstance(source, (str, Path)) and isinstance(sft, (str, Path)):
            check_different_checkpoints(sft, source)
            other = _load_tokenizer(source, trust_remote_code, default=tokenizer)
            check_same_tokenizer(tokenizer, other, str(sft), str(source))
    return tokenizer


def load_adapters(
    folders: Sequence[Any], *, device: Any = None, dtype: Any = "auto", trust_remote_code: bool = False
) -> list[FrozenLM]:
    """Adapters of one base, in memory once: a FrozenLM for each folder.

    Raises:
        UserError: the adapters name different bases.
    """
    bases = {adapter_base(folder) for folder in folders}
    if len(bases) != 1:
        raise UserError(f"These adapters belong to different base models: {sorted(map(str, bases))}.")
    model: Any = load_model(folders[0], dtype=dtype, trust_remote_code=trust_remote_code)
    names = ["default", *_names(folders[1:])[1:]]
    for folder, name in zip(folders[1:], names[1:], strict=True):
        model.load_adapter(str(folder), adapter_name=name)
    model.requires_grad_(False)
    model = model if device is None else model.to(device)
    return [FrozenLM(model, name, str(folder)) for name, folder in zip(names, folders, strict=True)]


def _names(baselines: Sequence[Any]) -> list[str]:
    return ["sft", *(f"sft_baseline{i or ''}" for i in range(len(baselines)))]


def _load_tokenizer(source: Any, trust_remote_code: bool, default: Any = None) -> Any:
    from transformers import AutoTokenizer

    if not isinstance(source, (str, Path)):
        raise UserError("Pass tokenizer=...: a loaded model does not bring one.")
    try:
        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if default is not None:
            return default
        raise UserError(f"No tokenizer found in {source}; pass tokenizer=... or save one there.") from error
