"""`inverselm score` into shards: one process, several under a launcher, or the actors of a Ray cluster."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..._version import __version__
from ...errors import UserError
from ...scoring.folder import ShardFolder
from ...scoring.run import ShardWorker
from ...scoring.shards import Shard
from ...scoring.tables import SCHEMA_VERSION, output_schema
from .score_input import Survey, survey

SETTINGS = ("gamma", "add_eos", "batch_size", "shard_size", "dtype", "on_error")


class Place:
    """Which process this is, of those that a launcher (accelerate, torchrun) started together; 0 of 1 without one."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))

    @property
    def is_first(self) -> bool:
        """Whether this one prints, prepares and finishes."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """While it lasts, `tell` and `wait` work: through gloo, whatever the models are on."""
        if self.world == 1:
            yield
            return
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=timedelta(days=30))  # the slowest may take days longer than the first
        yield
        dist.destroy_process_group()

    def tell(self, text: str | None) -> str:
        """The first process's text, for all."""
        if self.world == 1:
            return text or ""
        import torch.distributed as dist

        said = [text]
        dist.broadcast_object_list(said, src=0)
        return said[0] or ""

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()


def run_shards(args: Any, place: Place, output: str) -> tuple[dict[str, int], str] | None:
    """Score a dataset shard by shard into `output`, a folder or (merged at the end) a file.

    Args:
        args: the flags, checked, but for outputs, models and data.
        place: this process.
        output: what --output_dir or --output_file name.

    Returns:
        Counts of rows and tokens, and the kind of reward; None in all processes but the first.
    """
    with place.together():
        job: Any = None
        if place.is_first:
            try:
                job = _prepare(args, output)
            except UserError as error:
                place.tell(json.dumps({"error": str(error)}))
                raise
        job = json.loads(place.tell(json.dumps(job)))
        if "error" in job:
            raise SystemExit(2)  # the first process says why
        found = _survey_of(job)
        folder = _folder(job, found)
        left = [shard for shard in found.shards if not folder.is_done(shard.number)]
        place.wait()  # all have seen the same shards before any is written
        mine = left[place.rank :: place.world]
        resumed = found.rows - sum(shard.rows for shard in left)
        try:
            if args.backend == "ray":
                _on_ray(args, job, left, found.rows, resumed)
            elif mine:
                _here(args, place, job, mine, resumed, left)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"The same command with --resume continues {output}.") from error
        place.wait()
        if not place.is_first:
            return None
        counts = folder.finish()
        if not args.output_dir:
            folder.merge(output)
        return counts, job["kind"]


def _prepare(args: Any, output: str) -> dict[str, Any]:
    """Checks, the survey of the input, the manifest: what the first process does for all."""
    from ...inputs.models import resolve_device
    from .score import _check_models

    kind, baselines, config = _check_models(args)
    if args.device is not None:
        resolve_device(args.device)
    form = args.output_format if args.output_dir else "parquet" if output.endswith(".parquet") else "jsonl"
    name = Path(output).absolute()
    target = name if args.output_dir else name.with_name(f"{name.name}.shards")
    begun = ShardFolder.read_manifest(target) is not None
    if args.resume and not begun:
        raise UserError(f"--resume: there is no unfinished {output} to continue; leave the flag out")
    if begun and not (args.resume or args.overwrite):
        raise UserError(f"{target}: an unfinished run; --resume continues it, --overwrite starts anew")
    found = survey(args.dataset_name, args.dataset_split, args.shard_size, check=args.on_error != "keep")
    models = fingerprints(args, baselines, config)
    settings = {name: getattr(args, name) for name in SETTINGS} | {"reward": kind, "output_format": form}
    identity = {
        "settings": {**settings, "schema_version": SCHEMA_VERSION, "inverselm": __version__},
        "input": found.identity,
        "models": models,
    }
    facts = {
        "reward": kind,
        "gamma": args.gamma,
        "inverselm": __version__,
        **{k: identity[k] for k in ("input", "models")},
    }
    flags = {**vars(args), "model_name_or_path": _absolute(args.model_name_or_path)}
    job = {
        "args": flags,
        "kind": kind,
        "baselines": [_absolute(baseline) for baseline in baselines],
        "survey": asdict(found),
        "folder": str(target),
        "format": form,
        "facts": facts,
    }
    check_tokenizer(args, found)
    _folder(job, found).begin(identity, resume=args.resume, name=output)
    return job


def fingerprints(args: Any, baselines: list[str], config: Any) -> dict[str, dict[str, str]]:
    """What the models of a reward are, by content."""
    from ...inputs.fingerprints import model_fingerprint
    from ...inputs.models import check_model

    models = {"model": model_fingerprint(args.model_name_or_path, config)}
    for number, baseline in enumerate(baselines):
        at = check_model(baseline, "--baseline", args.trust_remote_code)
        models[f"baseline {number}"] = model_fingerprint(baseline, at)
    return models


def check_tokenizer(args: Any, found: Survey) -> None:
    """Conversations need a chat template.

    Raises:
        UserError: there is none.
    """
    from ...inputs.models import load_tokenizer
    from ..common import check_chat_template

    tokenizer = load_tokenizer(args.model_name_or_path, None, args.trust_remote_code)
    check_chat_template(tokenizer, "conversational" if found.conversational else "prompt", args.dataset_name)


def _survey_of(job: dict[str, Any]) -> Survey:
    return Survey(**{**job["survey"], "shards": [Shard(**shard) for shard in job["survey"]["shards"]]})


def _folder(job: dict[str, Any], found: Survey) -> ShardFolder:
    schema = output_schema(found.arrow_schema(), job["facts"]) if job["format"] == "parquet" else None
    return ShardFolder(
        job["folder"], job["format"], len(found.shards), schema, errors=job["args"]["on_error"] == "keep"
    )


def make_worker(job: dict[str, Any]) -> ShardWorker:
    """The worker of a job, in this process or on another machine."""
    from ...inputs.models import check_model, resolve_device
    from ..common import quiet_libraries
    from .score import CHUNK, row_scorer

    quiet_libraries()
    args, found = SimpleNamespace(**job["args"]), _survey_of(job)
    args.device = resolve_device(args.device)
    config = check_model(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    rows = row_scorer(args, job["kind"], job["baselines"], config, found)
    size = min(CHUNK * args.batch_size, args.shard_size)
    return ShardWorker(found.open(), rows, _folder(job, found), size=size, on_error=args.on_error, where=found.where)


def _here(args: Any, place: Place, job: dict[str, Any], mine: list[Shard], resumed: int, left: list[Shard]) -> None:
    from tqdm.auto import tqdm

    if args.device is None and place.world > 1:
        job["args"]["device"] = _own_gpu(place)
    if place.is_first and len(left) < place.world:
        print(f"{len(left)} shards for {place.world} processes: a lower --shard_size keeps all busy.", flush=True)
    label = "Scoring" if place.world == 1 else f"Scoring (process 1 of {place.world})"
    done = resumed if place.world == 1 else 0
    total = done + sum(shard.rows for shard in mine)
    worker = make_worker(job)
    with tqdm(total=total, initial=done, desc=label, unit="answer", file=sys.stderr, disable=not place.is_first) as bar:
        for shard in mine:
            worker(shard, bar.update)


def _own_gpu(place: Place) -> str | None:
    import torch

    return f"cuda:{place.local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else None


def _on_ray(args: Any, job: dict[str, Any], left: list[Shard], rows: int, resumed: int) -> None:
    from tqdm.auto import tqdm

    from ...scoring.on_ray import score_on_ray

    if not left:
        return
    options = {"address": args.ray_address, "workers": args.num_workers, "gpus": args.gpus_per_worker}
    with tqdm(total=rows, initial=resumed, desc="Scoring on Ray", unit="answer", file=sys.stderr) as bar:
        for shard in score_on_ray(make_worker, job, left, **options):
            bar.update(shard.rows)


def _absolute(name: str) -> str:
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else name


def first_records(args: Any, output: str, count: int) -> list[dict[str, Any]]:
    """The first scored rows of an output as JSON records, for the page of heatmaps."""
    import pyarrow.parquet as pq

    from ...scoring.tables import records_of

    files = sorted(Path(output).glob("part-*")) if args.output_dir else [Path(output)]
    found: list[dict[str, Any]] = []
    for file in files:
        if file.suffix == ".parquet":
            with pq.ParquetFile(file, pre_buffer=False) as opened:
                tables = (opened.read_row_group(i) for i in range(opened.metadata.num_row_groups))
                rows = (item for table in tables for item in records_of(table))
                found += _take(rows, count - len(found))
        else:
            with open(file, encoding="utf-8") as stream:
                found += _take(map(json.loads, stream), count - len(found))
        if len(found) >= count:
            break
    return found


def _take(records: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    from itertools import islice

    return list(islice((item for item in records if item["tokens"]), count))
