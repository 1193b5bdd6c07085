"""One model asked by a page and by a job: one batch at a time, nothing twice, an end that is one."""

import asyncio
import threading

import pytest

from helpers.loops import run
from inverselm.inspection import Definition, RowFile
from inverselm.inspection.desk import Desk, GoneError, Job

from .conftest import ANSWER, PROMPT, SUMS, write_jsonl


def test_nobody_is_served_who_has_gone_and_nothing_is_read_twice(inspector):
    calls = []

    class Counting:
        def read(self, prompts, completions, ends):
            calls.append(completions)
            return inspector.read(prompts, completions, ends)

    async def story() -> None:
        desk = Desk(Counting())

        async def here() -> bool:
            return False

        async def gone() -> bool:
            return True

        answer = (PROMPT, ANSWER, True)
        first, again = await asyncio.gather(desk.reading(answer, here), desk.reading(answer, here))
        assert first is again
        with pytest.raises(GoneError):
            await desk.reading((PROMPT, " 9", True), gone)
        assert await desk.readings([answer, ("", "x", True)]) == [first, None]

    run(story())
    assert calls[0] == (ANSWER,)
    assert (" 9",) not in calls
    assert len(calls) == 4  # once for both, then the batch that fails, and its rows one by one


def test_readings_are_kept_up_to_a_number_of_tokens(inspector, monkeypatch):
    from inverselm.inspection import desk as module

    monkeypatch.setattr(module, "KEPT_TOKENS", 60)

    async def story() -> None:
        desk = Desk(inspector)

        async def here() -> bool:
            return False

        for number in range(9):
            await desk.reading((PROMPT, f" It is {number}.", True), here)
        assert 1 <= len(desk._kept) < 9
        sizes = [len(reading.ids) + len(key) // 8 for key, reading in desk._kept.items()]
        assert desk._tokens == sum(sizes) <= 60

    run(story())


def test_long_prompts_count_too(inspector, monkeypatch):
    """Of readings that are kept the texts are, too."""
    from inverselm.inspection import desk as module

    monkeypatch.setattr(module, "KEPT_TOKENS", 1000)

    async def story() -> None:
        desk = Desk(inspector)

        async def here() -> bool:
            return False

        for number in range(5):
            await desk.reading((f"{number} " + "a" * 4000, " 7", True), here)
        assert 1 <= len(desk._kept) < 4

    run(story())


def test_a_job_that_fails_says_so(tmp_path, caplog):
    class Failing:
        definitions = (Definition("dense", "d", "d"),)

        def read(self, *answers):
            raise RuntimeError("out of memory")

    async def story() -> None:
        job = Job(Desk(Failing()), RowFile(write_jsonl(tmp_path / "r.jsonl", SUMS[:2])))
        job.start()
        while job.state()["running"]:
            await asyncio.sleep(0.01)
        assert job.state()["error"] == "RuntimeError: the terminal shows where"

    run(story())
    assert "out of memory" in caplog.text


def test_a_job_that_is_stopped_has_left_the_model(inspector, tmp_path):
    """Whoever is next does not read beside the batch that was being read; what it found is kept."""
    at_once, most, held = [], [], threading.Event()

    class Slow:
        definitions = inspector.definitions

        def read(self, *answers):
            at_once.append(1)
            most.append(len(at_once))
            held.wait(30)
            at_once.pop()
            return inspector.read(*answers)

    async def story() -> None:
        rows = RowFile(write_jsonl(tmp_path / "r.jsonl", SUMS[:6]))
        job = Job(Desk(Slow()), rows, batch_size=2)

        async def here() -> bool:
            return False

        job.start()
        while not most:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(job.stop())
        asking = asyncio.create_task(job.desk.reading((PROMPT, " 9", True), here))
        await asyncio.sleep(0.2)
        held.set()
        await asyncio.gather(stopping, asking)
        assert (job.state()["running"], job.state()["done"], job.state()["error"]) == (False, 2, "")
        by = inspector.definitions[0].id
        assert [rows.has_stats(by, i) for i in range(6)] == [True, True, False, False, False, False]
        job.start()
        while job.state()["running"]:
            await asyncio.sleep(0.01)
        assert job.state()["done"] == 6

    run(story())
    assert max(most) == 1
