"""`inverselm extrapolate`: a checkpoint beyond the SFT model, away from its baseline, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from .arguments import Help, parse


@dataclass
class ExtrapolateArguments:
    """Flags of `inverselm extrapolate`."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The SFT model: a folder or hub name, a full model or a LoRA adapter."}
    )
    baseline: str | None = field(
        default=None,
        metadata={"help": "An earlier checkpoint of the same kind. Default: the one that `inverselm sft` kept."},
    )
    weight: float | None = field(
        default=None,
        metadata={"help": "w: how far beyond the SFT model. 0 is the SFT model, -1 the baseline, -0.5 their average."},
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the new checkpoint; new or empty."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run a tokenizer's own Python code."})
    overwrite: bool = field(
        default=False, metadata={"help": "Replace a folder that this command wrote earlier; no other."}
    )


GUIDE = Help(
    "Weight extrapolation: write the checkpoint theta_SFT + w (theta_SFT - theta_baseline). It costs no training: a "
    "control that training with the dense reward (`inverselm dpr`) must beat. Adapters give an adapter of twice the "
    "rank, exact in the product B A. Try several weights on validation data.",
    (
        "inverselm extrapolate --model_name_or_path runs/sft --weight 0.5 --output_dir runs/sft-w0.5",
        "inverselm extrapolate --model_name_or_path SFT --baseline EARLIER --weight 0.25 --output_dir runs/w0.25",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, compute, write."""
    (args,) = parse(command, (ExtrapolateArguments,), argv, GUIDE)
    from .common import quiet_libraries

    quiet_libraries()
    baseline = _check(args)
    from ..inference.extrapolate import extrapolate

    try:
        extrapolate(
            args.model_name_or_path,
            baseline,
            args.weight,
            args.output_dir,
            overwrite=args.overwrite,
            trust_remote_code=args.trust_remote_code,
            progress=True,
        )
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("Nothing was written.") from error
    print(_closing(args, baseline))


def _check(args: Any) -> str:
    """The baseline, after checking the flags and both models."""
    from ..inference.extrapolate import check_target
    from ..inference.guided import check_weight
    from ..inputs.models import check_model, check_reward_models

    if args.weight is None:
        raise UserError("no weight: pass --weight, 0.5 say; 0 is the SFT model itself")
    check_weight(args.weight, "--weight")
    if not args.output_dir:
        raise UserError("no output: pass --output_dir <folder>")
    check_model(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    names = check_reward_models(args.model_name_or_path, args.baseline, args.trust_remote_code)
    if len(names) > 1:
        raise UserError(f"--baseline {args.baseline}: weights are extrapolated from one baseline")
    try:
        check_target(args.output_dir, [args.model_name_or_path, names[0]], args.overwrite)
    except UserError as error:
        raise UserError(f"--output_dir {error}") from error
    return names[0]


def _closing(args: Any, baseline: str) -> str:
    from .common import shell

    sft, w = args.model_name_or_path, args.weight
    options = ("--dataset_name", "<held-out prompts>", "--output_file")
    return "\n".join(
        [
            f"Wrote {args.output_dir}: {sft} + {w:g} ({sft} - {baseline}), with its tokenizer.",
            "Next: compare it with the SFT model on held-out prompts, at several temperatures:",
            shell("generate", "--model_name_or_path", args.output_dir, *options, "extrapolated.jsonl"),
            shell("generate", "--model_name_or_path", sft, *options, "sft.jsonl"),
        ]
    )
