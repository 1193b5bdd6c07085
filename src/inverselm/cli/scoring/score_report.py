"""What `inverselm score` says at its end."""

from __future__ import annotations

from typing import Any

_SHOWN = 200  # characters of prompt and answer that are worth repeating


def written(counts: dict[str, int], errors: bool) -> int:
    """How many rows the output has; `errors`: those without a score, too."""
    return sum(count for name, count in counts.items() if name != "tokens") if errors else counts.get("rows", 0)


def say_left_out(counts: dict[str, int], on_error: str, too_long: str = "longer than the model has positions") -> None:
    """Print how many rows have no score, by reason."""
    total = sum(count for name, count in counts.items() if name != "tokens")
    reasons = {"long": too_long, "empty": "they have no token", "unusable": "they are no prompt and answer"}
    reasons["not_finite"] = "the model gives no finite number"
    fate = "without a score" if on_error == "keep" else "left out"
    for reason, words in reasons.items():
        if counts.get(reason):
            print(f"{counts[reason]:,} of {total:,} answers ({counts[reason] / total:.1%}) are {fate}: {words}.")


def closing(args: Any, kind: str, output: str | None) -> str:
    """What to do next, to be copied."""
    from ..common import shell

    model: tuple[str, ...] = ("--model_name_or_path", args.model_name_or_path)
    if args.baseline:
        model += ("--baseline", args.baseline)
    if args.prompt is not None:
        texts: tuple[str, ...] = ("--prompt", args.prompt, "--completion", args.completion)
        whole = args.prompt + args.completion
        if (
            not whole.replace("\n", "").isprintable()
            or len(whole) > _SHOWN
            or any(text.startswith(("<", "-")) for text in texts[1::2])
        ):
            texts = ()  # nothing to be copied from a terminal
        page = shell("score", *model, "--dataset_name", "<answers>", "--html", "heatmap.html")
        return "\n".join(["Next:", shell("inspect", *model, *texts), page])
    look = shell("inspect", *model, "--dataset_name", output)
    if kind == "log_ratio":
        dpr = shell("dpr", *model, "--dataset_name", "<prompts>", "--output_dir", "runs/dpr")
        return "\n".join(["Next:", look, dpr])
    return f"Next: keep, drop or rank answers by their `reward`, or look at them:\n{look}"
