"""The discriminator and the value network of GAIL: a number per state, an optimiser each, and their checkpoints."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from ..errors import UserError
from ..token_mdp import TokenBatch

NAMES = ("discriminator", "value")


class Critic(nn.Module):
    """One number for the state after each token, in float32; 0 everywhere at the start.

    Args:
        hidden_size: H of the hidden states.
        body: a language model without its head; None reads hidden states that are given (then the head is wider: a
            normalised hidden layer in front of the scalar one).
    """

    def __init__(self, hidden_size: int, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        last = nn.Linear(hidden_size, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        wider = [nn.LayerNorm(hidden_size), nn.Linear(hidden_size, hidden_size), nn.GELU()] if body is None else []
        self.head = nn.Sequential(*wider, last)

    def forward(self, batch: TokenBatch, hidden: Tensor | None = None) -> Tensor:
        """(B, T) of the state after each token; column t has read token t."""
        if self.body is not None:
            hidden = self.body(**batch.model_inputs(), use_cache=False).last_hidden_state
        assert hidden is not None
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()).squeeze(-1)


def copy_of(model: Any) -> Any:
    """A copy that runs its own forward: TRL puts one on the model that is bound to the original's weights."""
    twin = copy.deepcopy(model)
    vars(twin.get_base_model() if hasattr(twin, "peft_config") else twin).pop("forward", None)
    return twin


def make_critic(model: Any, args: Any, seed: int) -> Critic:
    """A critic for a policy: of `args.critics` "full", a trainable copy of its body, adapters merged; or a head alone.

    Raises:
        UserError: a copy of a quantised model, or of one without a body that can be told from its head.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    hidden_size = inner.config.get_text_config().hidden_size
    body = None
    if args.critics == "full":
        if getattr(inner, "is_quantized", False):
            raise UserError("A quantised model cannot be trained whole as a critic: set critics='head'.")
        whole = copy_of(model)
        whole = whole.merge_and_unload() if hasattr(whole, "peft_config") else whole
        body = whole.base_model
        if body is whole:
            raise UserError(f"{type(whole).__name__} has no body apart from its head: set critics='head'.")
        body = body.float().requires_grad_(True)
        if args.gradient_checkpointing:
            body.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic(hidden_size, body).to(next(model.parameters()).device)


class Critics:
    """Discriminator and value network with an AdamW each; gradients are summed over processes.

    Args:
        networks: "discriminator" and "value".
        learning_rates: of each, constant.
        max_grad_norm: clipping; 0 for none.
        accelerator: of the trainer.
    """

    def __init__(
        self, networks: dict[str, Critic], learning_rates: dict[str, float], max_grad_norm: float, accelerator: Any
    ) -> None:
        self.networks, self.max_grad_norm, self.accelerator = networks, max_grad_norm, accelerator
        self.optimizers = {
            name: torch.optim.AdamW(network.parameters(), lr=learning_rates[name], weight_decay=0.0)
            for name, network in networks.items()
        }

    def read(self, name: str, batch: TokenBatch, hidden: Tensor | None = None) -> Tensor:
        """(B, T) of a network, with gradients if they are enabled."""
        with self.accelerator.autocast():
            return self.networks[name](batch, hidden)

    def train(self, mode: bool = True) -> None:
        """Into training mode, or out of it."""
        for network in self.networks.values():
            network.train(mode)

    def step(self, name: str, losses: Iterable[Tensor]) -> None:
        """One update of a network by the sum of the losses of all micro-batches and processes."""
        network, optimizer = self.networks[name], self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        for loss in losses:
            loss.backward()
        trained = [p for p in network.parameters() if p.grad is not None]
        if self.accelerator.num_processes > 1:
            for parameter in trained:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="sum")
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def save(self, folder: Path, **facts: Any) -> None:
        """Weights and optimisers as safetensors, numbers (and `facts`) as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        groups = {}
        for name, network in self.networks.items():
            save_model(network, str(folder / f"{name}.safetensors"))
            state = self.optimizers[name].state_dict()
            groups[name] = state["param_groups"]
            tensors = {f"{i}.{key}": x for i, one in state["state"].items() for key, x in one.items()}
            save_file(tensors, str(folder / f"{name}_optimizer.safetensors"))
        (folder / "state.json").write_text(json.dumps({"param_groups": groups, **facts}, indent=1), encoding="utf-8")

    def load(self, folder: Path) -> dict[str, Any]:
        """What `save` wrote; returns its facts.

        Raises:
            UserError: there is nothing, or of critics of another kind.
        """
        if not (folder / "state.json").is_file():
            raise UserError(
                f"{folder} has no critics to resume with (save_only_model leaves them out): resume from another "
                "checkpoint, or start anew from it as --model_name_or_path."
            )
        facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        groups = facts.pop("param_groups")
        for name, network in self.networks.items():
            device = next(network.parameters()).device
            try:
                load_model(network, str(folder / f"{name}.safetensors"), device=str(device))
            except RuntimeError as error:
                raise UserError(f"{folder}: its {name} is of another kind; set critics as in that run.") from error
            state: dict[int, dict[str, Tensor]] = {}
            for key, tensor in load_file(str(folder / f"{name}_optimizer.safetensors")).items():
                index, _, what = key.partition(".")
                state.setdefault(int(index), {})[what] = tensor
            self.optimizers[name].load_state_dict({"state": state, "param_groups": groups[name]})
        return facts
