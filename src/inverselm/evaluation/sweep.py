"""One model under several samplers on a task, in a few lines of Python. The command is `inverselm evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ..scorers.checks import check_same_tokenizer
from .examples import read_examples
from .samplers import Sampler, parse_samplers
from .sampling import Record, Runner, Settings
from .summary import Row, check_names, measure, summarise
from .tasks import load_task

if TYPE_CHECKING:
    from ..scorers import TokenScorer


def evaluate(
    model: Any,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    task: Any,
    samplers: Sequence[str | Mapping[str, Any] | Sampler] = ("greedy", "T=1.0"),
    num_samples: int = 4,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    seed: int = 0,
    reward: TokenScorer | None = None,
    guided_by: Any = None,
    reference_column: str | None = None,
    label: str = "model",
    progress: bool = True,
) -> list[Row]:
    """Sample answers with each sampler, and measure them: one row per sampler.

    Everything about a sampler's answers is measured on the same ones. The same arguments give the same answers, and
    those of `inverselm evaluate`.

    Args:
        model: a causal LM or an encoder-decoder of transformers, on any device.
        tokenizer: its tokenizer, with an EOS token.
        rows: mappings with `prompt` and a reference (see `read_examples`).
        task: a name in `TASKS`, a function `f(completion, references, row)`, `file.py:function`, or a `Task`.
        samplers: see `parse_sampler`.
        num_samples: answers to each prompt, where sampling is random.
        max_new_tokens: longest answer, in tokens.
        batch_size: answers per batch.
        seed: of the sampling.
        reward: scorer that `best_of=8,by=sum_reward` chooses by.
        guided_by: the baseline of `guided=0.5`: an earlier checkpoint of the model, as a folder, a model, a FrozenLM or
            (PeftModel, adapter name).
        reference_column: read references from this column.
        label: the model's name in the rows.
        progress: show a bar with the time left, on stderr.

    Raises:
        UserError: rows, samplers or settings that cannot be used; nothing has been sampled then.

    Example:
        >>> rows = evaluate(model, tokenizer, problems, task="gsm8k", samplers=["greedy", "T=0.7"])  # doctest: +SKIP
        >>> [(row.sampler, row.main.value, row.self_bleu) for row in rows]  # doctest: +SKIP
    """
    settings = Settings(num_samples, max_new_tokens, batch_size, seed)
    chosen = parse_samplers(samplers)
    measured_by = load_task(task)
    examples = read_examples(rows, measured_by, reference_column=reference_column)
    measured_by.prepare(examples)
    check_names(measured_by)
    if reward is not None:
        check_same_tokenizer(tokenizer, reward.tokenizer, label, "the reward")
    runner = Runner(model, tokenizer, examples, settings, reward, guided_by)
    runner.check(chosen)
    shared = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "seed": seed}
    found = []
    total = sum(len(examples) * sampler.drawn(num_samples) for sampler in chosen)
    with tqdm(total=total, desc="Sampling", unit="answer", file=sys.stderr, disable=not progress) as bar:
        for sampler in chosen:
            records: list[Record] = []
            for number, batch in enumerate(runner.batches(sampler)):
                records += runner.run(sampler, batch, number)
                bar.update(len(batch) * sampler.drawn(num_samples))
            measured = measure(records, examples, measured_by)
            found.append(summarise(measured, measured_by, sampler, model=label, prompts=len(examples), settings=shared))
    return found
