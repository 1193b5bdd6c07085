"""`inverselm generate`: sample answers to prompts, and measure them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..evaluation.metrics import METRICS, compute_metrics
from .arguments import Help, parse
from .flags import LoadingFlags
from .output import Chunks, check_no_unfinished, check_output_file, in_chunks

DEFAULT_LENGTH = 256
CHUNK = 4  # batches between two saves
SETTINGS = ("max_new_tokens", "temperature", "top_p", "num_beams", "calculator", "batch_size", "seed")


@dataclass
class GenerateArguments(LoadingFlags):
    """Flags of `inverselm generate`."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or hub name of the model (or adapter)."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Prompts: rows with a prompt (file, folder, hub name)."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split, or a slice such as train[:100]."})
    output_file: str = field(default="generations.jsonl", metadata={"help": "JSONL to write, one line per answer."})
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": f"Longest answer, in tokens. Default: {DEFAULT_LENGTH}, or what the model has room for."},
    )
    temperature: float = field(default=1.0, metadata={"help": "0 is greedy."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling."})
    num_beams: int = field(default=1, metadata={"help": "Beam search (with --temperature 0)."})
    num_return: int = field(default=1, metadata={"help": "Answers per prompt."})
    batch_size: int = field(default=32, metadata={"help": "Prompts per batch."})
    guidance_weight: float | None = field(
        default=None,
        metadata={
            "help": "w: decode beyond the model, away from its baseline, from pi_SFT^(1+w) / pi_baseline^w at every "
            "token. 0 is the model itself."
        },
    )
    guided_by: str | None = field(
        default=None,
        metadata={
            "help": "The baseline of --guidance_weight. Default: the one that `inverselm sft` kept in the folder."
        },
    )
    calculator: bool = field(default=False, metadata={"help": "Fill in the results of GSM8K's <<a*b= marks."})
    metrics: list[str] = field(
        default_factory=list, metadata={"help": f"Measure against a reference column: {', '.join(METRICS)}."}
    )
    reference_column: str | None = field(
        default=None, metadata={"help": "Column with the reference; default: answer, else completion."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing output file."})
    resume: bool = field(default=False, metadata={"help": "Continue what an interrupted run with these flags wrote."})


GUIDE = Help(
    "Sample answers to prompts, and measure them if a metric is named. The same prompts, seed and batch size give the "
    "same answers. One JSON line per answer: prompt, completion, sample, finished (ended by EOS), reference, settings, "
    "token_ids. Compare models at several temperatures: each has its own best one.",
    (
        "inverselm generate --model_name_or_path runs/sft --dataset_name heldout.jsonl --temperature 0 "
        "\\\n      --metrics gsm8k --output_file greedy.jsonl",
        "inverselm generate --model_name_or_path runs/dpr --dataset_name test.jsonl --num_return 4 --metrics bleu chrf",
        "inverselm generate --model_name_or_path runs/sft --dataset_name valid.jsonl --guidance_weight 0.5",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, sample, write, measure."""
    (args,) = parse(command, (GenerateArguments,), argv, GUIDE)
    from ..inputs.models import check_model, load_tokenizer, positions_of, resolve_device
    from .common import quiet_libraries

    quiet_libraries()
    _check_flags(args)
    check_output_file(args.output_file, overwrite=args.overwrite, inputs=[args.dataset_name], flag="--output_file ")
    config = check_model(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    args.guided_by = _baseline(args)
    rows, references = _prompts(args)
    tokenizer = load_tokenizer(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    args.max_new_tokens = _room(rows, tokenizer, None if config.is_encoder_decoder else positions_of(config), args)
    settings = {name: getattr(args, name) for name in SETTINGS}
    guidance = {"guidance_weight": args.guidance_weight, "guided_by": args.guided_by}
    source = {"model": args.model_name_or_path, "data": args.dataset_name, "split": args.dataset_split}
    run_of = {**settings, **guidance, **source, "samples": args.num_return, "rows": len(rows)}
    settings |= {} if args.guidance_weight is None else guidance
    check_no_unfinished(args.output_file, resume=args.resume, overwrite=args.overwrite)
    output = Chunks(args.output_file, run_of, args.resume)
    device = resolve_device(args.device)
    with output.interruptible():
        model, baseline = _load(args, device)
        for part in in_chunks(len(rows), CHUNK * args.batch_size, output.chunks_done, "Generating", "prompt"):
            prompts = [rows[i]["prompt"] for i in part]
            answers = _sample(model, tokenizer, prompts, args, seed_of=output.chunks_done, guided_by=baseline)
            output.write(_records(rows, references, part, answers, settings))
    texts: list[list[str]] = [[] for _ in rows]
    finished = 0
    for number, record in enumerate(output.records()):
        texts[number // args.num_return].append(record["completion"])
        finished += record["finished"]
    output.finish()
    count = sum(map(len, texts))
    cut = 1 - finished / count
    print(f"Wrote {args.output_file}: {count:,} answers to {len(texts):,} prompts; {cut:.1%} truncated.")
    if references is not None:
        for name, value in compute_metrics(args.metrics, texts, references).items():
            print(f"  {name}: {value:.4g}")
    from .common import shell

    scored = ("--dataset_name", args.output_file, "--html", "heatmap.html")
    print("Next:\n" + shell("score", "--model_name_or_path", "<SFT folder>", *scored))


def _check_flags(args: Any) -> None:
    from ..inputs.models import check_positive

    unknown = [name for name in args.metrics if name not in METRICS]
    if unknown:
        raise UserError(f"unknown metric {unknown[0]}; known: {', '.join(METRICS)}")
    if not args.dataset_name:
        raise UserError("no prompts: pass --dataset_name <file, folder or hub dataset>")
    check_positive(args, ("max_new_tokens", "num_beams", "num_return", "batch_size"))
    if args.temperature < 0:
        raise UserError(f"--temperature is {args.temperature}; set it to 0 (greedy) or more")
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top_p is {args.top_p}; set it above 0 and at most 1")
    if args.num_beams > 1 and (args.temperature > 0 or args.calculator):
        raise UserError("--num_beams is beam search: it needs --temperature 0, and does not work with --calculator")
    if args.temperature == 0 and args.num_return > args.num_beams:
        raise UserError(f"--temperature 0 gives {args.num_beams} different answers; lower --num_return")


def _prompts(args: Any) -> tuple[list[dict[str, Any]], list[str] | None]:
    from ..inputs.data import check_demonstrations, load_rows

    rows = load_rows(args.dataset_name, split=args.dataset_split)
    check_demonstrations(rows, args.dataset_name, need="prompts")
    references = None
    if args.metrics:
        references = _references(rows, args)
        head = references if "gsm8k" in args.metrics else references[:1]
        compute_metrics(args.metrics, [[""]] * len(head), head)  # unusable references and missing packages, now
    return [{"prompt": prompt} for prompt in rows["prompt"]], references


def _room(rows: list[dict[str, Any]], tokenizer: Any, positions: int | None, args: Any) -> int:
    """The longest answer that every prompt leaves room for, at most what was asked for."""
    from ..scorers.text import prompt_ids
    from .common import check_chat_template

    kind = "prompt" if isinstance(rows[0]["prompt"], str) else "conversational-prompt"
    check_chat_template(tokenizer, kind, args.dataset_name)
    wanted = args.max_new_tokens or DEFAULT_LENGTH
    if positions is None:
        return wanted
    longest, row = max((len(prompt_ids(tokenizer, r["prompt"])), -i) for i, r in enumerate(rows))
    room = positions - longest
    if room < 1 or (args.max_new_tokens and room < wanted):
        fix = "shorten it" if room < 1 else f"shorten it, or lower --max_new_tokens to {room}"
        raise UserError(
            f"{args.dataset_name}: prompt {1 - row} has {longest:,} tokens, which leaves no room for "
            f"{wanted if args.max_new_tokens else 1} more in the model's {positions:,} positions; {fix}"
        )
    if room < wanted:
        print(f"Answers have at most {room} tokens: the model has {positions:,} positions.")
    return min(room, wanted)


def _baseline(args: Any) -> str | None:
    """The baseline that decoding is to go away from; None without guidance."""
    from ..inference.guided import check_weight
    from .guidance import check_guidance

    if args.guidance_weight is None:
        if args.guided_by is not None:
            raise UserError("--guided_by does nothing without --guidance_weight; set how far to go, 0.5 say")
        return None
    check_weight(args.guidance_weight, "--guidance_weight")
    return check_guidance(args.model_name_or_path, args.guided_by, args.trust_remote_code)


def _load(args: Any, device: str) -> tuple[Any, Any]:
    """The model and its baseline; None without guidance."""
    from .guidance import load_guided

    baseline = args.guided_by if args.guidance_weight else None
    loading = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    return load_guided(args.model_name_or_path, baseline, device=device, **loading)


def _sample(model: Any, tokenizer: Any, prompts: list[Any], args: Any, seed_of: int, guided_by: Any = None) -> Any:
    from ..evaluation.gsm8k import CalculatorLogitsProcessor
    from ..inference.generate import generate

    return generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        num_beams=args.num_beams,
        num_return=args.num_return,
        batch_size=args.batch_size,
        seed=args.seed + 1_000_000_007 * seed_of,
        logits_processor=CalculatorLogitsProcessor if args.calculator else None,
        guided_by=guided_by,
        guidance_weight=args.guidance_weight or 0.0,
        progress=False,
    )


def _references(rows: Any, args: Any) -> list[str]:
    names = [args.reference_column] if args.reference_column else ["answer", "completion"]
    for name in names:
        if name in rows.column_names:
            values = list(rows[name])
            bad = next((i for i, value in enumerate(values) if not isinstance(value, str)), None)
            if bad is not None:
                where = rows[bad].get("__line__") or f"{args.dataset_name}: row {bad + 1}"
                raise UserError(f"{where}: the reference in '{name}' is not text")
            return values
    there = ", ".join(f"'{name}'" for name in rows.column_names if name != "__line__")
    raise UserError(
        f"{args.dataset_name}: --metrics needs a column with references ({' or '.join(names)}), but has {there}; "
        "name it with --reference_column"
    )


def _records(rows: Any, references: Any, part: range, answers: Any, settings: dict[str, Any]) -> Any:
    for i, group in zip(part, answers, strict=True):
        for k, answer in enumerate(group):
            item = {"prompt": rows[i]["prompt"], "completion": answer.text, "sample": k, "finished": answer.finished}
            if references is not None:
                item["reference"] = references[i]
            yield item | settings | {"token_ids": list(answer.token_ids)}
