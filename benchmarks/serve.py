"""`inverselm serve` under many clients beside offline scoring of the same rows, with the same scorer and threads.

    offline  TokenReward.score_ids of all rows, as ids, in one call: no text, no JSON, no network
    served   50 clients in a process of their own, each with one row at a time over a connection of its own, until all
             rows are answered; the server is a thread of this process, its scorer a thread with as many as torch has

`ids`: clients post token ids and leave the text out of the answers, as an RL stack does. `text`: they post text, and
are given the text and place of every token. Rewards are checked against the offline ones before the clock runs.
Bar: offline / served throughput, which is served / offline time, <= 1.25 (0.8 of the offline rows per second).

Clients and the reading and writing of JSON need a core beside the one that scores. On a machine that others use, look
at the ratio "of the processor": seconds that all threads of this process (not the clients) kept a core busy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import MODES, Bar, Progress, Times, environment, finish, interleaved, parse, parser, size, table
from step import Shape

from scoring import make_rows

BAR = 1.25
Rows = list[tuple[list[int], list[int]]]


def arguments() -> argparse.Namespace:
    options = parser(__doc__, repeats=5, seconds=120, modes=("float32",))
    options.set_defaults(threads=1)
    add = options.add_argument
    add("--size", type=size, default=(256, 32768), metavar="HxV", help="hidden size and vocabulary of the two models")
    add("--layers", type=int, default=4, help="of each model")
    add("--clients", type=int, default=50, help="that ask at the same time")
    add("--answers", type=int, default=300, help="rows in all")
    add("--per-prompt", nargs="+", type=int, default=[1, 8], help="answers to a prompt")
    add("--prompt-length", nargs=2, type=int, default=[32, 96], metavar=("MIN", "MAX"), help="tokens of a prompt")
    add("--answer-length", nargs=2, type=int, default=[16, 192], metavar=("MIN", "MAX"), help="tokens of an answer")
    add("--rows", nargs="+", default=["ids", "text"], choices=["ids", "text"], help="what clients post")
    add("--batch-size", type=int, default=16, help="rows of a forward pass, at most")
    add("--max-padding", type=float, default=0.1, help="of a batch, as the flag of `inverselm serve`")
    add("--switch-interval", type=float, default=0.0005, help="of the interpreter, seconds, as the server sets it")
    return parse(options)


# ---- clients: a process of their own ---------------------------------------------------------------------------------
def clients(path: str, count: int) -> None:
    """For every line on stdin: send the bodies of the JSON file to its port, `count` at a time; print the outcome."""
    task = json.loads(Path(path).read_text(encoding="utf-8"))
    head = "POST /v1/token_rewards HTTP/1.1\r\nHost: benchmark\r\nContent-Length: {}\r\n\r\n"
    requests = [head.format(len(body.encode())).encode() + body.encode() for body in task["bodies"]]
    for line in sys.stdin:
        answers, seconds = asyncio.run(_ask(task["port"], requests, count))
        rewards = [json.loads(a)["rows"][0]["rewards"] for a in answers] if line.strip() == "check" else None
        slowest = sorted(seconds)
        percentiles = {name: slowest[int(share * (len(slowest) - 1))] for name, share in (("p50", 0.5), ("p95", 0.95))}
        print(json.dumps({"rewards": rewards, **percentiles}), flush=True)


async def _ask(port: int, requests: list[bytes], count: int) -> tuple[list[bytes], list[float]]:
    answers, seconds = [b""] * len(requests), [0.0] * len(requests)
    todo = iter(range(len(requests)))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in todo:
            begin = time.perf_counter()
            writer.write(requests[number])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            seconds[number] = time.perf_counter() - begin
            if not head.startswith(b"http/1.1 200"):
                raise RuntimeError(body.decode())
            answers[number] = body
        writer.close()

    await asyncio.gather(*(client() for _ in range(count)))
    return answers, seconds


class Clients:
    """The clients' process, started once and used for every repeat."""

    def __init__(self, port: int, bodies: list[str], count: int, folder: str) -> None:
        path = Path(folder) / "bodies.json"
        path.write_text(json.dumps({"port": port, "bodies": bodies}), encoding="utf-8")
        command = [sys.executable, __file__, "--as-clients", str(path), str(count)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.last: dict[str, Any] = {}

    def run(self, word: str = "go") -> None:
        """All rows once; `check` keeps the rewards.

        Raises:
            RuntimeError: the process ended.
        """
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the clients failed")
        self.last = json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


# ---- the server: a thread --------------------------------------------------------------------------------------------
@contextmanager
def server(scorer: Any, args: argparse.Namespace) -> Iterator[tuple[Any, int]]:
    """A service with the defaults of `inverselm serve`, and its port."""
    import uvicorn

    from inverselm.integrations.rows import RowReader
    from inverselm.integrations.server import RewardService, Settings
    from inverselm.scorers import encode_pair

    settings = Settings(batch_size=args.batch_size, max_padding=args.max_padding)
    service = RewardService(scorer, RowReader(scorer.tokenizer, encode_pair), settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = uvicorn.Server(uvicorn.Config(service.app, log_level="warning", access_log=False, lifespan="on"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield service, listener.getsockname()[1]
        running.should_exit = True
        thread.join()


# ---- measuring -------------------------------------------------------------------------------------------------------
def worded(rows: Rows, vocab: int) -> tuple[Any, list[tuple[str, str]], Rows]:
    """A tokenizer, and rows of about the same lengths as text and as the ids of it."""
    from inverselm.scorers import encode_pair
    from inverselm.training.scratch_tokenizer import build_tokenizer

    generator = torch.Generator().manual_seed(1)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "ou", "ai")]

    def word() -> str:
        count = int(torch.randint(1, 4, (), generator=generator))
        return "".join(syllables[int(k)] for k in torch.randint(0, len(syllables), (count,), generator=generator))

    words = [word() for _ in range(1500)]
    tokenizer = build_tokenizer({"type": "bpe", "vocab_size": min(3000, vocab)}, [" ".join(words)])

    def text(count: int) -> str:
        return "".join(" " + words[int(k)] for k in torch.randint(0, len(words), (count,), generator=generator))

    prompts = {tuple(p): text(len(p)) for p, _ in rows}
    pairs = [(prompts[tuple(p)], text(max(1, len(a) - 1))) for p, a in rows]
    encoded = [encode_pair(tokenizer, *pair) for pair in pairs]
    return tokenizer, pairs, [(pair.prompt_ids, pair.completion_ids) for pair in encoded]


def measure(mode: str, per_prompt: int, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    from inverselm import TokenReward

    tokenizer, pairs, rows = worded(make_rows(per_prompt, args), args.size[1])
    longest = max(len(p) + len(a) for p, a in rows)
    shape = Shape("llama", *args.size, tied=False)
    models = [shape.model(args.layers, longest, seed).to(MODES[mode][0]).eval() for seed in (0, 1)]
    scorer = TokenReward.from_checkpoints(*models, tokenizer=tokenizer)
    if kind == "ids":
        contents: list[Any] = [{"prompt_ids": p, "completion_ids": a, "return_text": False} for p, a in rows]
    else:
        contents = [{"prompt": p, "completion": a} for p, a in pairs]
    prompts, answers = [p for p, _ in rows], [a for _, a in rows]
    offline = lambda: scorer.score_ids(prompts, answers, batch_size=args.batch_size)
    with tempfile.TemporaryDirectory() as folder, server(scorer, args) as (service, port):
        crowd = Clients(port, [json.dumps(content) for content in contents], args.clients, folder)
        latencies: list[dict[str, float]] = []
        work: dict[str, list[float]] = {"offline": [], "served": []}

        def clocked(name: str, run: Callable[[], Any]) -> None:
            begin = time.process_time()
            run()
            work[name].append(time.process_time() - begin)

        def served() -> None:
            crowd.run()
            latencies.append(crowd.last)

        contestants = {"offline": partial(clocked, "offline", offline), "served": partial(clocked, "served", served)}

        crowd.run("check")  # the warm-up
        check(crowd.last["rewards"], offline(), mode)
        before = service.batch_rows.text()
        times = interleaved(contestants, repeats=args.repeats, seconds=args.seconds)
        batches = _mean_batch(before, service.batch_rows.text())
        crowd.close()
    tokens = sum(len(p) + len(a) for p, a in rows)
    middle = {name: sorted(x[name] for x in latencies)[len(latencies) // 2] for name in ("p50", "p95")}
    cpu = {name: Times(tuple(seconds)) for name, seconds in work.items()}
    return {"times": times, "cpu": cpu, "tokens": tokens, "batch_rows": batches, "latency": middle}


def check(found: list[list[float]], expected: Any, mode: str) -> None:
    """Every row's rewards are those of offline scoring.

    Raises:
        RuntimeError: they are not.
    """
    apart = max(
        float((torch.tensor(row) - scores.rewards).abs().max()) for row, scores in zip(found, expected, strict=True)
    )
    if not apart <= (1e-3 if mode == "float32" else 0.2):
        raise RuntimeError(f"{mode}: served rewards differ from offline ones by {apart:.3g} nats")


def _mean_batch(before: str, after: str) -> float:
    """Rows of a batch, of two readings of the histogram."""

    def read(text: str, name: str) -> float:
        return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)

    rows, count = (
        read(after, f"inverselm_batch_rows_{part}") - read(before, f"inverselm_batch_rows_{part}")
        for part in ("sum", "count")
    )
    return rows / count


def main() -> None:
    if sys.argv[1:2] == ["--as-clients"]:
        return clients(sys.argv[2], int(sys.argv[3]))
    args, where = arguments(), environment()
    sys.setswitchinterval(args.switch_interval)
    plan = list(product(args.modes, args.per_prompt, args.rows))
    progress = Progress("serve", len(plan))
    rows: list[dict[str, Any]] = []
    lines, bars = [], []
    for mode, per_prompt, kind in plan:
        progress.at(f"{mode}, {per_prompt} to a prompt, {kind}", 1)
        found = measure(mode, per_prompt, kind, args)
        times, tokens = found["times"], found["tokens"]
        bars.append(Bar.of("served/offline", times["served"], times["offline"], BAR))
        effort = Bar.of("of the processor", found["cpu"]["served"], found["cpu"]["offline"])
        share = times["offline"].median / times["served"].median
        line = {"mode": mode, "per prompt": per_prompt, "rows": kind, "clients": args.clients, "tokens": tokens}
        line |= {bars[-1].name: bars[-1], effort.name: effort, "throughput of offline": f"{share:.0%}"}
        line |= {f"{name}, s": t for name, t in times.items()}
        line |= {
            "rows/s": f"{args.answers / times['served'].median:.0f}",
            "rows of a batch": f"{found['batch_rows']:.1f}",
        }
        line |= {f"{name}, ms": f"{1000 * value:.0f}" for name, value in found["latency"].items()}
        lines.append(line)
        rows.append(
            {
                "mode": mode,
                "per_prompt": per_prompt,
                "rows": kind,
                "clients": args.clients,
                "answers": args.answers,
                "tokens": tokens,
                "throughput": share,
                "batch_rows": found["batch_rows"],
                "latency_seconds": found["latency"],
                "seconds": {name: t.as_dict() for name, t in times.items()},
                "processor_seconds": {name: t.as_dict() for name, t in found["cpu"].items()},
                "bars": [bars[-1].as_dict()],
            }
        )
    title = (
        "Serving: ratio of medians (min..max within a repeat) and its bar, medians (min..max), latencies of a request"
    )
    finish("serve", args, where, {title: table(lines)}, bars, rows=rows)


if __name__ == "__main__":
    main()
