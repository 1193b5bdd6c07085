"""`inverselm serve`: token rewards over HTTP."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .arguments import Help, parse
from .flags import RewardFlags, RewardShapeFlags
from .listening import bound, is_loopback, url_of

if TYPE_CHECKING:
    from ..integrations.server import RewardService


@dataclass
class ServeArguments(RewardShapeFlags, RewardFlags):
    """Flags of `inverselm serve`."""

    add_eos: bool = field(
        default=True,
        metadata={"help": "End each text answer with EOS, as in training; rows with finished=false get none."},
    )
    sequence_reward: str = field(
        default="sum",
        metadata={"help": "What OpenRLHF is given for an answer, of its token rewards.", "choices": ["sum", "mean"]},
    )
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; others reach the server then."})
    port: int = field(default=8080, metadata={"help": "Port; 0 takes a free one."})
    api_key_env: str | None = field(
        default=None, metadata={"help": "Name of an environment variable with a bearer token that requests must bring."}
    )
    batch_size: int = field(default=16, metadata={"help": "Answers per forward pass."})
    max_batch_tokens: int = field(
        default=16384, metadata={"help": "Answers times the longest of them, in tokens, per forward pass, at most."}
    )
    max_padding: float = field(default=0.1, metadata={"help": "Share of a forward pass that may be padding."})
    max_wait_ms: float = field(
        default=5.0, metadata={"help": "Milliseconds that a row waits for company while nothing is scored."}
    )
    max_queue: int = field(default=4096, metadata={"help": "Rows that wait, at most; then 503."})
    max_rows: int = field(default=256, metadata={"help": "Rows of a request, at most; else 422."})
    max_row_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens of prompt and answer, at most; else 422. Default: the model's positions."},
    )
    max_body_mb: float = field(default=16.0, metadata={"help": "MiB of a request, at most; else 413."})
    request_timeout: float = field(default=120.0, metadata={"help": "Seconds of a request, at most; then 504."})


GUIDE = Help(
    "Token rewards over HTTP: POST /v1/token_rewards gives one number per token, POST /get_reward is a remote reward "
    "model for OpenRLHF. The rewards are those of `inverselm score`, with its flags. Rows of many clients are scored "
    "together. Also GET /health, /metrics (Prometheus), /docs.\n"
    "It listens on this machine alone unless --host says otherwise. Ctrl-C or SIGTERM: what was accepted is answered "
    "first.",
    (
        "inverselm serve --model_name_or_path runs/sft",
        'curl -s http://127.0.0.1:8080/v1/token_rewards -d \'{"prompt": "2+2=", "completion": " 5"}\'',
        "inverselm serve --model_name_or_path runs/sft --baseline runs/sft/checkpoint-100 --centre_rewards --port 9000",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, load, serve until told to stop."""
    (args,) = parse(command, (ServeArguments,), argv, GUIDE)
    _check_packages()
    from ..inputs.models import resolve_device
    from .common import quiet_libraries
    from .scoring.score import _check_models

    quiet_libraries()
    _check_flags(args)
    key = _api_key(args)
    kind, baselines, config = _check_models(args)
    _check_options(args, kind, baselines)
    args.device = resolve_device(args.device)
    with bound(args.host, args.port) as listener:
        print(f"Loading {args.model_name_or_path} ...", flush=True)
        local = is_loopback(listener.getsockname()[0])
        service = make_service(args, kind, baselines, config, key=key, local=local)
        if not local:
            _warn_of_strangers(args, key)
        whole = serve(service, listener)
    if not whole:
        raise KeyboardInterrupt("Requests that were not answered yet were cut off.")
    print("Stopped: every accepted request was answered.")


def make_service(
    args: Any, kind: str, baselines: list[str], config: Any, *, key: str | None = None, local: bool = True
) -> RewardService:
    """The service of checked flags: loads the models."""
    from ..integrations.rows import RowReader
    from ..integrations.server import RewardService, Settings
    from ..scorers import TokenReward
    from .scoring.score import _measures, load_scorer

    if kind == "log_ratio":
        scorer: Any = TokenReward.from_checkpoints(
            args.model_name_or_path,
            baselines,
            device=args.device,
            dtype=args.dtype,
            trust_remote_code=args.trust_remote_code,
            mix=args.baseline_mix,
            floor_alpha=args.reward_floor,
            clip_range=(args.reward_clip_low, args.reward_clip_high),
            centred=args.centre_rewards,
        )
    else:
        scorer = load_scorer(args, kind, baselines)
    encode, fits, positions = _measures(config)
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    reader = RowReader(
        scorer.tokenizer,
        encode,
        fits=fits,
        positions=positions,
        max_rows=args.max_rows,
        max_row_tokens=args.max_row_tokens,
        vocab_size=vocabulary or len(scorer.tokenizer),
        add_eos=args.add_eos,
    )
    settings = Settings(
        model=str(args.model_name_or_path),
        reward_kind=kind,
        baselines=tuple(baselines),
        batch_size=args.batch_size,
        max_batch_tokens=args.max_batch_tokens,
        max_padding=args.max_padding,
        max_wait=args.max_wait_ms / 1000,
        max_queue=args.max_queue,
        max_body=math.ceil(args.max_body_mb * 2**20),
        timeout=args.request_timeout,
        mean=args.sequence_reward == "mean",
        api_key=key,
        local=local,
    )
    return RewardService(scorer, reader, settings)


def serve(service: RewardService, listener: socket.socket) -> bool:
    """Answer until SIGTERM or SIGINT; then stop listening and answer what was accepted.

    Returns:
        Whether all of it was answered: a second Ctrl-C does not wait.

    Raises:
        UserError: another program listens there by now.
    """
    import uvicorn

    try:
        listener.listen(2048)
    except OSError as error:  # taken while the models were loaded
        raise UserError(f"{url_of(listener)}: cannot listen there any more ({error.strerror})") from error

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                print(f"Listening on {url_of(listener)} (reference: {url_of(listener)}/docs)", flush=True)

    config = uvicorn.Config(
        service.app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=math.ceil(service.settings.timeout) + 5,
    )
    # after its own handling uvicorn raises the signal again, which by default would end the process with an error
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)  # the thread that scores gets the interpreter back sooner from those that do JSON
    try:
        server = Server(config)
        server.run(sockets=[listener])
        return not server.force_exit
    finally:
        sys.setswitchinterval(interval)
        for number, handler in kept.items():
            signal.signal(number, handler)


def _check_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("uvicorn", "starlette") if find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs the package {missing[0]}, which is not installed: pip install 'inverselm[serve]'")


def _check_flags(args: Any) -> None:
    from ..inputs.models import check_positive

    if args.baseline and args.reward not in ("auto", "log_ratio"):
        raise UserError(f"--baseline has no part in --reward {args.reward}; drop one of them")
    if not 0.0 <= args.gamma <= 1.0:
        raise UserError(f"--gamma is {args.gamma}; set it between 0 and 1")
    if not 0.0 < args.reward_floor <= 1.0:
        raise UserError(f"--reward_floor is {args.reward_floor}; set it above 0 and at most 1 (off)")
    if (args.reward_clip_low or 0.0) > 0.0 or (args.reward_clip_high or 0.0) < 0.0:
        raise UserError("--reward_clip_low must be at most 0, and --reward_clip_high at least 0")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port is {args.port}; set it from 0 (a free one) to 65535")
    if not 0.0 <= args.max_padding <= 1.0:
        raise UserError(f"--max_padding is {args.max_padding}; set it between 0 and 1")
    if args.max_wait_ms < 0:
        raise UserError(f"--max_wait_ms is {args.max_wait_ms}; set it to 0 or more")
    check_positive(args, ("batch_size", "max_batch_tokens", "max_queue", "max_rows", "max_row_tokens"))
    for name in ("max_body_mb", "request_timeout"):
        if not getattr(args, name) > 0:
            raise UserError(f"--{name} is {getattr(args, name)}; set it above 0")
    if args.max_rows > args.max_queue:
        raise UserError(
            f"--max_rows {args.max_rows} is more than --max_queue {args.max_queue}: such a request would never be "
            "taken; raise --max_queue, or lower --max_rows"
        )


def _check_options(args: Any, kind: str, baselines: list[str]) -> None:
    """What is said of the log-ratio needs one."""
    if args.centre_rewards and len(baselines) > 1:
        raise UserError("--centre_rewards is defined for one baseline; name one, or leave it out")
    fields = {f.name: f.default for f in dataclasses.fields(ServeArguments)}
    for name in ("baseline_mix", "reward_floor", "reward_clip_low", "reward_clip_high", "centre_rewards"):
        if kind != "log_ratio" and getattr(args, name) != fields[name]:
            raise UserError(f"--{name} is an option of the log_ratio reward, but this is {kind}; leave it out")


def _api_key(args: Any) -> str | None:
    if args.api_key_env is None:
        return None
    key = os.environ.get(args.api_key_env, "").strip()
    if not key:
        raise UserError(f"--api_key_env {args.api_key_env}: this environment variable is not set, or empty")
    return key


def _warn_of_strangers(args: Any, key: str | None) -> None:
    if key is None:
        text = "anyone who reaches it can use it: there is no authentication; see --api_key_env"
    else:
        text = "requests and the key travel unencrypted"
    print(f"Warning: --host {args.host} is not this machine alone, and {text}.", file=sys.stderr, flush=True)
