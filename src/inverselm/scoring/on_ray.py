"""Shards on the machines of a Ray cluster: one scorer per actor, and the shard of a lost actor is scored again.

Shards are idempotent: an actor that is lost leaves a temporary file, another one writes the shard anew. All machines
see the same files: the input, the models and the output folder are on a file system that they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import UserError
from .run import ShardWorker
from .shards import Shard

RETRIES = 5
"""How often a shard is begun anew when its actor is lost; a shard that kills every actor ends the run."""


_BLOCKS = 2000  # what Ray schedules one by one; more shards share one


class _Actor:
    """What Ray Data starts on its machines: makes a worker once, and gives it one shard after the other."""

    def __init__(self, make: Callable[[Any], ShardWorker], job: Any, shards: Sequence[Shard]) -> None:
        self._make, self._job, self._shards = make, job, {shard.number: shard for shard in shards}
        self._worker: ShardWorker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        error = ""
        try:
            self._worker = self._worker or self._make(self._job)
            for number in batch["number"].tolist():
                self._worker(self._shards[number])
        except UserError as reason:
            error = str(reason)
        return {"number": batch["number"], "error": [error] * len(batch["number"])}


def score_on_ray(
    make: Callable[[Any], ShardWorker],
    job: Any,
    shards: Sequence[Shard],
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus: float | None = None,
) -> Iterator[Shard]:
    """Score shards on a Ray cluster, and give each shard that is done, in any order.

    Args:
        make: a module's function that makes a worker of `job` on another machine.
        job: plain data.
        shards: what is to be done.
        address: of a running cluster; None starts a local one, or takes that of RAY_ADDRESS.
        workers: actors; default: one per GPU of the cluster, or per CPU where there are no GPUs.
        gpus: GPUs per actor; default: 1 where the cluster has any.

    Raises:
        UserError: ray is not installed, no cluster at the address, or a row to stop at.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"--backend ray: needs Ray ({error}); pip install 'inverselm[ray]'") from error
    began = not ray.is_initialized()
    if began:
        _connect(ray, address)
    try:
        cluster = ray.cluster_resources()
        gpus = float(cluster.get("GPU", 0) >= 1) if gpus is None else gpus
        room = cluster.get("GPU", 0) / gpus if gpus else cluster.get("CPU", 1)
        workers = max(1, min(int(room) if workers is None else workers, len(shards)))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        numbers = ray.data.from_items(
            [{"number": s.number} for s in shards], override_num_blocks=min(len(shards), _BLOCKS)
        )
        results = numbers.map_batches(
            _Actor,
            fn_constructor_args=(make, job, list(shards)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=0 if gpus else 1,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        by_number = {shard.number: shard for shard in shards}
        for row in results.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            yield by_number[int(row["number"])]
    finally:
        if began:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    import os

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        if address or os.environ.get("RAY_ADDRESS"):
            ray.init(address=address, log_to_driver=False)
        else:
            ray.init(include_dashboard=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--ray_address: no Ray cluster could be reached ({first})") from error
