"""Guided decoding: the policy that goes beyond an SFT model, away from its baseline, without any training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from ..errors import UserError
from ..scorers.frozen import FrozenLM, _evaluating, _with_adapter, is_encoder_decoder, load_frozen


class GuidedDecodingProcessor(LogitsProcessor):
    """Decoding from pi ~ pi_SFT^(1+w) / pi_base^w at every token: logits (1 + w) l_SFT - w l_base.

    `model.generate` runs the SFT model; this processor runs the baseline beside it, with keys and values of its own,
    which follow when beam search moves rows. It is the optimum of Dense-Path REINFORCE with myopic credit and
    beta = 1/w (our derivation; see `inverselm.tabular.myopic_optimum`), so it is the control that such training must
    beat, and a sweep over w a cheap way to choose beta. w = 0 returns the scores untouched and does not run the
    baseline; w = -1 is the baseline itself. Temperature and top-p, which transformers applies later, act on the guided
    policy; processors that stand before it (penalties, minimum lengths) act on the SFT model's scores alone.

    One processor serves one call of `generate`: it belongs to that call's prompts.

    Args:
        baseline: the earlier checkpoint: a folder, a model, a FrozenLM, or (PeftModel, adapter name), which may be an
            adapter of the very model that generates.
        weight: w, at least -1.
        input_ids: (B, P) the prompts as given to `generate`; of an encoder-decoder, the encoder's tokens.
        attention_mask: (B, P) 0 on padding, as given to `generate`; nothing is padding if None.

    Raises:
        UserError: a weight that is not a number of at least -1. While generating: prompts of another call, another
            vocabulary than the SFT model's, or a baseline without a cache of keys and values.

    Example:
        >>> batch = tokenizer(["2+2="], return_tensors="pt")
        >>> guided = GuidedDecodingProcessor("runs/sft/baseline", 0.5, **batch)
        >>> model.generate(**batch, do_sample=True, top_k=0, logits_processor=[guided])
    """

    supports_continuous_batching = False

    def __init__(
        self,
        baseline: Any,
        weight: float,
        input_ids: Int[Tensor, "B P"],
        attention_mask: Tensor | None = None,
    ) -> None:
        check_weight(weight)
        self.weight = float(weight)
        self._baseline = _Runner(
            load_frozen(baseline, name="baseline", device=input_ids.device), input_ids, attention_mask
        )

    def __call__(self, input_ids: Int[Tensor, "N L"], scores: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Log-probabilities of the guided policy (normalised, as beam search adds them up); `scores` if w = 0."""
        if self.weight == 0.0:
            return scores
        logits = self._baseline.next_logits(input_ids).to(scores.device)
        if logits.shape != scores.shape:
            raise UserError(
                f"The baseline has a vocabulary of {logits.size(-1):,} tokens, the SFT model one of "
                f"{scores.size(-1):,}; use checkpoints of one run."
            )
        exact = torch.promote_types(scores.dtype, torch.float32)
        sft = scores.to(exact).log_softmax(dim=-1)
        guided = sft + self.weight * (sft - logits.to(exact).log_softmax(dim=-1))
        # what a processor before this one has forbidden stays so, also where w = -1 makes it 0 * inf
        return guided.masked_fill(sft.isneginf(), -math.inf).log_softmax(dim=-1).to(scores.dtype)


def check_weight(weight: float, name: str = "weight") -> None:
    """w of guided decoding and of weight extrapolation.

    Raises:
        UserError: not finite, or below -1.
    """
    if not math.isfinite(weight) or weight < -1.0:
        raise UserError(
            f"{name} is {weight}; set it above 0 (beyond the SFT model), or between 0 and -1 (back to the baseline)"
        )


class _Runner:
    """The baseline's logits of the next token, for rows that grow by a token or change places."""

    def __init__(self, frozen: FrozenLM, prompts: Tensor, mask: Tensor | None) -> None:
        self.frozen = frozen
        self.prompts = prompts
        self.mask = torch.ones_like(prompts) if mask is None else mask.long()
        if self.mask.shape != prompts.shape:
            raise UserError(f"attention_mask is {tuple(self.mask.shape)}, input_ids {tuple(prompts.shape)}.")
        self.encoder_decoder = is_encoder_decoder(frozen.model)
        self._accepts = set(inspect.signature(_base(frozen.model).forward).parameters)
        self._encoded: Tensor | None = None
        self._seen: Tensor | None = None  # (N, L): what the cache holds
        self._cache: Any = None

    def next_logits(self, input_ids: Tensor) -> Tensor:
        """(N, V) of the token after each row of `input_ids` (N, L), N a multiple of the number of prompts."""
        repeats, rest = divmod(input_ids.size(0), self.prompts.size(0))
        if rest or not repeats:
            raise UserError(
                f"{input_ids.size(0)} rows for {self.prompts.size(0)} prompts: make one GuidedDecodingProcessor for "
                "each call of generate, with that call's input_ids."
            )
        source = self._sources(input_ids, repeats)
        if source is None:
            self._check_prompts(input_ids, repeats)
            self._cache, new = None, input_ids
        else:
            assert self._seen is not None
            if not torch.equal(source, torch.arange(len(source), device=source.device)):
                self._cache.reorder_cache(source.to(self.frozen.device))
            new = input_ids[:, self._seen.size(1) :]
        logits = self._forward(new, input_ids, repeats)
        self._seen = input_ids.clone()
        return logits

    def _sources(self, input_ids: Tensor, repeats: int) -> Tensor | None:
        """(N,) the row of the cache that each row continues; None if there is none: all is computed anew."""
        if self._seen is None or self._seen.size(0) != input_ids.size(0) or self._seen.size(1) >= input_ids.size(1):
            return None
        rows = torch.arange(input_ids.size(0), device=input_ids.device)
        begun = input_ids[:, : self._seen.size(1)]
        if torch.equal(begun, self._seen):
            return rows
        now, before = (x.view(-1, repeats, x.size(1)) for x in (begun, self._seen))
        same = (now[:, :, None] == before[:, None]).all(dim=-1)  # beams move only among those of their prompt
        if not bool(same.any(dim=-1).all()):
            return None
        first = torch.arange(same.size(0), device=input_ids.device)[:, None] * repeats
        return (first + same.long().argmax(dim=-1)).flatten()

    def _check_prompts(self, input_ids: Tensor, repeats: int) -> None:
        if self.encoder_decoder:
            return
        width = self.prompts.size(1)
        expected = self.prompts.to(input_ids.device).repeat_interleave(repeats, dim=0)
        if input_ids.size(1) < width or not torch.equal(input_ids[:, :width], expected):
            raise UserError(
                "The rows do not begin with the prompts of this GuidedDecodingProcessor: make one for each call of "
                "generate, with that call's input_ids."
            )

    def _forward(self, new: Tensor, input_ids: Tensor, repeats: int) -> Tensor:
        device = self.frozen.device
        mask = self.mask.to(device).repeat_interleave(repeats, dim=0)
        inputs: dict[str, Any] = {"past_key_values": self._cache, "use_cache": True}
        with torch.no_grad(), _frozen(self.frozen):
            if self.encoder_decoder:
                inputs |= self._encoder_inputs(repeats) | {"attention_mask": mask, "decoder_input_ids": new.to(device)}
            else:
                written = mask.new_ones(mask.size(0), input_ids.size(1) - mask.size(1))
                mask = torch.cat([mask, written], dim=1)
                inputs |= {"input_ids": new.to(device), "attention_mask": mask}
                if "position_ids" in self._accepts:
                    inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new.size(1) :]
                if "logits_to_keep" in self._accepts:
                    inputs["logits_to_keep"] = 1
            output = self.frozen.model(**inputs)
        self._cache = output.get("past_key_values")
        if self._cache is None:
            raise UserError("The baseline keeps no cache of keys and values; guided decoding does not know its kind.")
        return output.logits[:, -1]

    def _encoder_inputs(self, repeats: int) -> dict[str, Any]:
        from transformers.modeling_outputs import BaseModelOutput

        device = self.frozen.device
        if self._encoded is None:
            encoder = self.frozen.model.get_encoder()
            read = encoder(input_ids=self.prompts.to(device), attention_mask=self.mask.to(device))
            self._encoded = read.last_hidden_state
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=self._encoded.repeat_interleave(repeats, dim=0))}


@contextmanager
def _frozen(frozen: FrozenLM) -> Iterator[None]:
    """In evaluation mode, with its adapter; as cheap as can be, for every token passes here."""
    quiet = _evaluating(frozen.model) if frozen.model.training else nullcontext()
    with quiet, _with_adapter(frozen.model, frozen.adapter):
        yield


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
