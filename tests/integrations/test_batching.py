"""The batcher alone: no row is lost, mixed up or left waiting, and batches are what the policy says."""

import random
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from inverselm.integrations.batching import Batch, Batcher, ClosedError, QueueFullError
from inverselm.integrations.choice import choose

from .conftest import wait_until


# ---- which rows go together ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lengths", "limits", "expected"),
    [
        ([], {}, []),
        ([500], {"max_tokens": 100}, [0]),  # a single row may cost more
        ([10, 99, 11, 12], {"max_rows": 3}, [0, 2, 3]),  # the nearest in length, the oldest first
        ([10, 8, 12, 9], {"max_rows": 2}, [0, 3]),
        ([10, 10, 10, 10], {"max_tokens": 30}, [0, 1, 2]),
        ([10, 16, 4], {"max_tokens": 31}, [0, 2]),  # 2 x 16 would cost 32; the shorter one fits
        ([10, 20, 10], {"max_padding": 0.0}, [0, 2]),
        ([10, 20, 10], {"max_padding": 0.25}, [0, 2]),  # 3 x 20 with 20 of padding: a third
        ([10, 20, 10], {"max_padding": 0.34}, [0, 2, 1]),
        ([10, 20], {"max_padding": 0.25}, [0, 1]),  # 2 x 20 with 10 of padding: a quarter
    ],
)
def test_choice_by_length(lengths, limits, expected):
    assert choose(lengths, **{"max_rows": 10, "max_tokens": 1000, **limits}) == expected


def test_choice_prefers_the_group_of_the_oldest():
    lengths, groups = [10, 10, 14, 11], ["a", "b", "a", "b"]
    assert choose(lengths, groups, max_rows=2, max_tokens=1000) == [0, 2]
    assert choose(lengths, groups, max_rows=3, max_tokens=1000) == [0, 2], "a part of another group would be lost to it"
    assert choose(lengths, groups, max_rows=4, max_tokens=1000) == [0, 2, 1, 3]
    assert choose(lengths, None, max_rows=2, max_tokens=1000) == [0, 1]
    lengths, groups = [10, 10, 19, 12, 18, 11, 13], ["a", "b", "c", "d", "c", "e", "d"]
    assert choose(lengths, groups, max_rows=3, max_tokens=1000) == [0, 3, 6], "the nearer one, before single rows"
    assert choose(lengths, groups, max_rows=6, max_tokens=1000) == [0, 3, 6, 2, 4, 1]


def test_a_group_too_large_for_a_batch_goes_in_parts():
    lengths, groups = [10, 14, 11, 30, 12, 10], ["a", "a", "a", "a", "a", "b"]
    assert choose(lengths, groups, max_rows=3, max_tokens=1000) == [0, 2, 4]
    assert choose(lengths, groups, max_rows=9, max_tokens=60) == [0, 2, 4, 1]  # 5 x 14 and 5 x 30 are too much


def test_a_row_is_as_long_as_its_group():
    """Its prompt is read once for all of them: that is worth the padding of the shorter ones."""
    limits = {"max_rows": 10, "max_tokens": 100, "max_padding": 0.0}
    assert choose([10, 40, 10], ["a", "a", "b"], **limits) == [0, 1]
    assert choose([10, 40, 40], ["a", "a", "b"], **limits) == [0, 1], "3 x 40 is too much"
    assert choose([10, 30, 30], ["a", "a", "b"], **limits) == [0, 1, 2]
    assert choose([10, 30, 30], ["a", "c", "b"], **limits) == [0]


def test_choice_keeps_its_limits():
    rng = random.Random(0)
    for _ in range(600):
        lengths = [rng.randint(1, 60) for _ in range(rng.randint(1, 40))]
        groups = rng.choice([None, [rng.randint(0, 9) for _ in lengths]])
        rows, tokens, padding = rng.randint(1, 12), rng.randint(1, 400), rng.choice([0.0, 0.1, 0.5, 1.0])
        chosen = choose(lengths, groups, max_rows=rows, max_tokens=tokens, max_padding=padding)
        cost = len(chosen) * max(lengths[i] for i in chosen)
        assert chosen[0] == 0
        assert len(set(chosen)) == len(chosen) <= rows
        assert len(chosen) == 1 or cost <= tokens
        if groups is None:
            assert cost - sum(lengths[i] for i in chosen) <= padding * cost + 1e-9
        elif rows >= len(lengths) and tokens >= 60 * len(lengths) and padding == 1.0:
            assert len(chosen) == len(lengths)


# ---- answers ---------------------------------------------------------------------------------------------------------
def squares(seen=None):
    def work(rows):
        if seen is not None:
            seen.append(list(rows))
        return [row * row for row in rows]

    return work


def size(row):
    return row % 7 + 1


def test_many_threads_each_get_their_own_answers():
    seen: list[list[int]] = []
    observed: list[Batch] = []
    batcher = Batcher(squares(seen), length=size, max_rows=8, max_tokens=40, observe=observed.append)

    def caller(number):
        rng, out = random.Random(number), []
        for k in range(20):
            rows = [number * 10_000 + k * 100 + i for i in range(rng.randint(0, 9))]
            out.append(batcher.submit(rows).result(60) == [row * row for row in rows])
        return all(out)

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(caller, range(50)))
    assert batcher.close(60)
    assert max(map(len, seen)) > 1
    flat = [row for rows in seen for row in rows]
    assert len(flat) == len(set(flat))
    assert [(b.rows, b.tokens) for b in observed] == [(len(rows), sum(map(size, rows))) for rows in seen]
    assert all(b.seconds >= 0 for b in observed)
    assert batcher.depth == 0


def test_a_row_that_fails_fails_alone():
    def work(rows):
        if 13 in rows:
            raise RuntimeError("unlucky")
        return [row + 1 for row in rows]

    gate = threading.Event()
    batcher = Batcher(lambda rows: (gate.wait(60), work(rows))[1], length=lambda row: 1, max_rows=16, max_wait=0.2)
    futures = [batcher.submit([row]) for row in range(10, 16)]
    both = batcher.submit([20, 13])
    gate.set()
    for row, future in zip(range(10, 16), futures, strict=True):
        if row == 13:
            with pytest.raises(RuntimeError, match="unlucky"):
                future.result(60)
        else:
            assert future.result(60) == [row + 1]
    with pytest.raises(RuntimeError, match="unlucky"):
        both.result(60)
    assert batcher.submit([1]).result(60) == [2], "the worker goes on"
    batcher.close()


def test_a_batch_that_does_not_fit_is_made_smaller():
    sizes = []

    def work(rows):
        sizes.append(len(rows))
        if len(rows) > 3:
            raise MemoryError
        return rows

    batcher = Batcher(work, length=lambda row: 1, max_rows=8, max_wait=1.0)
    assert batcher.submit(list(range(8))).result(60) == list(range(8))
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    batcher.close()


def test_answers_that_are_not_one_for_each_row_are_an_error():
    batcher = Batcher(lambda rows: [0] * (len(rows) + 1), length=lambda row: 1)
    with pytest.raises(RuntimeError, match="1 rows were scored, but 2 answers came back"):
        batcher.submit([5]).result(60)
    batcher.close()


# ---- waiting ---------------------------------------------------------------------------------------------------------
def test_rows_wait_for_company_but_not_for_long():
    seen: list[list[int]] = []
    batcher = Batcher(squares(seen), length=lambda row: 1, max_rows=4, max_tokens=100, max_wait=2.0)
    begin = time.monotonic()
    first = batcher.submit([1])
    time.sleep(0.05)
    second = batcher.submit([2])
    assert (first.result(60), second.result(60)) == ([1], [4])
    assert time.monotonic() - begin > 1.99
    assert seen == [[1, 2]]
    batcher.close()


@pytest.mark.parametrize("length", [1, 50])
def test_enough_rows_or_tokens_do_not_wait(length):
    batcher = Batcher(squares(), length=lambda row: length, max_rows=4, max_tokens=100, max_wait=50)
    begin = time.monotonic()
    rows = [1, 2, 3, 4] if length == 1 else [1, 2]
    assert batcher.submit(rows).result(60) == [row * row for row in rows]
    assert time.monotonic() - begin < 25
    batcher.close()


def test_a_long_row_is_not_left_behind_by_short_ones():
    gate, order = threading.Event(), []

    def work(rows):
        gate.wait(60)
        order.extend(rows)
        return rows

    batcher = Batcher(work, length=lambda row: row, max_rows=2, max_tokens=100, max_padding=0.1, max_wait=0.0)
    futures = [batcher.submit([5])]
    wait_until(lambda: batcher.depth == 0)  # the worker is at the gate with it
    futures += [batcher.submit([row]) for row in (6, 90, 7, 7, 7, 7, 7, 7)]
    gate.set()
    for future in futures:
        future.result(60)
    assert order.index(90) == 3, "its turn comes when it is the oldest"
    batcher.close()


def test_the_queue_has_an_end():
    gate = threading.Event()
    batcher = Batcher(lambda rows: (gate.wait(60), rows)[1], length=lambda row: 1, max_rows=2, max_wait=0, max_queue=3)
    running = batcher.submit([0])
    wait_until(lambda: batcher.depth == 0)
    waiting = batcher.submit([1, 2])
    with pytest.raises(QueueFullError) as full:
        batcher.submit([3, 4])
    assert (full.value.waiting, full.value.limit) == (2, 3)
    assert batcher.depth == 2, "none of them was queued"
    assert batcher.submit([5]).cancel(), "one more fits"
    gate.set()
    assert (running.result(60), waiting.result(60)) == ([0], [1, 2])
    batcher.close()


def test_the_estimate_of_a_full_queue_is_its_work():
    gate = threading.Event()

    def work(rows):
        time.sleep(0.1) if rows == [0] else gate.wait(60)
        return rows

    batcher = Batcher(work, length=lambda row: 10, max_rows=1, max_wait=0, max_queue=5)
    batcher.submit([0]).result(60)  # 10 tokens in 0.1 s
    batcher.submit([1])
    wait_until(lambda: batcher.depth == 0)
    batcher.submit([2, 3, 4, 5, 6])
    with pytest.raises(QueueFullError) as full:
        batcher.submit([7])
    assert 0.5 <= full.value.seconds < 50  # 50 tokens; more on a busy machine
    gate.set()
    batcher.close()


def test_cancelled_rows_are_not_scored():
    gate, seen = threading.Event(), []

    def work(rows):
        seen.append(list(rows))
        gate.wait(60)
        return rows

    batcher = Batcher(work, length=lambda row: 1, max_rows=4, max_wait=0)
    running = batcher.submit([0])
    wait_until(lambda: batcher.depth == 0)
    kept, dropped = batcher.submit([1]), batcher.submit([2, 3])
    assert dropped.cancel()
    assert batcher.depth == 1
    assert running.cancel(), "its answer comes too late, which is no error"
    gate.set()
    assert kept.result(60) == [1]
    with pytest.raises(CancelledError):
        running.result(60)
    assert seen == [[0], [1]]
    assert batcher.alive
    batcher.close()


def test_closing_scores_what_waits_and_takes_no_more():
    gate = threading.Event()
    batcher = Batcher(lambda rows: (gate.wait(60), rows)[1], length=lambda row: 1, max_rows=2, max_wait=60)
    futures = [batcher.submit([row]) for row in range(7)]
    threading.Timer(0.1, gate.set).start()
    begin = time.monotonic()
    assert batcher.close(60)
    assert time.monotonic() - begin < 50, "nobody waits for company any more"
    assert [future.result(0) for future in futures] == [[row] for row in range(7)]
    assert not batcher.alive
    with pytest.raises(ClosedError):
        batcher.submit([1])


def test_a_close_that_takes_too_long_says_so():
    gate = threading.Event()
    batcher = Batcher(lambda rows: (gate.wait(60), rows)[1], length=lambda row: 1, max_wait=0)
    future = batcher.submit([1])
    assert not batcher.close(0.05)
    gate.set()
    assert batcher.close(60)
    assert future.result(0) == [1]
