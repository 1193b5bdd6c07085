"""Pairwise judging from answers to win rates, in a few lines of Python. The command is `inverselm judge`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..errors import UserError
from .judge_cache import ReplyCache, request_key
from .judge_client import ChatClient
from .judge_endpoint import OPTIONS, Endpoint
from .judging import Judged, Pair, Prompting, as_text, judged
from .win_rate import WinRate, win_rates

_BYTES_PER_TOKEN = 4
_TOKENS_AROUND = 8  # of a chat template


@dataclass(frozen=True)
class Plan:
    """What is to be asked.

    Attributes:
        endpoint: where.
        prompting: how.
        pairs: run -> its pairs of answers.
        keys: run -> for each pair the keys of its two requests; none for identical answers.
        requests: by key; equal ones once.
    """

    endpoint: Endpoint
    prompting: Prompting
    pairs: Mapping[str, Sequence[Pair]]
    keys: Mapping[str, Sequence[tuple[str, ...]]]
    requests: Mapping[str, Mapping[str, Any]]

    def missing(self, cache: ReplyCache) -> dict[str, Mapping[str, Any]]:
        """The requests whose reply is not known."""
        return {key: request for key, request in self.requests.items() if cache.get(key) is None}

    def ask(self, cache: ReplyCache, progress: bool = True) -> dict[str, str]:
        """Send what is missing; replies go into the cache as they come. Returns why, by key, some have none.

        Raises:
            UserError: see `ChatClient.ask_all`.
        """
        missing = self.missing(cache)
        if not missing:
            return {}
        client = ChatClient(self.endpoint, proven=len(missing) < len(self.requests))
        with tqdm(total=len(missing), desc="Judging", unit="request", file=sys.stderr, disable=not progress) as bar:
            return client.ask_all(missing, lambda k, reply: cache.add(k, self.endpoint.model, reply), bar.update)

    def read(self, cache: ReplyCache) -> dict[str, list[Judged]]:
        """run -> its pairs with the verdicts that are known."""
        found: dict[str, list[Judged]] = {}
        for run, pairs in self.pairs.items():
            found[run] = []
            for pair, keys in zip(pairs, self.keys[run], strict=True):
                replies = [cache.get(key) for key in keys]
                texts = [None if reply is None else reply.text for reply in replies]
                found[run].append(judged(pair, texts, [reply is not None for reply in replies], self.prompting))
        return found


def make_plan(pairs: Mapping[str, Sequence[Pair]], prompting: Prompting, endpoint: Endpoint) -> Plan:
    """Both orders of every pair as requests."""
    keys: dict[str, list[tuple[str, ...]]] = {}
    requests: dict[str, Mapping[str, Any]] = {}
    for run, of_run in pairs.items():
        keys[run] = []
        for pair in of_run:
            both = pair.requests(prompting, endpoint.body)
            names = tuple(map(request_key, both))
            requests.update(zip(names, both, strict=True))
            keys[run].append(names)
    return Plan(endpoint, prompting, pairs, keys, requests)


def estimated_tokens(request: Mapping[str, Any]) -> int:
    """Tokens of a request's messages, roughly: a token for four bytes of UTF-8.

    >>> estimated_tokens({"messages": [{"role": "user", "content": "What is 2 + 2?"}]})
    12
    """
    text = "".join(message["content"] for message in request["messages"])
    return _TOKENS_AROUND + math.ceil(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)


def judge(
    runs: Mapping[str, Sequence[Any]],
    prompts: Sequence[Any],
    *,
    judge_url: str,
    judge_model: str,
    references: Sequence[str] | None = None,
    prompting: Prompting | None = None,
    cache_file: str | Path | None = None,
    api_key_env: str | None = None,
    options: Mapping[str, Any] | None = None,
    concurrency: int = 8,
    timeout: float = 120.0,
    retries: int = 6,
    n: int = 10_000,
    alpha: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> list[WinRate]:
    """How often a judge prefers each run's answers to the first run's, asked in both orders.

    Args:
        runs: name -> answers, (prompts,) or (seeds, prompts) texts, the run to compare with first.
        prompts: what was asked, texts or conversations. An equal prompt may occur several times, with other answers:
            it is one prompt in intervals and tests.
        judge_url: base of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1.
        judge_model: the judge's name there.
        references: of each prompt, an answer for the judge to see.
        prompting: template, criteria and marks; default: `Prompting()`.
        cache_file: JSONL that keeps replies: what is in it is not asked again. Default: none.
        api_key_env: see `Endpoint`.
        options: of each request; default: temperature 0 and max_tokens 1024.
        concurrency: requests under way at a time.
        timeout: seconds until a request counts as lost.
        retries: further tries of a request.
        n: resamples, and permutations.
        alpha: level of the tests.
        seed: of resamples and permutations.
        progress: show a bar with the time left, on stderr.

    Raises:
        UserError: answers that do not fit the prompts, and whatever `ChatClient` and `win_rates` raise.

    Example:
        >>> from inverselm.evaluation import judge
        >>> url = "http://127.0.0.1:8000/v1"
        >>> judge({"sft": a, "dpr": b}, prompts, judge_url=url, judge_model="judge")[0].verdict  # doctest: +SKIP
        'no difference shown (win rate 0.540 [0.455, 0.625], p = 0.38)'
    """
    endpoint = Endpoint(
        judge_url,
        judge_model,
        dict(OPTIONS if options is None else options),
        key_env=api_key_env,
        timeout=timeout,
        retries=retries,
        concurrency=concurrency,
    )
    pairs = make_pairs(runs, prompts, references)
    prompting = prompting or Prompting()
    if references is not None and not prompting.shows_reference:
        raise UserError("references are given, but the judge's template has no {reference}")
    plan, cache = make_plan(pairs, prompting, endpoint), ReplyCache(cache_file)
    plan.ask(cache, progress)
    return win_rates(plan.read(cache), next(iter(runs)), n=n, alpha=alpha, seed=seed)


def make_pairs(
    runs: Mapping[str, Sequence[Any]], prompts: Sequence[Any], references: Sequence[str] | None = None
) -> dict[str, list[Pair]]:
    """The pairs of `judge`: every run but the first, against the first.

    Raises:
        UserError: fewer than two runs or prompts, another number of answers than of prompts, of seeds than the first.
    """
    asked = [as_text(prompt) for prompt in prompts]
    tables = {name: _seeds(answers) for name, answers in runs.items()}
    if len(tables) < 2 or len(set(asked)) < 2:
        raise UserError("judging needs at least two runs, and at least two prompts")
    first, *others = tables
    for name, table in tables.items():
        if len(table) != len(tables[first]) or any(len(row) != len(asked) for row in table):
            raise UserError(f"runs[{name!r}]: give an answer to each of the {len(asked)} prompts, for each seed")
    if references is not None and len(references) != len(asked):
        raise UserError(f"there are {len(references)} references for {len(asked)} prompts")
    numbers: dict[str, int] = {}
    places = [numbers.setdefault(text, len(numbers)) for text in asked]
    counters = {text: count() for text in numbers}
    samples = [next(counters[text]) for text in asked]
    return {
        name: [
            Pair(asked[i], (answer, against), references[i] if references else None, places[i], seed, samples[i])
            for seed, (row, base) in enumerate(zip(tables[name], tables[first], strict=True))
            for i, (answer, against) in enumerate(zip(row, base, strict=True))
        ]
        for name in others
    }


def _seeds(answers: Sequence[Any]) -> list[list[str]]:
    """(seeds, prompts) texts."""
    rows = [answers] if answers and isinstance(answers[0], str) else answers
    return [[str(answer) for answer in row] for row in rows]
