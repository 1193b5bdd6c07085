"""Token rewards for verl: a tensor (B, response_length) from its batches, and a reward manager for its reward loop.

Written against verl 0.9.1; nothing of it is imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..scorers import QFunctionReward, TokenReward, TokenScorer

KINDS = ("log_ratio", "bellman", "log_prob")


class _Rows(NamedTuple):
    """A batch as rows of ids, and where the responses' tokens stand in its columns."""

    prompts: list[list[int]]
    responses: list[list[int]]
    columns: list[Tensor]
    masks: list[list[int]] | None


def token_level_rewards(scorer: TokenScorer, data: Any, *, batch_size: int = 16) -> Float[Tensor, "B R"]:
    """The reward of every response token of a verl batch, nats, float32, 0 at padding and at a tool's tokens.

    Args:
        scorer: of token rewards.
        data: a `DataProto`, or anything with `.batch`: `prompts` (B, P), `responses` (B, R), `attention_mask`
            (B, P + R), padded on either side, and, if it is there, `response_mask` (B, R), 1 where the policy chose the
            token. `prompt_len` and `response_len` in `.non_tensor_batch` (verl's agent loop) stand in for the mask:
            prompts and responses are then padded on the right.
        batch_size: rows per forward pass.

    Returns:
        On the device of the responses. A response of no token is a row of zeros.

    Raises:
        UserError: tensors are missing, or a prompt has no token.

    Example:
        >>> rewards = token_level_rewards(TokenReward.from_checkpoints("runs/sft"), data)
    """
    rows = _rows(data)
    responses = data.batch["responses"]
    out = torch.zeros(responses.shape, dtype=torch.float32, device=responses.device)
    chosen = [i for i, ids in enumerate(rows.responses) if ids]
    if any(not rows.prompts[i] for i in chosen):
        raise UserError("a prompt of the batch has no token: check attention_mask")
    masks = None if rows.masks is None else [rows.masks[i] for i in chosen]
    prompts, ids = [rows.prompts[i] for i in chosen], [rows.responses[i] for i in chosen]
    for i, scores in zip(chosen, scorer.score_ids(prompts, ids, masks, batch_size=batch_size), strict=True):
        out[i, rows.columns[i]] = scores.rewards.to(out.device)
    return out


class TokenRewardManager:
    """A reward function over whole batches, as verl's trainers up to the reward loop call it: `manager(data)`.

    Args:
        scorer: of token rewards.
        batch_size: rows per forward pass.

    Example:
        >>> reward_fn = TokenRewardManager(TokenReward.from_checkpoints("runs/sft"))
        >>> reward_fn(data, return_dict=True)["reward_tensor"]  # (B, response_length)
    """

    def __init__(self, scorer: TokenScorer, *, batch_size: int = 16) -> None:
        self.scorer, self.batch_size = scorer, batch_size

    def __call__(self, data: Any, return_dict: bool = False) -> Any:
        """The (B, R) tensor, or a dict with it as `reward_tensor` and the sums as `reward_extra_info`."""
        rewards = token_level_rewards(self.scorer, data, batch_size=self.batch_size)
        if not return_dict:
            return rewards
        return {"reward_tensor": rewards, "reward_extra_info": {"token_reward_sum": rewards.sum(dim=1).tolist()}}


class TokenRewardLoopManager:
    """A reward manager of verl's reward loop (0.9): a model of its own in every reward worker.

    What it loads stands in `reward.reward_kwargs`: `sft` (folder), `baseline` (default: the one in the folder), `kind`
    ("log_ratio", "bellman", "log_prob"), `gamma`, `device` ("cpu"), `dtype`, and `level`: "sequence" (default) gives
    one number per answer, the sum; "token" gives all of them. verl puts the numbers of "token" in their places only
    where it scores a batch after the rollout (`RewardLoopManager.compute_rm_score`, through `assemble_rm_scores`);
    while it samples, it takes one number per answer.

    Raises:
        UserError: no `sft`, or an unknown `kind` or `level`.

    Example:
        reward.reward_manager.source=importlib reward.reward_manager.name=TokenRewardLoopManager
        reward.reward_manager.module.path=pkg://inverselm.integrations.verl +reward.reward_kwargs.sft=runs/sft
    """

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **kwargs: Any) -> None:
        options = dict(config.reward.get("reward_kwargs") or {})
        self.level = options.pop("level", "sequence")
        if self.level not in ("sequence", "token"):
            raise UserError(f"reward.reward_kwargs.level is {self.level!r}; set it to 'sequence' or 'token'")
        self.config, self.tokenizer = config, tokenizer
        self.scorer = _load(options)
        self._lock = Lock()  # a worker scores its rows as concurrent tasks

    async def run_single(self, data: Any) -> dict[str, Any]:
        """`reward_score` of the last row of `data`: a float, or a list of one float per response token."""
        score = await asyncio.get_running_loop().run_in_executor(None, self._score, data)
        total = float(sum(score))
        info = {"token_reward_sum": total, "token_reward_mean": total / max(1, len(score))}
        return {"reward_score": score if self.level == "token" else total, "reward_extra_info": info}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: list[Any]) -> Float[Tensor, "B R"]:
        """The `rm_scores` of a batch: lists at the tokens they belong to, a single number at the last token."""
        rows, responses = _rows(data), data.batch["responses"]
        out = torch.zeros(responses.shape, dtype=torch.float32, device=responses.device)
        for i, (columns, score) in enumerate(zip(rows.columns, scores, strict=True)):
            if isinstance(score, (list, tuple)):
                out[i, columns] = torch.tensor(score, dtype=torch.float32, device=out.device)
            elif len(columns):
                out[i, columns[-1]] = score
        return out

    def _score(self, data: Any) -> list[float]:
        rows = _rows(data)
        prompt, response, mask = rows.prompts[-1], rows.responses[-1], rows.masks and [rows.masks[-1]]
        if not response:
            return []
        if not prompt:
            raise UserError("the prompt has no token: check attention_mask")
        with self._lock:
            return self.scorer.score_ids([prompt], [response], mask)[0].rewards.tolist()


def _load(options: Mapping[str, Any]) -> TokenScorer:
    given = dict(options)
    sft, kind = given.pop("sft", None), given.pop("kind", "log_ratio")
    if not sft:
        raise UserError("no model: set reward.reward_kwargs.sft to the folder of the SFT run")
    if kind not in KINDS:
        raise UserError(f"reward.reward_kwargs.kind is {kind!r}; choose {', '.join(KINDS)}")
    loading: dict[str, Any] = {"device": given.pop("device", "cpu"), "dtype": given.pop("dtype", "auto")}
    make: Callable[..., TokenScorer]
    if kind == "log_ratio":
        baseline = given.pop("baseline", None)
        make = lambda: TokenReward.from_checkpoints(sft, baseline, **loading)
    else:
        gamma = float(given.pop("gamma", 1.0))
        make = lambda: QFunctionReward.from_checkpoint(sft, kind=kind, gamma=gamma, **loading)
    if given:
        raise UserError(f"reward.reward_kwargs.{next(iter(given))} has no part in kind {kind!r}; drop it")
    return make()


def _rows(data: Any) -> _Rows:
    """Prompts and responses without padding, whatever side it is on."""
    batch, other = data.batch, getattr(data, "non_tensor_batch", None) or {}
    missing = [name for name in ("prompts", "responses") if name not in batch.keys()]  # noqa: SIM118 (TensorDict)
    if missing:
        raise UserError(f"the batch has no {missing[0]!r}")
    prompts, responses = batch["prompts"], batch["responses"]
    if "prompt_len" in other and "response_len" in other:
        there = [
            _first(width, tensor)
            for width, tensor in ((other["prompt_len"], prompts), (other["response_len"], responses))
        ]
    elif "attention_mask" in batch.keys():  # noqa: SIM118
        mask = batch["attention_mask"].bool()
        there = [mask[:, : prompts.shape[1]], mask[:, prompts.shape[1] :]]
    else:
        raise UserError("the batch has no 'attention_mask'")
    asked = [row[keep].tolist() for row, keep in zip(prompts, there[0], strict=True)]
    given = [row[keep].tolist() for row, keep in zip(responses, there[1], strict=True)]
    columns = [keep.nonzero()[:, 0] for keep in there[1]]
    masks = None
    if "response_mask" in batch.keys():  # noqa: SIM118
        masks = [row[keep].long().tolist() for row, keep in zip(batch["response_mask"], there[1], strict=True)]
    return _Rows(asked, given, columns, masks)


def _first(lengths: Any, tensor: Tensor) -> Tensor:
    """A mask (B, width), true in the first columns of each row."""
    counts = torch.tensor([int(length) for length in lengths], device=tensor.device)
    return torch.arange(tensor.shape[1], device=tensor.device) < counts[:, None]
