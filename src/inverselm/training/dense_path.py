"""Dense-Path REINFORCE on TRL's GRPOTrainer: its rollouts and loss, with token-level advantages of a frozen reward."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging
from trl import GRPOTrainer

from ..errors import UserError
from ..objectives import kl_in_reward, kl_penalty, normalised
from ..scorers import TokenScorer
from ..token_mdp import SoftHeadError, TokenBatch, add_to_last_action, advantages, standardise_per_position
from ..token_mdp.lm_head import output_layer
from ..token_mdp.of_models import token_stats_and_output
from .checkpoints import last_complete_checkpoint
from .dense_path_config import DensePathConfig
from .monitor import RunawayMonitor

logger = logging.get_logger(__name__)


class DensePathTrainer(GRPOTrainer):
    """GRPOTrainer whose (B, T) advantages come from token rewards of a frozen scorer (arXiv 2510.02493, DPR).

    maximise E_pi[sum_t r_t] - beta KL(pi || pi_SFT), from pi_SFT, without a critic. Rewards are computed on the sampled
    ids. TRL's logged `reward` is the accumulated token reward (before the KL), its logged advantage the mean over an
    answer's tokens. Beside TRL's metrics (length, entropy, `completions/clipped_ratio` = share of truncated answers) it
    logs `kl` (nats per token to the SFT model), `kl_sequence`, `reward_per_token` and `advantage_abs`.

    Args:
        model: the policy to train, usually a copy of the SFT model: a name, a model, or a PeftModel whose "default"
            adapter is the policy while the scorer reads other adapters of the same model.
        reward: the scorer; its reference log-probabilities are the KL's.
        args: options.
        train_dataset: TRL's prompt format; the SFT prompts, or held-out ones.
        reward_funcs: further rewards of whole answers in TRL's form (unit tests, format checks), paid at the last
            token with weight `args.reward_weights`.
        kwargs: of GRPOTrainer.

    Example:
        >>> reward = TokenReward.from_checkpoints("runs/sft")
        >>> DensePathTrainer("runs/sft", reward, args=DensePathConfig("runs/dpr"), train_dataset=prompts).train()
    """

    _tag_names = ["trl", "inverselm", "dense-path-reinforce"]  # noqa: RUF012  (TRL's class attribute)
    _name = "Dense-Path REINFORCE"
    _paper = {"title": "Beyond Imitation: Recovering Dense Rewards from Demonstrations", "id": "2510.02493"}  # noqa: RUF012

    def __init__(
        self,
        model: Any,
        reward: TokenScorer,
        args: DensePathConfig | None = None,
        train_dataset: Any = None,
        reward_funcs: Any = None,
        **kwargs: Any,
    ) -> None:
        args = DensePathConfig("dense-path") if args is None else copy.copy(args)
        if not isinstance(args, DensePathConfig):
            raise UserError(f"DensePathTrainer needs a DensePathConfig, not {type(args).__name__}.")
        if not isinstance(reward, TokenScorer):
            raise UserError("reward must be a scorer, e.g. TokenReward.from_checkpoints('runs/sft').")
        outside = (
            [] if reward_funcs is None else list(reward_funcs) if isinstance(reward_funcs, list) else [reward_funcs]
        )
        weights = args.reward_weights or [1.0] * len(outside)
        if len(weights) != len(outside):
            raise UserError(f"reward_weights has {len(weights)} entries for {len(outside)} reward_funcs.")
        args.reward_weights = [1.0, *weights]
        self.scorer = reward
        self.monitor = RunawayMonitor(args.warn_length_ratio, args.warn_kl)

        def dense_reward(**columns: Any) -> list[float]:
            return self._score_rollout()

        super().__init__(model, reward_funcs=[dense_reward, *outside], args=args, train_dataset=train_dataset, **kwargs)
        if self._is_vlm:
            raise UserError("DensePathTrainer handles text only.")

    # --- rollouts: score the sampled ids, then replace TRL's sequence-level advantages -------------------------------

    def _generate(self, prompts: list[Any]) -> Any:
        out = super()._generate(prompts)
        self._rollout = out[:3]  # prompt ids, completion ids, tool mask
        return out

    def _score_rollout(self) -> list[float]:
        """Score the rollout's ids; keeps the token rewards and returns their sums, which is what TRL logs."""
        prompts, completions, masks = self._rollout
        size = self.args.per_device_train_batch_size
        with self.accelerator.autocast():  # as the policy: at the start both are the same numbers
            self._scores = self.scorer.score_ids(prompts, completions, masks, batch_size=size)
        return [float(scores.rewards.sum()) for scores in self._scores]

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        self._rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        mask = output["completion_mask"].bool()
        if "tool_mask" in output:
            mask = mask & output["tool_mask"].bool()
        width = mask.size(1)
        rewards = _padded([s.rewards for s in self._scores], width, mask.device)
        rewards = torch.where(mask, rewards, 0.0)  # mask_truncated_completions leaves whole answers out
        reference = _padded([s.ref_log_prob for s in self._scores], width, mask.device)
        log_prob = self._rollout_log_prob(output)
        output["advantages"] = self._advantages(rewards, log_prob, reference, mask)
        if self.args.kl_in == "loss" and self.args.kl_coef:
            output["ref_per_token_logps"] = reference
        self._record(rewards, log_prob, reference, mask, output["advantages"])
        return output

    def _rollout_log_prob(self, output: dict[str, Any]) -> Tensor:
        """(n, C) log pi of the rollout under the policy that made it."""
        if "old_per_token_logps" in output:
            return output["old_per_token_logps"].float()
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        with torch.no_grad():
            log_prob, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                ids,
                attention,
                output["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
            )
        return log_prob.float()

    def _advantages(self, rewards: Tensor, log_prob: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        """(n, C) of this process, computed over the rollouts of all processes: a prompt's group may be spread."""
        args = self.args
        rewards, log_prob, reference, mask, sizes = self._gathered(rewards, log_prob, reference, mask)
        if args.standardise_rewards:
            rewards = standardise_per_position(rewards, mask)
        outside = self._rewards_per_func[:, 1:].nan_to_num(nan=0.0)
        weights = self.reward_weights[1:].to(outside)
        rewards = add_to_last_action(rewards, (outside * weights).sum(dim=1), mask)
        if args.kl_in == "reward" and args.kl_coef:
            rewards = kl_in_reward(rewards, log_prob, reference, args.kl_coef, args.kl_estimator)
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        alone = group_size == 1 and args.variance_reduction == "leave_one_out"  # in evaluation there may be no others
        result = advantages(
            rewards,
            mask,
            credit=args.credit,
            gamma=args.gamma,
            variance_reduction="none" if alone else args.variance_reduction,
            scale=args.advantage_scale,
            group_size=group_size,
        )
        rows = result.size(0) // self.accelerator.num_processes
        mine = slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)
        self._log_true_advantages(result, mask)
        return result[mine, : sizes[1]]

    def _gathered(self, *tensors: Tensor) -> tuple[Any, ...]:
        """Each (n, C) tensor over all processes, padded on the right to one width; and the local (n, C)."""
        padded = [self.accelerator.pad_across_processes(t.contiguous(), dim=1) for t in tensors]
        return (*(self.accelerator.gather(t) for t in padded), tuple(tensors[0].shape))

    def _log_true_advantages(self, result: Tensor, mask: Tensor) -> None:
        """TRL has logged its own sequence-level advantages: put the mean of each answer's token advantages there."""
        logged = self._logs["advantages"]
        for _ in range(min(result.size(0), len(logged))):
            logged.pop()
        logged.extend((result.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).tolist())

    def _record(self, rewards: Tensor, log_prob: Tensor, reference: Tensor, mask: Tensor, advantage: Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        k1 = torch.where(mask, kl_penalty(log_prob, reference, "k1"), 0.0).sum()
        local = torch.stack([mask.sum().float(), k1, rewards.sum(), advantage.abs().sum()])
        rows = torch.tensor(float(mask.size(0)), device=mask.device)
        total = self.accelerator.reduce(torch.cat([local, rows[None]]), reduction="sum").tolist()
        count, answers = max(total[0], 1.0), max(total[4], 1.0)
        metrics = self._metrics[mode]
        metrics["kl"].append(total[1] / count)
        metrics["kl_sequence"].append(total[1] / answers)
        metrics["reward_per_token"].append(total[2] / count)
        metrics["advantage_abs"].append(total[3] / count)
        if mode == "train" and self.accelerator.is_main_process:
            truncated = metrics["completions/clipped_ratio"][-1]
            for text in self.monitor.update(total[0] / answers, truncated, total[1] / count):
                logger.warning(f"Step {self.state.global_step}: {text}")

    # --- loss: TRL's, plus the KL where it is asked for there ---------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> Any:
        """TRL's contract, through the soft-Q head where it fits; only real completion tokens are projected."""
        try:
            if any(value is not None for value in multimodal.values()):
                raise SoftHeadError("it takes more than text")
            output_layer(model)
        except SoftHeadError:
            out = super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **multimodal,
            )
            self._last_log_prob = out[0]
            return out
        actions = attention_mask.bool().clone()
        actions[:, :-logits_to_keep] = False
        forward = {"output_router_logits": True} if compute_aux_loss else {}
        log_prob, entropies, aux_losses = [], [], []
        size = batch_size or input_ids.size(0)
        for start in range(0, input_ids.size(0), size):
            part = slice(start, start + size)
            batch = TokenBatch.build(
                input_ids[part],
                actions[part],
                eos_token_ids=self.scorer.eos_token_ids,
                attention_mask=attention_mask[part],
            )
            with self.accelerator.autocast():
                stats, outputs = token_stats_and_output(
                    model, batch, entropy=compute_entropy, temperature=self.temperature, **forward
                )
            log_prob.append(stats.log_prob[:, -logits_to_keep:])
            if stats.entropy is not None:
                entropies.append(stats.entropy[:, -logits_to_keep:])
            if compute_aux_loss:
                aux_losses.append(outputs.aux_loss)
        self._last_log_prob = torch.cat(log_prob)
        entropy = torch.cat(entropies) if compute_entropy else None
        return self._last_log_prob, entropy, torch.stack(aux_losses).mean() if compute_aux_loss else None

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        if self.args.kl_in == "reward" or not self.args.kl_coef:
            return loss
        mask = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            mask = mask & inputs["tool_mask"].bool()
        count = inputs["num_items_in_batch"] / self.accelerator.num_processes
        if self.model.training:
            count = count * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        penalty = kl_penalty(self._last_log_prob, inputs["ref_per_token_logps"], self.args.kl_estimator)
        return loss + self.args.kl_coef * normalised(penalty, mask, count)

    # --- resuming -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As Trainer.train; `resume_from_checkpoint=True` takes the newest complete checkpoint at a rollout's end.

        Raises:
            UserError: the named checkpoint lies inside a rollout, whose remaining samples are lost.
        """
        span = self.args.steps_per_rollout
        if resume_from_checkpoint is True:
            found = last_complete_checkpoint(self.args.output_dir, multiple_of=span)
            if found is None and last_complete_checkpoint(self.args.output_dir):
                logger.warning(
                    f"No checkpoint in {self.args.output_dir} lies at the end of a rollout (a step that divides by "
                    f"{span}), so this run starts from the beginning."
                )
            resume_from_checkpoint = None if found is None else str(found)
        elif resume_from_checkpoint and span > 1:
            step = str(resume_from_checkpoint).rstrip("/").rsplit("-", 1)[-1]
            if step.isdigit() and int(step) % span:
                raise UserError(
                    f"{resume_from_checkpoint} lies inside a rollout of {span} optimiser steps, whose samples are not "
                    f"saved. Resume from a checkpoint whose step divides by {span}, or pass True to have it found."
                )
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)


def _padded(rows: list[Tensor], width: int, device: torch.device) -> Tensor:
    """Rows of different lengths as one (n, width) tensor, zeros on the right."""
    out = torch.zeros(len(rows), width, device=device)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row.to(device)
    return out
