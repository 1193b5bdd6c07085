"""Metrics of completions against references, by name, and bootstrap intervals.

Every metric takes `completions` (a list of samples for each prompt) and `references` (one text for each prompt) and
returns named numbers. `METRICS` lists them; a new metric is one function in that table.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .gsm8k import extract_answer, is_correct

Completions = Sequence[Sequence[str]]
References = Sequence[str]
_CHUNK = 10_000_000  # resampled values held in memory at once


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased probability that k of n samples, drawn without replacement, hold one of the `correct` ones.

    >>> pass_at_k(n=4, correct=1, k=2)
    0.5
    """
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and n={n}, not {k}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def gsm8k(completions: Completions, references: References) -> dict[str, float]:
    """`accuracy`: mean over prompts of the share of right samples; `answered`: share of samples with a final answer.

    `pass@k`, for k = the number of samples (the smallest, when prompts differ), only when k > 1. References are numbers
    or GSM8K solutions.
    """
    right = [[is_correct(text, answer) for text in row] for row, answer in zip(completions, references, strict=True)]
    answered = [np.mean([extract_answer(text) is not None for text in row]) for row in completions]
    result = {"accuracy": float(np.mean([np.mean(row) for row in right])), "answered": float(np.mean(answered))}
    k = min(len(row) for row in right)
    if k > 1:
        result[f"pass@{k}"] = float(np.mean([pass_at_k(len(row), sum(row), k) for row in right]))
    return result


def exact_match(completions: Completions, references: References) -> dict[str, float]:
    """`exact_match`: share of samples equal to their reference, white space at the ends aside; mean over prompts."""
    rows = zip(completions, references, strict=True)
    return {"exact_match": float(np.mean([np.mean([t.strip() == r.strip() for t in row]) for row, r in rows]))}


def bleu(completions: Completions, references: References) -> dict[str, float]:
    """`bleu`: corpus BLEU, 0 to 100, of the first sample of each prompt; sacrebleu's defaults."""
    return {"bleu": _corpus_score("bleu", completions, references)}


def chrf(completions: Completions, references: References) -> dict[str, float]:
    """`chrf`: corpus chrF2, 0 to 100, of the first sample of each prompt; sacrebleu's defaults."""
    return {"chrf": _corpus_score("chrf", completions, references)}


def diversity(completions: Completions, references: References) -> dict[str, float]:
    """How different the samples are, and how long.

    `distinct_1..3`: different n-grams / n-grams, over all samples of all prompts (0 when no text has n words).
    `self_bleu_nN` (high = less diverse): sentence BLEU-4, 0 to 100, of each sample against the other samples of its
    prompt, averaged; N is the number of samples used for each prompt, the smallest count when prompts differ, and the
    key is left out when N < 2. `mean_words`: length of a sample in words. Words are split at white space.
    """
    words = [text.split() for row in completions for text in row]
    result = {f"distinct_{n}": distinct_n(words, n) for n in (1, 2, 3)}
    count = min(len(row) for row in completions)
    if count >= 2:
        result[f"self_bleu_n{count}"] = float(np.mean([self_bleu(list(row[:count])) for row in completions]))
    result["mean_words"] = float(np.mean([len(text) for text in words]))
    return result


METRICS: dict[str, Callable[[Completions, References], dict[str, float]]] = {
    "gsm8k": gsm8k,
    "exact_match": exact_match,
    "bleu": bleu,
    "chrf": chrf,
    "diversity": diversity,
}


def compute_metrics(names: Sequence[str], completions: Completions, references: References) -> dict[str, float]:
    """All metrics of `names` in one dictionary.

    Raises `UserError` for an unknown name, for lists of different lengths, and for a prompt without completions.

    >>> compute_metrics(["exact_match"], [["a", "b"]], ["a"])
    {'exact_match': 0.5}
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"unknown metric {', '.join(map(repr, unknown))}: choose from {', '.join(METRICS)}")
    if len(completions) != len(references):
        raise UserError(f"{len(completions)} prompts have completions, {len(references)} have references: align them")
    if not completions:
        raise UserError("there are no completions: give at least one prompt")
    for index, row in enumerate(completions):
        if isinstance(row, str) or not row:
            raise UserError(f"completions[{index}] must be a list with one or more texts, such as ['a text']")
    result: dict[str, float] = {}
    for name in names:
        result.update(METRICS[name](completions, references))
    return result


def signature(name: str) -> str:
    """sacrebleu's signature of `bleu` or `chrf`, which says how the score was made; cite it beside the score.

    Raises `UserError` for another name, or when sacrebleu is missing.
    """
    scorer = _scorer(name)
    scorer.corpus_score(["a"], [["a"]])  # the signature needs to have seen the number of references
    return str(scorer.get_signature())


def bootstrap_ci(values: Sequence[float], n: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (one number per prompt).

    >>> bootstrap_ci([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise UserError(f"the bootstrap needs a list of one or more numbers, not an array of shape {data.shape}")
    if n < 1 or not 0 < level < 1:
        raise UserError(f"the bootstrap needs n >= 1 and 0 < level < 1: n is {n}, level is {level}")
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // data.size)
    sizes = [min(step, n - start) for start in range(0, n, step)]
    means = np.concatenate([data[rng.integers(0, data.size, (size, data.size))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], n: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of a - b with its interval (mean, low, high); `a[i]` and `b[i]` belong to the same prompt.

    >>> paired_bootstrap([1.0, 2.0], [0.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise UserError(f"a paired test needs values of the same prompts: {left.size} and {right.size} values differ")
    low, high = bootstrap_ci(left - right, n=n, seed=seed, level=level)
    return float(np.mean(left - right)), low, high


def distinct_n(texts: Sequence[Sequence[str]], n: int) -> float:
    """Different n-grams / n-grams of all texts, given as lists of words; 0 when no text has n words.

    >>> distinct_n([["a", "b", "a"], ["b"]], 1)
    0.5
    """
    grams = [tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(samples: Sequence[str]) -> float:
    """Mean sentence BLEU-4, 0 to 100, of each sample against the other samples of its prompt: high = less diverse.

    Raises `UserError` for fewer than two samples, or when sacrebleu is missing.
    """
    if len(samples) < 2:
        raise UserError(f"Self-BLEU compares two or more samples of a prompt, not {len(samples)}")
    scorer = _scorer("bleu", effective_order=True)  # texts under four words count by the n-grams that they have
    others = [[*samples[:i], *samples[i + 1 :]] for i in range(len(samples))]
    return float(np.mean([scorer.sentence_score(s, o).score for s, o in zip(samples, others, strict=True)]))


def _corpus_score(name: str, completions: Completions, references: References) -> float:
    return float(_scorer(name).corpus_score([row[0] for row in completions], [list(references)]).score)


def _scorer(name: str, **options: Any) -> Any:
    if name not in ("bleu", "chrf"):
        raise UserError(f"{name!r} is not a sacrebleu metric: choose bleu or chrf")
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise UserError("BLEU, chrF and self-BLEU need sacrebleu: pip install 'inverselm[eval]'") from error
    return (BLEU if name == "bleu" else CHRF)(**options)
