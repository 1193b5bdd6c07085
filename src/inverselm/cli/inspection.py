"""`inverselm inspect`: a page on which to look at token rewards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from ..errors import UserError
from .arguments import Help, parse
from .flags import LoadingFlags


@dataclass
class InspectArguments(LoadingFlags):
    """Flags of `inverselm inspect`."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "The SFT folder (its baseline is found there), or an IQLearn model. Without it the page shows the "
            "rewards that a scored file holds."
        },
    )
    baseline: str | None = field(
        default=None,
        metadata={"help": "Earlier checkpoint(s) of the SFT run, comma-separated. Default: the one in its folder."},
    )
    q_function: str | None = field(default=None, metadata={"help": "An IQLearn model, for its Q - gamma V'."})
    gamma: float | None = field(
        default=None, metadata={"help": "Discount of Q - gamma V'. Default: the model's own, else 1."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Answers to browse: a file that `inverselm score` wrote, or rows with prompt and completion."
        },
    )
    dataset_split: str = field(default="train", metadata={"help": "Split, or a slice such as train[:100]."})
    prompt: str | None = field(default=None, metadata={"help": "Prompt that the page begins with."})
    completion: str | None = field(default=None, metadata={"help": "Answer that the page begins with."})
    port: int = field(default=7860, metadata={"help": "Port; if it is taken, the next free one. 0: any."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on."})
    allowed_hosts: list[str] = field(
        default_factory=list,
        metadata={"help": "Names, beside localhost and IP addresses, by which the page may be opened."},
    )
    open_browser: bool = field(default=False, metadata={"help": "Open the page in the browser."})
    max_tokens: int = field(default=16_384, metadata={"help": "Longest prompt and answer together."})
    batch_size: int = field(default=16, metadata={"help": "Rows per forward pass when a file is scored."})


GUIDE = Help(
    "A page in the browser on which to look at token rewards: the tokens of an answer coloured by reward, what an edit "
    "does to them, two answers or two rewards side by side, and the rows of a file, sorted and searched. The server is "
    "this command; it listens on this machine alone, and nothing is loaded from the network.",
    (
        "inverselm inspect --model_name_or_path runs/sft",
        "inverselm inspect --model_name_or_path SFT --baseline EARLIER --dataset_name answers.jsonl --open_browser",
        "inverselm inspect --dataset_name scored.jsonl",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Check, load, serve until Ctrl-C."""
    (args,) = parse(command, (InspectArguments,), argv, GUIDE)
    missing = next((name for name in ("starlette", "uvicorn") if find_spec(name) is None), None)
    if missing:
        raise UserError(f"the page needs {missing}: pip install 'inverselm[serve]'")
    from .common import quiet_libraries

    quiet_libraries()
    _check_flags(args)
    found = _check_models(args) if args.model_name_or_path else None
    from ..inspection.server import address, listen, serve

    with listen(args.host, args.port) as socket:
        url = address(args.host, socket)
        app = _app(args, found)
        _say_where(args, url)
        if args.open_browser:
            import webbrowser

            webbrowser.open(url)
        serve(app, socket)
    print("Stopped.")


def _check_flags(args: Any) -> None:
    from ..inputs.models import check_positive

    if not args.model_name_or_path and not args.dataset_name:
        raise UserError("nothing to look at: pass --model_name_or_path <SFT folder>, or --dataset_name <scored file>")
    for name in ("baseline", "q_function", "prompt", "completion"):
        if getattr(args, name) is not None and not args.model_name_or_path:
            raise UserError(f"--{name} needs --model_name_or_path")
    if args.gamma is not None and not 0.0 <= args.gamma <= 1.0:
        raise UserError(f"--gamma is {args.gamma}; set it between 0 and 1")
    if not 0 <= args.port < 65_536:
        raise UserError(f"--port is {args.port}; set it between 0 and 65535")
    check_positive(args, ("max_tokens", "batch_size"))


@dataclass(frozen=True)
class _Models:
    """What the flags name, checked: baselines, discounts, and whether the model is one of IQLearn."""

    baselines: list[str]
    gamma: float
    q_gamma: float
    iqlearn: bool


def _check_models(args: Any) -> _Models:
    from ..inputs.models import check_model, check_reward_models, check_shared_tokenizer, load_tokenizer
    from ..scorers.markers import find_baseline, read_marker

    name, remote = args.model_name_or_path, args.trust_remote_code
    check_model(name, trust_remote_code=remote)
    marker = read_marker(name)
    iqlearn, baselines = marker.get("role") == "iqlearn", []
    if args.baseline is not None:
        baselines = check_reward_models(name, args.baseline, remote)
    else:
        try:
            find_baseline(name)
        except UserError:
            if not iqlearn:
                print(f"No baseline in {name}: no dense reward; name an earlier checkpoint with --baseline.")
        else:
            baselines = check_reward_models(name, None, remote)
    if args.q_function is not None:
        check_model(args.q_function, "--q_function", remote)
        check_shared_tokenizer(load_tokenizer(name, None, remote), name, args.q_function, remote)
    gammas = [
        float(read_marker(folder).get("gamma", 1.0)) if args.gamma is None and folder else args.gamma or 0.0
        for folder in (name, args.q_function)
    ]
    return _Models(baselines, gammas[0], gammas[1], iqlearn)


def _app(args: Any, found: _Models | None) -> Any:
    """The application: first the file is read, then the models."""
    from ..inspection import RowFile, create_app

    rows = None
    if args.dataset_name:
        rows = RowFile(args.dataset_name, args.dataset_split, need_scores=found is None)
        scored = "" if not rows.scored else f", {rows.scored:,} with token rewards"
        print(f"{args.dataset_name}: {len(rows):,} rows{scored}.")
    names, inspector = {}, None
    if found is not None:
        inspector = _inspector(args, found)
        named = {
            "model": args.model_name_or_path,
            "baseline": ", ".join(found.baselines),
            "q_function": args.q_function,
        }
        names = {role: name for role, name in named.items() if name}
    start = {name: getattr(args, name) for name in ("prompt", "completion") if getattr(args, name) is not None}
    return create_app(
        inspector, rows, names=names, start=start, batch_size=args.batch_size, allowed_hosts=args.allowed_hosts
    )


def _inspector(args: Any, found: _Models) -> Any:
    from ..inputs.models import resolve_device
    from ..inspection import Inspector
    from ..scorers import QFunctionReward, TokenReward

    loading = {"device": resolve_device(args.device), "dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    scorer: Any
    if found.baselines:
        scorer = TokenReward.from_checkpoints(args.model_name_or_path, found.baselines, **loading)
    else:
        scorer = QFunctionReward.from_checkpoint(args.model_name_or_path, **loading)
    q_function = None
    if args.q_function:
        q_function = QFunctionReward.from_checkpoint(args.q_function, tokenizer=scorer.tokenizer, **loading)
    return Inspector.from_scorers(
        scorer,
        q_function,
        gamma=found.gamma,
        q_gamma=found.q_gamma,
        iqlearn=found.iqlearn and not found.baselines,
        max_tokens=args.max_tokens,
    )


def _say_where(args: Any, url: str) -> None:
    from ..inspection.guard import is_address

    port = int(url.rstrip("/").rpartition(":")[2])
    if args.port and port != args.port:
        print(f"Port {args.port} is taken: it is {port}.")
    loopback = args.host == "localhost" or (is_address(args.host) and args.host.startswith(("127.", "::1")))
    if not loopback:
        print(f"Warning: whoever reaches {args.host} can read the rows and use the model.", file=sys.stderr)
    print(f"Open {url} in a browser. Ctrl-C ends it.", flush=True)
