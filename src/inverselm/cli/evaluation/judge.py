"""`inverselm judge`: whose answers does a judge prefer?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ..arguments import Help, parse

if TYPE_CHECKING:
    from ...evaluation.judge_cache import ReplyCache
    from ...evaluation.judge_endpoint import Endpoint
    from ...evaluation.judge_run import Plan


@dataclass
class JudgeArguments:
    """Flags of `inverselm judge`."""

    runs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "name=file, the run to compare with first; one file per seed, comma-separated: "
            "sft=s0.jsonl,s1.jsonl dpr=d0.jsonl,d1.jsonl. The k-th files of all runs belong together."
        },
    )
    judge_url: str | None = field(
        default=None,
        metadata={"help": "Base of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1."},
    )
    judge_model: str | None = field(default=None, metadata={"help": "The judge's name there."})
    api_key_env: str | None = field(
        default=None,
        metadata={
            "help": "Environment variable that holds the API key. Default: OPENAI_API_KEY if it is set, over https or "
            "to this machine."
        },
    )
    reference_column: str | None = field(
        default=None, metadata={"help": "Show the judge the reference answer in this column of the first run's rows."}
    )
    template: str | None = field(
        default=None,
        metadata={
            "help": "Text file with the prompt: {prompt}, {answer_a}, {answer_b}, if wanted {criteria}, {reference}."
        },
    )
    criteria: str | None = field(default=None, metadata={"help": "What counts, for {criteria} of the prompt."})
    marks: list[str] = field(
        default_factory=list,
        metadata={"help": "What the judge's last line says: A better, B better, neither. Default: [[A]] [[B]] [[C]]."},
    )
    where: list[str] = field(
        default_factory=list, metadata={"help": "Only rows with column=value, such as sampler=greedy."}
    )
    num_prompts: int | None = field(
        default=None, metadata={"help": "Judge so many of the prompts, drawn at random by --seed. Default: all."}
    )
    samples_per_prompt: int | None = field(
        default=None, metadata={"help": "Answers per prompt, the k-th against the k-th. Default: all that both have."}
    )
    temperature: float = field(default=0.0, metadata={"help": "Of the judge."})
    max_tokens: int = field(default=1024, metadata={"help": "Longest answer of the judge, in tokens."})
    extra_body: str | None = field(
        default=None,
        metadata={
            "help": "JSON object of further fields of each request; null leaves one out: "
            '\'{"max_tokens": null, "max_completion_tokens": 2048}\'.'
        },
    )
    concurrency: int = field(default=8, metadata={"help": "Requests under way at a time."})
    timeout: float = field(default=120.0, metadata={"help": "Seconds until a request counts as lost."})
    retries: int = field(default=6, metadata={"help": "Further tries of a request, after ever longer waits."})
    price_prompt: float | None = field(default=None, metadata={"help": "Price of a million prompt tokens."})
    price_completion: float | None = field(default=None, metadata={"help": "Price of a million completion tokens."})
    max_requests: int | None = field(
        default=None, metadata={"help": "Send nothing if more requests than this are needed."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Say what would be sent and what it would cost; stop."})
    yes: bool = field(default=False, metadata={"help": "Do not ask before requests leave this machine."})
    num_samples: int = field(default=10_000, metadata={"help": "Bootstrap resamples, and permutations."})
    alpha: float = field(
        default=0.05, metadata={"help": "Level of the tests; intervals hold with probability 1 - alpha."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of resamples, permutations and --num_prompts."})
    output_dir: str = field(default="judged", metadata={"help": "Folder for judge.json, judge.csv, pairs.jsonl."})
    cache_file: str | None = field(
        default=None, metadata={"help": "JSONL that keeps the judge's replies. Default: cache.jsonl in --output_dir."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace earlier results; the cache stays."})


GUIDE = Help(
    "Pairwise win rates from a judge behind any OpenAI-compatible chat API: every run's answers against the first "
    "run's, on the same prompts, each pair in both orders; if the orders disagree it is a tie. Reads files of one JSON "
    "line per answer, as generate and evaluate write them.\nSays before the start how much will be sent. Replies are "
    "kept in a cache: a run that was stopped goes on with the same command, and nothing is paid for twice. Gives win "
    "rates with bootstrap intervals, tests, the rate at equal length, and how much the judge went by position.",
    (
        "inverselm judge --runs sft=sft.jsonl dpr=dpr.jsonl --judge_url http://127.0.0.1:8000/v1 --judge_model NAME",
        "inverselm judge --runs sft=s0.jsonl,s1.jsonl,s2.jsonl dpr=d0.jsonl,d1.jsonl,d2.jsonl --judge_model NAME \\\n"
        "      --judge_url https://HOST/v1 --price_prompt 2.5 --price_completion 10 --dry_run",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, pair, say what it costs, ask, aggregate, print, write."""
    (args,) = parse(command, (JudgeArguments,), argv, GUIDE)
    from ..common import quiet_libraries
    from .compare_inputs import parse_runs
    from .judge_inputs import check_folder, read_pairs
    from .judge_report import estimate, print_results, write_results

    quiet_libraries()
    _check_flags(args)
    runs = parse_runs(args.runs)
    prompting, endpoint = _prompting(args), _endpoint(args)
    args.output_dir = str(Path(args.output_dir).expanduser())
    cache_path = str(Path(args.cache_file or Path(args.output_dir) / "cache.jsonl").expanduser())
    check_folder(args, [file for files in runs.values() for file in files], cache_path)
    pairs, notes = read_pairs(runs, args)
    from ...evaluation.judge_cache import ReplyCache
    from ...evaluation.judge_run import make_plan
    from ...evaluation.win_rate import win_rates

    plan, cache = make_plan(pairs, prompting, endpoint), ReplyCache(cache_path)
    missing = plan.missing(cache)
    print(estimate(args, plan, missing, cache_path))
    if args.max_requests is not None and len(missing) > args.max_requests:
        raise UserError(
            f"{len(missing):,} requests are needed, and --max_requests is {args.max_requests:,}: raise it, or judge "
            "fewer prompts with --num_prompts"
        )
    if args.dry_run or not _agreed(args, endpoint, len(missing)):
        print("Nothing was sent.")
        return
    for folder in (Path(args.output_dir), Path(cache_path).parent):
        folder.mkdir(parents=True, exist_ok=True)
    failed = _ask(plan, cache, cache_path)
    judged = plan.read(cache)
    found = win_rates(judged, next(iter(runs)), n=args.num_samples, alpha=args.alpha, seed=args.seed)
    facts = print_results(args, found, plan, cache, set(missing), failed, notes)
    settings = {k: v for k, v in vars(args).items() if k not in ("overwrite", "yes", "dry_run")} | {"runs": runs}
    asked = {"template": prompting.template, "criteria": prompting.criteria, "marks": prompting.marks}
    write_results(Path(args.output_dir), found, judged, {"settings": settings, "prompt": asked, **facts})
    print(f"\nWrote {args.output_dir}: judge.json, judge.csv, pairs.jsonl. The judge's reasons are in pairs.jsonl.")


def _check_flags(args: Any) -> None:
    from ...inputs.models import check_positive

    for name in ("runs", "where", "marks"):  # a YAML file may hold one of them as text
        if isinstance(getattr(args, name), str):
            setattr(args, name, getattr(args, name).split())
    if not args.judge_url:
        raise UserError("no judge: pass --judge_url, the base of its API, such as http://127.0.0.1:8000/v1")
    if not args.judge_model:
        raise UserError("no judge: pass --judge_model, the model's name at the endpoint")
    if not 0 < args.alpha < 1:
        raise UserError(f"--alpha is {args.alpha}; set it between 0 and 1")
    check_positive(
        args,
        ("num_samples", "num_prompts", "samples_per_prompt", "max_tokens", "concurrency", "max_requests"),
    )
    if args.num_prompts == 1:
        raise UserError("--num_prompts is 1; judging needs at least two prompts")
    for name in ("temperature", "price_prompt", "price_completion"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < float("inf"):
            raise UserError(f"--{name} is {value}; set it to 0 or more")


def _prompting(args: Any) -> Any:
    from ...evaluation.judging import Prompting

    given: dict[str, Any] = {}
    if args.template:
        try:
            given["template"] = Path(args.template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--template {args.template}: cannot be read ({error})") from error
    if args.criteria:
        given["criteria"] = args.criteria
    if args.marks:
        given["marks"] = args.marks
    prompting = Prompting(**given)
    if args.reference_column and not prompting.shows_reference:
        raise UserError(f"--reference_column: {args.template} has no {{reference}}")
    if args.criteria and "{criteria}" not in prompting.template:
        raise UserError(f"--criteria: {args.template} has no {{criteria}}")
    return prompting


def _endpoint(args: Any) -> Endpoint:
    from ...evaluation.judge_endpoint import Endpoint
    from .judge_inputs import extra_fields

    options = {"temperature": args.temperature, "max_tokens": args.max_tokens, **extra_fields(args.extra_body)}
    return Endpoint(
        args.judge_url,
        args.judge_model,
        options,
        key_env=args.api_key_env,
        timeout=args.timeout,
        retries=args.retries,
        concurrency=args.concurrency,
    )


def _agreed(args: Any, endpoint: Endpoint, count: int) -> bool:
    """Requests leave this machine only after a yes: the flag, or at the terminal."""
    if not count or args.yes or endpoint.local:
        return True
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(f"{count:,} requests would leave this machine: pass --yes to send them, or --dry_run")
    try:
        return input("Send them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _ask(plan: Plan, cache: ReplyCache, cache_path: str) -> dict[str, str]:
    """Stops, by the user or by an error, say that what came is kept."""
    try:
        return plan.ask(cache)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{_kept(cache, cache_path)}; the same command goes on from there.") from error
    except UserError as error:
        raise UserError(f"{error}. {_kept(cache, cache_path)}") from error


def _kept(cache: ReplyCache, path: str) -> str:
    return f"{len(cache):,} {'reply is' if len(cache) == 1 else 'replies are'} kept in {path}"
