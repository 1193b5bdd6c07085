"""The long part of `inverselm evaluate`: sample what is missing, measure everything."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...evaluation.samplers import Sampler
from .evaluation_folder import PairFile

if TYPE_CHECKING:
    from ...evaluation.examples import Example
    from ...evaluation.sampling import Settings
    from ...evaluation.summary import Row
    from ...evaluation.tasks import Task


def sweep(
    args: Any,
    pairs: list[tuple[Any, Sampler, PairFile]],
    examples: list[Example],
    task: Task,
    settings: Settings,
    reward: Any,
) -> list[Row]:
    """Sample what is missing, measure everything."""
    from tqdm.auto import tqdm

    from ...evaluation.sampling import Runner
    from ...evaluation.summary import measure, summarise

    total = sum(len(examples) * sampler.drawn(settings.num_samples) for _, sampler, _ in pairs)
    rows, runner, loaded = [], None, None
    with tqdm(total=total, unit="answer", file=sys.stderr) as bar:
        for number, (model, sampler, file) in enumerate(pairs, 1):
            drawn = sampler.drawn(settings.num_samples)
            bar.set_description(f"{model.label} {sampler.name} ({number}/{len(pairs)})")
            if file.finished:
                _skip(bar, len(examples) * drawn)
            else:
                if loaded is not model:
                    runner = None  # the last model's memory is free before the next one's is taken
                    gc.collect()
                    scorer = reward.load(args) if reward else None
                    guided = any(m is model and s.guidance_weight and not f.finished for m, s, f in pairs)
                    policy, baseline = model.load(args, guided=guided)
                    runner = Runner(policy, model.tokenizer, examples, settings, scorer, baseline)
                    loaded = model
                    del policy, baseline
                assert runner is not None
                batches, done = runner.batches(sampler), file.begin()
                _skip(bar, sum(map(len, batches[:done])) * drawn)
                for at in range(done, len(batches)):
                    file.write(runner.run(sampler, batches[at], at))
                    bar.update(len(batches[at]) * drawn)
            records = file.records(len(examples) * drawn)
            measured = measure(records, examples, task)
            if not file.finished or measured != records:
                file.finish(measured)
            shared = {"max_new_tokens": settings.max_new_tokens, "seed": settings.seed}
            shared |= {"guided_by": model.baseline if sampler.guidance_weight else None}
            rows.append(summarise(measured, task, sampler, model=model.label, prompts=len(examples), settings=shared))
    return rows


def _skip(bar: Any, count: int) -> None:
    """Answers of an earlier run are no measure of this one's speed."""
    bar.initial += count
    bar.n += count
    bar.refresh()


@contextmanager
def interruptible(output_dir: str) -> Iterator[None]:
    """Ctrl-C says how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"The same command with --resume continues {output_dir}.") from error
