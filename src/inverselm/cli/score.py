"""`inverselm score`: token rewards of answers."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .arguments import Help, parse
from .heatmaps import terminal_heatmap, write_page
from .output import Chunks, check_output_file, in_chunks

if TYPE_CHECKING:
    from ..scorers import ScoredCompletion, TokenScorer

CHUNK = 32  # batches between two saves
REWARDS = ("auto", "log_ratio", "bellman", "log_prob")


@dataclass
class ScoreArguments:
    """Flags of `inverselm score`."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The SFT folder (its baseline is found there), or an IQLearn model."}
    )
    baseline: str | None = field(
        default=None,
        metadata={"help": "Earlier checkpoint(s) of the SFT run, comma-separated. Default: the one in its folder."},
    )
    reward: str = field(
        default="auto",
        metadata={
            "help": "log_ratio: log pi_SFT - log pi_baseline; bellman: Q - gamma V' of one model; log_prob: log pi. "
            "auto takes bellman for an IQLearn folder, else log_ratio.",
            "choices": list(REWARDS),
        },
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount of the bellman reward."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Answers to score: rows with prompt and completion (file, folder or hub name)."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split, or a slice such as train[:100]."})
    prompt: str | None = field(default=None, metadata={"help": "Score one answer: its prompt."})
    completion: str | None = field(default=None, metadata={"help": "Score one answer: its text."})
    add_eos: bool = field(
        default=True,
        metadata={"help": "End each answer with EOS, as in training; rows with finished=false are cut, and get none."},
    )
    output_file: str | None = field(
        default=None, metadata={"help": "JSONL to write; default: scores.jsonl for a dataset."}
    )
    html: str | None = field(
        default=None, metadata={"help": "Write a page of token heatmaps here (first --html_rows rows)."}
    )
    html_rows: int = field(default=50, metadata={"help": "Rows in the page of heatmaps."})
    batch_size: int = field(default=16, metadata={"help": "Answers per forward pass."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Dtype of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    device: str | None = field(default=None, metadata={"help": "Default: the GPU if there is one."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run a checkpoint's own Python code."})
    overwrite: bool = field(default=False, metadata={"help": "Replace existing output files."})
    resume: bool = field(default=False, metadata={"help": "Continue what an interrupted run with these flags wrote."})


GUIDE = Help(
    "Token rewards of answers: one number per token, in nats, with its place in the text. From an SFT run (two "
    "checkpoints) the dense reward log pi_SFT - log pi_baseline; from an IQLearn model Q - gamma V'. One JSON line per "
    "answer: the row's own columns, scored_text, tokens (token_id, text, start, end, reward), reward, terminated.",
    (
        "inverselm score --model_name_or_path runs/sft --prompt '2+2=' --completion '5'",
        "inverselm score --model_name_or_path runs/sft --dataset_name answers.jsonl --output_file scored.jsonl",
        "inverselm score --model_name_or_path SFT --baseline EARLIER --dataset_name answers.jsonl "
        "\\\n      --html heatmap.html",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, score, write."""
    (args,) = parse(command, (ScoreArguments,), argv, GUIDE)
    from .common import quiet_libraries
    from .models import resolve_device

    quiet_libraries()
    _check_flags(args)
    single = args.prompt is not None
    output = args.output_file or (None if single else "scores.jsonl")
    _check_files(args, output)
    kind, baselines, config = _check_models(args)
    rows = [{"prompt": args.prompt, "completion": args.completion}] if single else _answers(args)
    rows = _with_room(rows, args, config)
    settings = {name: getattr(args, name) for name in ("model_name_or_path", "gamma", "dataset_name", "dataset_split")}
    settings |= {"reward": kind, "baselines": baselines, "add_eos": args.add_eos, "rows": len(rows)}
    chunks = Chunks(output, settings, args.resume) if output else None
    args.device = resolve_device(args.device)
    if chunks is None:
        scored = _score(load_scorer(args, kind, baselines), rows, args)
        print(terminal_heatmap(scored[0], color=sys.stdout.isatty()))
        records = [record(row, s) for row, s in zip(rows, scored, strict=True)]
    else:
        with chunks.interruptible():
            scorer = load_scorer(args, kind, baselines)
            for part in in_chunks(len(rows), CHUNK * args.batch_size, chunks.chunks_done, "Scoring", "answer"):
                some = rows[part.start : part.stop]
                scored = _score(scorer, some, args)
                chunks.write(record(row, s) for row, s in zip(some, scored, strict=True))
                if single:
                    print(terminal_heatmap(scored[0], color=sys.stdout.isatty()))
        records, tokens = [], 0
        for number, item in enumerate(chunks.records()):
            tokens += len(item["tokens"])
            records += [item] if number < args.html_rows else []
        chunks.finish()
        print(f"Wrote {output}: {len(rows):,} answers, {tokens:,} token rewards.")
    if args.html:
        write_page(args.html, records[: args.html_rows], f"Token rewards of {args.model_name_or_path}")
        print(f"Wrote {args.html}: open it in a browser.")
    print(_closing(args, kind))


def _check_flags(args: Any) -> None:
    from .models import check_positive

    if (args.prompt is None) != (args.completion is None):
        raise UserError("--prompt and --completion go together")
    if (args.prompt is not None) == bool(args.dataset_name):
        raise UserError("pass either --dataset_name <answers>, or --prompt and --completion")
    if args.prompt is not None and not args.prompt.strip():
        raise UserError("--prompt is empty: the first token would have no state to be chosen in")
    if args.completion is not None and not args.completion.strip():
        raise UserError("--completion is empty: there is no token to score")
    if args.baseline and args.reward not in ("auto", "log_ratio"):
        raise UserError(f"--baseline has no part in --reward {args.reward}; drop one of them")
    if not 0.0 <= args.gamma <= 1.0:
        raise UserError(f"--gamma is {args.gamma}; set it between 0 and 1")
    check_positive(args, ("batch_size", "html_rows"))


def _check_files(args: Any, output: str | None) -> None:
    for flag, path in (("--output_file ", output), ("--html ", args.html)):
        if path:
            check_output_file(path, overwrite=args.overwrite, inputs=[args.dataset_name], flag=flag)
    if output and args.html and Path(output).absolute() == Path(args.html).absolute():
        raise UserError("--output_file and --html are the same file; name two")
    if args.resume and not output:
        raise UserError("--resume continues an --output_file; there is none")


def _check_models(args: Any) -> tuple[str, list[str], Any]:
    """The kind of reward that the flags or the folder's marker ask for, its baselines, the model's configuration."""
    from ..scorers.markers import read_marker
    from .models import check_model, check_reward_models

    config = check_model(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    marker = read_marker(args.model_name_or_path)
    kind = args.reward
    if kind == "auto":
        kind = "bellman" if marker.get("role") == "iqlearn" and not args.baseline else "log_ratio"
    if kind == "bellman" and args.gamma == 1.0:
        args.gamma = marker.get("gamma", 1.0)
    if kind != "log_ratio":
        return kind, [], config
    return kind, check_reward_models(args.model_name_or_path, args.baseline, args.trust_remote_code), config


def _answers(args: Any) -> list[dict[str, Any]]:
    from .data import check_demonstrations, load_rows

    rows = load_rows(args.dataset_name, split=args.dataset_split)
    sampled = "finished" in rows.column_names  # by `inverselm generate`: a model may answer with EOS alone
    found = check_demonstrations(rows, args.dataset_name, need="answers", allow_empty=sampled)
    if found == "messages":
        name = "messages" if "messages" in rows.column_names else "conversations"
        raise UserError(
            f"{args.dataset_name}: score needs 'prompt' and 'completion'; split '{name}': all but the last message are "
            "the prompt, the last one the completion"
        )
    return [{k: v for k, v in row.items() if k != "__line__"} for row in rows]


def _ends(row: dict[str, Any], args: Any) -> bool:
    return bool(args.add_eos and row.get("finished", True) is not False)


def _with_room(rows: list[dict[str, Any]], args: Any, config: Any) -> list[dict[str, Any]]:
    """Leave out rows without a token to score, or with more than the model has positions, and say how many."""
    from .common import check_chat_template
    from .models import load_tokenizer

    tokenizer = load_tokenizer(args.model_name_or_path, None, args.trust_remote_code)
    encode, fits, positions = _measures(config)
    kind = "prompt" if isinstance(rows[0]["prompt"], str) else "conversational-prompt"
    check_chat_template(tokenizer, kind, args.dataset_name or "--prompt")
    kept, empty, longer = [], 0, 0
    for row in rows:
        pair = encode(tokenizer, row["prompt"], row["completion"], _ends(row, args))
        if not pair.completion_ids:
            empty += 1
        elif not fits(len(pair.prompt_ids), len(pair.completion_ids)):
            longer += 1
        else:
            kept.append(row)
    if longer:
        where = f"longer than the model's {positions:,} positions"
        if not kept:
            raise UserError(f"every answer is, with its prompt, {where}" if len(rows) > 1 else f"the answer is {where}")
        print(f"{longer:,} of {len(rows):,} answers ({longer / len(rows):.1%}) are left out: {where}.")
    if empty:
        if not kept:
            raise UserError("no answer has a token to score")
        print(f"{empty:,} of {len(rows):,} answers ({empty / len(rows):.1%}) are left out: they have no token.")
    return kept


def _measures(config: Any) -> tuple[Any, Any, int | None]:
    """How the model's rows are tokenised, whether so many tokens of prompt and answer fit, its positions."""
    from ..scorers.seq2seq import encode_seq2seq_pair, position_limits
    from ..scorers.text import encode_pair
    from .models import positions_of

    if config.is_encoder_decoder:
        limits = position_limits(config)
        source, target = (math.inf if limit is None else limit for limit in limits)
        # the decoder's start token has a position too
        fits = lambda prompt, answer: prompt <= source and answer < target
        return encode_seq2seq_pair, fits, max((limit for limit in limits if limit is not None), default=None)
    positions = positions_of(config)
    return encode_pair, lambda prompt, answer: positions is None or prompt + answer <= positions, positions


def load_scorer(args: Any, kind: str, baselines: list[str]) -> TokenScorer:
    """The scorer of a kind of reward; its models are checked already."""
    from ..scorers import QFunctionReward, TokenReward

    loading = {"device": args.device, "dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    if kind == "log_ratio":
        return TokenReward.from_checkpoints(args.model_name_or_path, baselines, **loading)
    return QFunctionReward.from_checkpoint(args.model_name_or_path, kind=kind, gamma=args.gamma, **loading)


def _score(scorer: TokenScorer, rows: list[dict[str, Any]], args: Any) -> list[ScoredCompletion]:
    """Finished answers end with EOS, cut ones do not."""
    out: dict[int, ScoredCompletion] = {}
    for ends in (True, False):
        chosen = [i for i, row in enumerate(rows) if _ends(row, args) is ends]
        prompts, answers = ([rows[i][name] for i in chosen] for name in ("prompt", "completion"))
        if chosen:
            scored = scorer.score(prompts, answers, add_eos=ends, batch_size=args.batch_size)
            out.update(zip(chosen, scored, strict=True))
    return [out[i] for i in range(len(rows))]


def record(row: dict[str, Any], scored: ScoredCompletion) -> dict[str, Any]:
    """The input row with its scores: `tokens` (text, start, end, token_id, reward), `reward`, `terminated`."""
    return {
        **row,
        "scored_text": scored.text,
        "tokens": [token._asdict() for token in scored.tokens],
        "reward": scored.total,
        "terminated": scored.terminated,
    }


def _closing(args: Any, kind: str) -> str:
    from .common import shell

    model = ("--model_name_or_path", args.model_name_or_path, "--dataset_name")
    if args.prompt is not None:
        return "Next:\n" + shell("score", *model, "<answers>", "--html", "heatmap.html")
    if kind == "log_ratio":
        return "Next:\n" + shell("dpr", *model, "<prompts>", "--output_dir", "runs/dpr")
    return "Next: keep, drop or rank answers by their `reward`."
