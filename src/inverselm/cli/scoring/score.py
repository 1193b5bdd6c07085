"""`inverselm score`: token rewards of answers."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ..arguments import parse
from ..flags import REWARDS
from ..output import Chunks, check_no_unfinished, check_output_file
from .heatmaps import terminal_heatmap, write_page
from .score_flags import GUIDE, ScoreArguments
from .score_report import closing, say_left_out, written

if TYPE_CHECKING:
    from ...scorers import TokenScorer
    from ...scoring import RowScorer, ScoredRow
    from .score_input import Survey

__all__ = ["CHUNK", "REWARDS", "ScoreArguments", "load_scorer", "row_scorer", "run"]

CHUNK = 32  # batches that are in memory at once; between two saves of a JSONL file


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, score, write."""
    (args,) = parse(command, (ScoreArguments,), argv, GUIDE)
    from ..common import quiet_libraries
    from .score_scale import Place

    quiet_libraries()
    _check_flags(args)
    place = Place()
    if place.world > 1 and args.backend == "ray":
        raise UserError("--backend ray starts its processes itself: leave the launcher out")
    single = args.prompt is not None
    output = args.output_dir or args.output_file or (None if single else "scores.jsonl")
    in_shards = bool(args.output_dir) or str(output).endswith(".parquet")
    args.on_error = args.on_error or ("keep" if in_shards else "skip")
    if single or not (in_shards or place.world > 1 or args.backend == "ray"):
        if place.is_first:
            _check_files(args, output)
            _one_process(args, output)
        return
    if place.is_first:
        _check_files(args, output)
    from .score_scale import first_records, run_shards

    done = run_shards(args, place, str(output))
    if done is not None:
        counts, kind = done
        say_left_out(counts, args.on_error)
        answers = written(counts, args.on_error == "keep")
        print(f"Wrote {output}: {answers:,} answers, {counts['tokens']:,} token rewards.")
        if args.html:
            _page(args, first_records(args, str(output), args.html_rows))
        print(closing(args, kind, output))


def _one_process(args: Any, output: str | None) -> None:
    """One answer, or a dataset into one JSONL file that grows."""
    from ...inputs.models import resolve_device
    from ...scoring.tables import record

    single = args.prompt is not None
    kind, baselines, config = _check_models(args)
    found = None if single else _look_through(args)
    args.device = resolve_device(args.device)
    scorer = row_scorer(args, kind, baselines, config, found)
    chunks = Chunks(output, _settings(args, kind, baselines, config, found), args.resume) if output else None
    if found is None:
        row = {"prompt": args.prompt, "completion": args.completion}
        (scored,) = _score(scorer, [row])
        if scored.scored is None:
            raise UserError(f"the answer is {scorer.too_long}" if scored.reason == "long" else scored.error)
        print(terminal_heatmap(scored.scored, color=sys.stdout.isatty()))
        records = [record(row, scored)]
        if chunks is not None:
            chunks.write(records)
            chunks.finish()
            print(f"Wrote {output}: 1 answers, {len(scored.scored.tokens):,} token rewards.")
    else:
        assert chunks is not None
        records = _into_one_file(args, scorer, found, chunks)
    if args.html:
        _page(args, records)
    print(closing(args, kind, output))


def _into_one_file(args: Any, scorer: RowScorer, found: Survey, chunks: Chunks) -> list[dict[str, Any]]:
    """Chunk after chunk; returns the first records that have scores."""
    from tqdm.auto import tqdm

    from ...scoring.folder import count_rows
    from ...scoring.rows import kept_rows
    from ...scoring.tables import record

    counts = dict(chunks.facts)
    source, errors = found.open(), args.on_error == "keep"
    done = sum(shard.rows for shard in found.shards[: chunks.chunks_done])
    with chunks.interruptible(), tqdm(total=found.rows, initial=done, desc="Scoring", unit="answer") as bar:
        for shard in found.shards[chunks.chunks_done :]:
            (table,) = source.tables(shard, shard.rows)
            rows = table.to_pylist()
            scored = _score(scorer, rows)
            kept = kept_rows(scored, args.on_error, lambda i, shard=shard: found.where(shard, i))
            count_rows(scored, counts)
            chunks.write((record(rows[i], scored[i], errors=errors) for i in kept), counts)
            bar.update(len(rows))
    if not counts.get("rows") and not errors:
        chunks.discard()
        if not counts.get("long"):
            raise UserError("no answer has a token to score")
        what = "every answer is, with its prompt," if found.rows > 1 else "the answer is"
        raise UserError(f"{what} {scorer.too_long}")
    tokens, records = counts["tokens"], []
    for item in chunks.records():
        if len(records) == (args.html_rows if args.html else 0):
            break
        records += [item] if item["tokens"] else []
    chunks.finish()
    say_left_out(counts, args.on_error, scorer.too_long)
    print(f"Wrote {chunks.path}: {written(counts, errors):,} answers, {tokens:,} token rewards.")
    return records


def _settings(args: Any, kind: str, baselines: list[str], config: Any, found: Survey | None) -> dict[str, Any]:
    """What must be the same to go on with a file."""
    names = ("model_name_or_path", "gamma", "dataset_name", "dataset_split", "batch_size", "on_error")
    settings = {name: getattr(args, name) for name in names}
    settings |= {"reward": kind, "baselines": baselines, "add_eos": args.add_eos}
    if found is not None:
        from .score_scale import fingerprints

        settings |= {"input": found.identity, "models": fingerprints(args, baselines, config)}
    return settings


def _page(args: Any, records: list[dict[str, Any]]) -> None:
    write_page(args.html, records, f"Token rewards of {args.model_name_or_path}")
    print(f"Wrote {args.html}: open it in a browser.")


def _check_flags(args: Any) -> None:
    from ...inputs.models import check_positive

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
    check_positive(args, ("batch_size", "html_rows", "shard_size", "num_workers"))
    parquet = str(args.output_file).endswith(".parquet")
    if args.prompt is not None and (args.output_dir or parquet or args.backend == "ray"):
        raise UserError("Parquet, --output_dir and --backend ray are for a dataset; name one with --dataset_name")


def _check_files(args: Any, output: str | None) -> None:
    if args.output_dir:
        _check_folder(args)
    for flag, path in (("--output_file ", None if args.output_dir else output), ("--html ", args.html)):
        if path:
            check_output_file(path, overwrite=args.overwrite, inputs=[args.dataset_name], flag=flag)
    if output:
        check_no_unfinished(output, resume=args.resume, overwrite=args.overwrite)
    if output and args.html and Path(output).absolute() == Path(args.html).absolute():
        raise UserError("--output_file and --html are the same file; name two")
    if args.output_dir and args.output_file:
        raise UserError("pass --output_file or --output_dir, not both")
    if args.resume and not output:
        raise UserError("--resume continues an --output_file; there is none")


def _check_folder(args: Any) -> None:
    folder = Path(args.output_dir).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {args.output_dir}: is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (args.overwrite or args.resume):
        raise UserError(f"--output_dir {args.output_dir}: is not empty; pass --overwrite or --resume, or name another")
    read = Path(args.dataset_name).expanduser()
    places = (read.resolve(), read.absolute())
    if any(place == folder or folder in place.parents for place in places):
        raise UserError(f"--output_dir {args.output_dir}: holds the rows that are read; name another folder")


def _check_models(args: Any) -> tuple[str, list[str], Any]:
    """The kind of reward that the flags or the folder's marker ask for, its baselines, the model's configuration."""
    from ...inputs.models import check_model, check_reward_models
    from ...scorers.markers import read_marker

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


def _look_through(args: Any) -> Survey:
    from .score_input import survey
    from .score_scale import check_tokenizer

    found = survey(args.dataset_name, args.dataset_split, CHUNK * args.batch_size, check=args.on_error != "keep")
    check_tokenizer(args, found)
    return found


def row_scorer(args: Any, kind: str, baselines: list[str], config: Any, found: Survey | None) -> RowScorer:
    """Scores rows as the flags say; the models are loaded when the first row is there that can be scored."""
    from ...inputs.demonstrations import _Checker
    from ...inputs.models import load_tokenizer
    from ...scoring.rows import RowScorer

    encode, fits, positions = _measures(config)
    checker = _Checker(["prompt", "completion"], "text", None, found is not None and found.allow_empty)
    return RowScorer(
        lambda: load_scorer(args, kind, baselines),
        load_tokenizer(args.model_name_or_path, None, args.trust_remote_code),
        encode,
        fits,
        f"longer than the model's {positions or 0:,} positions",
        ends=lambda row: bool(args.add_eos and row.get("finished", True) is not False),
        problem=lambda row: checker.problem(row, found is not None and found.conversational),
        batch_size=args.batch_size,
    )


def _measures(config: Any) -> tuple[Any, Any, int | None]:
    """How the model's rows are tokenised, whether so many tokens of prompt and answer fit, its positions."""
    from ...inputs.models import positions_of
    from ...scorers.seq2seq import encode_seq2seq_pair, position_limits
    from ...scorers.text import encode_pair

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
    from ...scorers import QFunctionReward, TokenReward

    loading = {"device": args.device, "dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    if kind == "log_ratio":
        return TokenReward.from_checkpoints(args.model_name_or_path, baselines, **loading)
    return QFunctionReward.from_checkpoint(args.model_name_or_path, kind=kind, gamma=args.gamma, **loading)


def _score(scorer: RowScorer, rows: list[dict[str, Any]]) -> list[ScoredRow]:
    return scorer.score(rows)
