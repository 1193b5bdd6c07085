"""Losses and gradients of models on several processes, by DDP or FSDP2: `torchrun -m helpers.sharded FOLDER`.

Every process takes its rows of one global batch; what they add up to is compared with one process's numbers. Then
IQLearnTrainer runs, sharded by accelerate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from helpers.data import sums, text_tokenizer
from helpers.models import OBJECTIVE, tiny_family, tiny_llama, with_lora
from helpers.training import arguments, make, steps
from inverselm.token_mdp import SoftHeadError, TokenBatch, head_stats, of_models, project, token_loss, token_stats
from inverselm.training.iqlearn import IQLearnConfig, IQLearnTrainer

ROWS = [([1, 5, 6, 7, 8], [20, 21, 2]), ([1, 9], [22, 23, 24, 25]), ([1, 10, 11], [26, 2]), ([1, 3], [4, 5, 6, 2])]
LOW = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.bfloat16)


def batch_of(rank: int, world: int) -> TokenBatch:
    """This process's rows."""
    prompts, completions = zip(*ROWS[rank::world], strict=True)
    return TokenBatch.from_ids(prompts, completions, pad_token_id=0, eos_token_ids=[2], pad_to_multiple_of=8)


def clamping(seed: int = 0) -> nn.Module:
    """A model that the soft-Q head cannot stand in for."""
    model = tiny_llama(seed)
    own = model.forward

    def forward(**kwargs: Any) -> Any:
        outputs = own(**kwargs)
        outputs.logits = outputs.logits.clamp(-1.0, 1.0)
        return outputs

    model.forward = forward
    return model


def ddp(**options: Any) -> Callable[[nn.Module], nn.Module]:
    return lambda model: DistributedDataParallel(model, **options)


def fsdp(parts: Callable[[Any], list[Any]] = lambda model: [], **options: Any) -> Callable[[nn.Module], nn.Module]:
    """The parts (modules, or lists of modules) as groups of their own, then the rest."""

    def wrap(model: nn.Module) -> nn.Module:
        for part in parts(model):
            fully_shard(part, **options)
        return fully_shard(model, **options)

    return wrap


def layers(model: Any) -> list[Any]:
    return list(model.model.layers)


def head(model: Any) -> list[Any]:
    return [*model.model.layers, model.lm_head]


def head_and_norm(model: Any) -> list[Any]:
    """As accelerate groups them."""
    return [*model.model.layers, model.model.embed_tokens, [model.model.norm, model.lm_head]]


def tied_head_and_norm(model: Any) -> list[Any]:
    return [*model.model.layers, [model.model.norm, model.model.embed_tokens, model.lm_head]]


def of_base(parts: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    return lambda model: parts(model.get_base_model())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: tiny_llama(1),
    "tied": lambda: tiny_llama(1, tied=True),
    "gemma2": lambda: tiny_family("gemma2", 1),
    "granite": lambda: tiny_family("granite", 1),
    "lora": lambda: with_lora(tiny_llama(1), "lm_head", "q_proj"),
    "clamping": lambda: clamping(1),
}
CASES: dict[str, tuple[str, Callable[[nn.Module], nn.Module]]] = {
    "ddp": ("llama", ddp()),
    "ddp, unused": ("llama", ddp(find_unused_parameters=True)),
    "ddp, static": ("llama", ddp(static_graph=True)),
    "ddp, lora": ("lora", ddp()),
    "ddp, dense": ("clamping", ddp()),
    "ddp, dense, unused": ("clamping", ddp(find_unused_parameters=True)),
    "fsdp": ("llama", fsdp()),
    "fsdp, layers": ("llama", fsdp(layers)),
    "fsdp, head": ("llama", fsdp(head)),
    "fsdp, head kept": ("llama", fsdp(head, reshard_after_forward=False)),
    "fsdp, head and norm": ("llama", fsdp(head_and_norm)),
    "fsdp, tied": ("tied", fsdp(tied_head_and_norm)),
    "fsdp, gemma2": ("gemma2", fsdp(tied_head_and_norm)),
    "fsdp, granite": ("granite", fsdp(head)),
    "fsdp, lora": ("lora", fsdp(of_base(head))),
    "fsdp, dense": ("clamping", fsdp(head)),
    "fsdp, dense, norm": ("clamping", fsdp(head_and_norm)),
    "fsdp, bfloat16": ("llama", fsdp(head_and_norm, mp_policy=LOW)),
    "fsdp, bfloat16, gemma2": ("gemma2", fsdp(tied_head_and_norm, mp_policy=LOW)),
}


RUNS: dict[str, dict[str, Any]] = {"trainer": {}, "trainer, bfloat16": {"bf16": True}}
"""Options of the trainers that accelerate shards."""


def numbers(model: nn.Module, batch: TokenBatch, mode: str, num_actions: int) -> torch.Tensor:
    """What is differentiated: the fused loss, or all log-probabilities."""
    if mode == "loss":
        return token_loss(model, batch, OBJECTIVE, num_actions=num_actions)[0].value
    return token_stats(model, batch).log_prob.sum()


def results(wrap: Callable[[nn.Module], nn.Module], make: Callable[[], nn.Module]) -> dict[str, Any]:
    """Two steps of each mode: sums over processes of values and gradients, and why the dense reference was taken."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    batch, num_actions = batch_of(rank, world), int(batch_of(0, 1).num_actions)
    reasons: list[str] = []
    of_models.fall_back = lambda reason: reasons.append(str(reason))  # type: ignore[assignment]
    found: dict[str, Any] = {}
    model = wrap(make())
    for step in range(2):
        for mode in ("loss", "log_prob"):
            model.zero_grad()
            value = numbers(model, batch, mode, num_actions)
            value.backward()
            total = value.detach().clone()
            if world > 1:
                dist.all_reduce(total)
            found[f"{mode} {step}"] = (total, {name: world * whole(p.grad) for name, p in named(model)})
    with torch.no_grad():
        stats = token_stats(model, batch)
        found["dtypes"] = {value.dtype, stats.log_prob.dtype}
        try:
            hidden, weight, bias, spec = project(model, batch)
            again = head_stats(hidden, weight, batch, bias=bias, spec=spec)
            found["projects"] = torch.equal(again.log_prob, stats.log_prob)
        except SoftHeadError:
            found["projects"] = False
    found["reasons"] = reasons
    return found


def named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n.removeprefix("module."), p) for n, p in model.named_parameters() if p.grad is not None]


def whole(tensor: Any) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def trained(folder: Path, **options: Any) -> dict[str, Any]:
    """What IQLearnTrainer logs of the same 8 rows at each step, however many processes there are.

    On several, accelerate shards the model: it would do so by itself on accelerators only, so it is told to.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    args = arguments(
        IQLearnConfig, folder, td_coef=0.5, gamma=0.9, mle_warmup_steps=0, td_anneal_steps=2, max_steps=4,
        per_device_train_batch_size=8 // world, learning_rate=0.01, **options,
    )  # fmt: skip
    reasons: list[str] = []
    of_models.fall_back = lambda reason: reasons.append(str(reason))  # type: ignore[assignment]
    trainer = make(IQLearnTrainer, args, sums(), text_tokenizer())
    if world > 1:
        state = trainer.accelerator.state
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        if options.get("bf16"):
            state.fsdp_plugin.set_mixed_precision("bf16")
        trainer.is_fsdp_enabled = True
    trainer.train()
    return {"steps": steps(trainer), "reasons": reasons, "layer": type(trainer.model.lm_head).__name__}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="*", default=[*CASES, *RUNS])
    options = parser.parse_args()
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for case in options.cases:
        if case in RUNS:
            found[case] = trained(options.folder / case, **RUNS[case])
        else:
            name, wrap = CASES[case]
            found[case] = results(wrap, MODELS[name])
    torch.save(found, options.folder / f"rank-{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
