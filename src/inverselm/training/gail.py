"""GAIL: a discriminator between demonstrations and own samples, and a policy that it pays to pass for the expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl.trainer.utils import disable_dropout_in_model

from ..errors import UserError
from ..objectives import Loss, mle
from ..objectives.gail import gae, gail_policy, gail_reward, kl_coef_at, rescale_advantages, state_values
from ..scorers import FrozenLM, load_model
from ..scorers.frozen import adapter_base
from ..token_mdp import TokenBatch, TokenStats
from .gail_collapse import CollapseMonitor
from .gail_config import GAILConfig
from .gail_critics import NAMES, Critics, copy_of, make_critic
from .gail_update import CriticUpdates
from .iqlearn import IQLearnTrainer
from .loading import make_trainable
from .rollouts import Rollouts, below, stacked

__all__ = ["GAILConfig", "GAILTrainer"]

CRITICS_FOLDER = "critics"
"""Of a checkpoint: discriminator, value network, and their optimisers."""

_OF_OWN = ("advantage", "advantage_abs", "ratio", "kl", "own_entropy")  # means over own actions


class GAILTrainer(CriticUpdates, Rollouts, IQLearnTrainer):
    """Generative adversarial imitation of demonstrations, token by token (arXiv 2409.01369, app. A.1.3).

    Each step: the policy answers the prompts of the batch; r_t = softplus(D(s_{t+1})), where D reads the state after
    the action; advantages by GAE with a value network, rescaled over the rollout; one policy update (clipped surrogate,
    KL to the initial policy with an annealed weight, entropy bonus, likelihood of the demonstrations); then one update
    of the discriminator, and one of the value network. The initial policy, the discriminator and the value network read
    each rollout once. The discriminator compares the first answer of a row, up to `max_completion_length` tokens.

    Takes what SFTTrainer takes: formats, chat templates, PEFT, gradient checkpointing and accumulation, DDP. Beside
    the metrics of the demonstrations (`nll`, `entropy`, `mean_token_accuracy`) it logs `reward_margin` (expert minus
    own), `own_reward`, `discriminator_accuracy`, `_expert` and `_own`, `discriminator_loss`, `own_length`,
    `own_truncated`, `own_entropy`, `kl`, `kl_coef`, `value`, `value_loss`, `return`, `advantage_abs` and `ratio`.
    Evaluation is the negative log-likelihood of held-out demonstrations.

    Args:
        model: the policy, usually an SFT model: a folder, a hub name, a model or a PeftModel. Its start is what the KL
            is taken to, so that a resumed run needs the same one.
        args: options.
        kwargs: of SFTTrainer.

    Raises:
        UserError: FSDP or DeepSpeed (the critics are whole copies), packed rows, fp16, a prompt without room for an
            answer; or the run has collapsed.

    Example:
        >>> args = GAILConfig("runs/gail", learning_rate=1e-5, max_completion_length=128)
        >>> GAILTrainer("runs/sft", args=args, train_dataset=demonstrations).train()
    """

    _tag_names = ["trl", "inverselm", "gail"]  # noqa: RUF012  (TRL's class attribute)
    _name = "GAIL"

    def __init__(self, model: Any, args: GAILConfig | None = None, **kwargs: Any) -> None:
        args = GAILConfig("gail") if args is None else args
        if not isinstance(args, GAILConfig):
            raise UserError(f"GAILTrainer needs a GAILConfig, not {type(args).__name__}.")
        if isinstance(model, (str, Path)) and adapter_base(model):
            model = load_model(model, dtype="float32", trust_remote_code=args.trust_remote_code)
            make_trainable(model)
        super().__init__(str(model) if isinstance(model, Path) else model, args=args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError("GAIL with FSDP or DeepSpeed is not supported: its networks are whole copies. Use DDP.")
        if args.disable_dropout:
            disable_dropout_in_model(self.model)
        self.reference = self._initial_policy(fresh_adapter=kwargs.get("peft_config") is not None)
        networks = {name: make_critic(self.model, args, args.seed + i) for i, name in enumerate(NAMES)}
        rates = {"discriminator": args.discriminator_learning_rate, "value": args.value_learning_rate}
        self.critics = Critics(networks, rates, args.max_grad_norm, self.accelerator)
        self.collapse = CollapseMonitor(args.collapse_steps, args.collapse_truncated, args.collapse_accuracy)
        self.add_callback(_AfterEachStep(self))

    def _initial_policy(self, *, fresh_adapter: bool) -> FrozenLM:
        """What the policy is now: a copy; or, of an adapter that was just added, its base."""
        if fresh_adapter:
            return FrozenLM(self.model, None, "initial policy")
        return FrozenLM(copy_of(self.model).requires_grad_(False).eval(), name="initial policy")

    # --- rollouts -----------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of a step, each with own samples of its prompts."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            batches = self.with_samples(batches, device)
        self._step = batches
        return batches, count

    def _rollout(self, batches: Any) -> list[dict[str, Tensor]]:
        """Own samples with all that is constant in their updates: advantages, returns, log-probabilities."""
        device = self.accelerator.device
        samples = [{k: v.to(device) for k, v in sample.items()} for sample in super()._rollout(batches)]
        self.critics.train(False)
        with torch.no_grad():
            for sample in samples:
                self._score(sample)
        held = self._rescaled([(sample["advantages"], sample["actions"]) for sample in samples])
        return [{**sample, "advantages": advantages} for sample, advantages in zip(samples, held, strict=True)]

    def _score(self, sample: dict[str, Tensor]) -> None:
        args, batch = self.args, self._own_batch(sample)
        with self.accelerator.autocast():
            frozen = self.reference.read(batch)
            sample["ref_log_prob"] = frozen.stats().log_prob
            if args.rollout_every > 1:
                sample["old_log_prob"] = FrozenLM(self.model).read(batch).stats().log_prob
        hidden = self._hidden(frozen)
        logits, values = (self.critics.read(name, batch, hidden) for name in NAMES)
        if hidden is not None:
            sample["hidden"] = hidden
        value, next_value = state_values(values, batch)
        rewards = gail_reward(logits, batch.action_mask, args.reward_shift)
        sample["advantages"] = gae(rewards, value, next_value, batch, gamma=args.gamma, gae_lambda=args.gae_lambda)
        sample["returns"] = sample["advantages"] + value

    def _rescaled(self, parts: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """(b, t) advantages with their masks, rescaled over all of them and all processes."""
        flat = torch.cat([advantages[mask] for advantages, mask in parts])[None]
        real, size = torch.ones_like(flat, dtype=torch.bool), flat.size(1)
        if self.accelerator.num_processes > 1:
            gather = lambda x: self.accelerator.gather(self.accelerator.pad_across_processes(x, dim=1))
            flat, real = gather(flat), gather(real.long()).bool()
        scaled = rescale_advantages(flat, real, self.args.advantage_scale)
        mine = scaled[self.accelerator.process_index if scaled.size(0) > 1 else 0, :size]
        pieces = mine.split([int(mask.sum()) for _, mask in parts])
        return [torch.zeros_like(a).masked_scatter(m, piece) for (a, m), piece in zip(parts, pieces, strict=True)]

    def _own_batch(self, sample: dict[str, Tensor]) -> TokenBatch:
        return TokenBatch.build(
            sample["input_ids"],
            sample["actions"],
            eos_token_ids=self._eos_token_ids,
            attention_mask=sample["attention_mask"],
        )

    def _hidden(self, frozen: Any) -> Tensor | None:
        """The hidden states that the critics' heads read; None if they have bodies of their own."""
        if self.args.critics == "full":
            return None
        if frozen.projection is None:
            raise UserError("This model's hidden states cannot be read beside its logits: set critics='full'.")
        return frozen.projection.hidden

    # --- the policy's loss --------------------------------------------------------------------------------------------

    def loss_batch(self, inputs: dict[str, Any]) -> tuple[TokenBatch, dict[str, Tensor]]:
        """Demonstrations, and below them own samples; in evaluation there are none."""
        batch, own = self._token_batch(inputs), inputs.get("own")
        if own is None:
            return batch, {}
        self._own_total = own["total"]
        both = stacked(batch, own, eos_token_ids=self._eos_token_ids)
        names = ("advantages", "ref_log_prob", "old_log_prob")
        numbers = {name: below(own[name], both) for name in names if name in own}
        return both, {"own": below(torch.ones_like(own["actions"]), both), **numbers}

    def objective(self, stats: TokenStats, num_actions: Any, own: Tensor | None = None, **numbers: Tensor) -> Loss:
        """The objective of the current step on one micro-batch; in evaluation, likelihood."""
        if own is None:
            return mle(stats, num_actions=num_actions)
        args = self.args
        return gail_policy(
            stats,
            own=own,
            clip_range=args.clip_range or None,
            kl_coef=self.scheduled_kl_coef(),
            kl_estimator=args.kl_estimator,
            mle_coef=args.mle_coef,
            entropy_coef=args.entropy_coef,
            num_actions=num_actions,
            num_own=self._own_total,
            **numbers,
        )

    def scheduled_kl_coef(self) -> float:
        """beta of the coming optimiser step."""
        args = self.args
        return kl_coef_at(
            self.state.global_step,
            kl_coef_start=args.kl_coef_start,
            kl_coef=args.kl_coef,
            kl_anneal_steps=args.kl_anneal_steps,
        )

    def record_loss(self, inputs: dict[str, Any], batch: TokenBatch, stats: TokenStats, metrics: dict[str, Any]) -> int:
        """Metrics of the demonstrations as in IQLearnTrainer; those of own samples beside them."""
        own = inputs.get("own")
        if own is None:
            return super().record_loss(inputs, batch, stats, metrics)
        count, rows = own["actions"].sum(), len(inputs["input_ids"])
        self.log_means({name: (metrics.pop(name) * count, count) for name in _OF_OWN})
        self._metrics["train"]["kl_coef"].append(self.scheduled_kl_coef())
        return super().record_loss(inputs, batch.rows(slice(rows)), stats.rows(slice(rows)), metrics)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            counts = {"endless": self.collapse.endless, "separated": self.collapse.separated}
            self.critics.save(Path(output_dir) / CRITICS_FOLDER, **counts)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            counts = self.critics.load(Path(checkpoint) / CRITICS_FOLDER)
            self.collapse.endless, self.collapse.separated = counts["endless"], counts["separated"]


class _AfterEachStep(TrainerCallback):
    def __init__(self, trainer: GAILTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.update_critics()
