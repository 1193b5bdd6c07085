"""A study's folder as `inverselm study` leaves it, made of invented answers that the library's own writers write."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inverselm import __version__
from inverselm.cli.evaluation.evaluation_folder import EvaluationFolder
from inverselm.evaluation.examples import Example, content_hash
from inverselm.evaluation.samplers import parse_sampler
from inverselm.evaluation.summary import measure, summarise
from inverselm.evaluation.tasks import load_task

PHONEMES = ("AA", "B", "CH", "D", "EH", "F", "G", "HH", "IY", "K", "L", "M")
CODE = "c0de" * 16


@dataclass
class Plan:
    """What to invent.

    `wrong` is (size, method, sampler, split) -> how often an answer is wrong; `longer` is method -> tokens more.
    `unfinished` are (size, method, seed, stage) that are not there. `edit` changes study.json before it is written.
    """

    methods: dict
    wrong: object
    longer: object = lambda method: 0
    sizes: tuple = ("3000",)
    seeds: tuple = (0, 1, 2)
    samplers: tuple = ("greedy", "T=1.0")
    prompts: int = 30
    samples: int = 2
    reference: str = "sft"
    title: str = "Invented study"
    notes: str = ""
    task: str = "g2p"
    unfinished: tuple = ()
    curves: bool = True
    rewards: str | None = None
    edit: object = lambda facts: facts
    finished: object = lambda size, method, seed, stage: "2030-01-01T00:00:00+00:00"
    seconds: object = lambda method: 60.0


def rng_of(*key):
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def examples_of(split, count):
    rng = rng_of("examples", split)
    words = ["".join(rng.choice(list("abcdefghij"), 6)) + str(i) for i in range(count)]
    return [
        Example(f"Say: {word}\n", (" ".join(rng.choice(PHONEMES, 4 + i % 4)),), {}, "", ("x",))
        for i, word in enumerate(words)
    ]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_study(folder, plan):
    """Returns the folder."""
    folder = Path(folder)
    methods = {
        name: {
            "label": name, "role": "method", "group": name, "command": "sft", "from": None, "guided": 0.0,
            "sizes": list(plan.sizes), "flags": {size: {} for size in plan.sizes}, **entry,
        }
        for name, entry in plan.methods.items()
    }  # fmt: skip
    facts = {
        "inverselm": __version__,
        "name": "invented",
        "title": plan.title,
        "notes": plan.notes,
        "task": plan.task,
        "metrics": {"wer": "low", "per": "low"},
        "reference": plan.reference,
        "sizes": list(plan.sizes),
        "rows": {size: int(size) if size.isdigit() else 113_000 for size in plan.sizes},
        "seeds": list(plan.seeds),
        "samplers": list(plan.samplers),
        "num_samples": plan.samples,
        "rewards": None if plan.rewards is None else {"metric": plan.rewards},
        "identity": {
            "inverselm": __version__, "code": CODE, "torch": "2.0", "python": "3.12",
            "data": {"train": "a" * 64, "valid": "b" * 64, "test": "d" * 64},
        },
        "methods": methods,
        "machine": {"processor": "an imagined one", "cores": 2, "memory_gib": 7.5, "gpus": []},
    }  # fmt: skip
    write_json(folder / "study.json", plan.edit(facts))
    data = {split: examples_of(split, plan.prompts) for split in ("valid", "test")}
    for size in plan.sizes:
        for name, entry in methods.items():
            for seed in plan.seeds if size in entry["sizes"] else ():
                write_cell(folder, plan, size, name, entry, seed, data)
        for seed in plan.seeds if plan.rewards is not None else ():
            write_rewards(folder, plan, size, seed, methods)
    return folder


def cell_of(folder, size, method, seed):
    return Path(folder) / "runs" / size / method / f"seed{seed}"


def write_cell(folder, plan, size, name, entry, seed, data):
    cell = cell_of(folder, size, name, seed)
    left_out = {stage for s, m, k, stage in plan.unfinished if (s, m, k) == (size, name, seed)}
    if "all" in left_out:
        return
    if entry["command"] != "none" and "train" not in left_out:
        record(cell, plan, size, name, seed, "train")
        write_state(cell, plan, name, entry, seed)
    for split, examples in data.items():
        if split not in left_out:
            write_evaluation(cell / split, plan, size, name, entry, seed, split, examples)
            record(cell, plan, size, name, seed, split)


def record(cell, plan, size, name, seed, stage):
    content = {
        "stage": f"{size}/{name}/seed{seed}/{stage}", "identity": "1d" * 32, "code": CODE, "argv": [],
        "seconds": plan.seconds(name) + seed, "peak_rss": 2**30, "finished": plan.finished(size, name, seed, stage),
    }  # fmt: skip
    write_json(cell / "stages" / f"{stage}.json", content)


def write_state(cell, plan, name, entry, seed):
    rng, history = rng_of("curve", name, seed), []
    for step in range(50, 601, 50):
        history.append({"step": step, "loss": 3.0 * 0.99**step + 0.5, "learning_rate": 1e-3})
        loss = 0.7 + 2.0 * np.exp(-step / 120) + 0.0004 * max(0, step - 300) + 0.01 * rng.normal()
        if plan.curves and entry["command"] in ("sft", "iqlearn"):
            own = {"eval_loss": loss + 0.3, "eval_nll": loss} if entry["command"] == "iqlearn" else {"eval_loss": loss}
            history.append({"step": step, **own})
    history.append({"step": 600, "train_runtime": 0.08 * 600 + seed})
    if entry["command"] != "extrapolate":
        write_json(cell / "model" / "trainer_state.json", {"global_step": 600, "log_history": history})


def write_evaluation(folder, plan, size, name, entry, seed, split, examples):
    task = load_task(plan.task)
    task.prepare(examples)
    settings = {"num_samples": plan.samples, "max_new_tokens": 32, "batch_size": 8, "seed": seed}
    facts = {"settings": settings, "data": {"prompts": len(examples), "content": content_hash(examples)}}
    evaluation = EvaluationFolder(str(folder), facts, {name: {"model": "0"}}, None, {}, False)
    evaluation.start(False)
    rows = []
    for text in plan.samplers:
        if entry["guided"] and ("best_of" in text or "calculator" in text):
            continue
        sampler = parse_sampler(f"{text},guided={entry['guided']}" if entry["guided"] else text)
        rate = plan.wrong(size, name, text, split)
        rng = rng_of(size, name, text, split, seed)
        records = [
            one for i, example in enumerate(examples) for one in answers(rng, plan, name, i, example, rate, sampler)
        ]
        measured = measure(records, examples, task)
        pair = evaluation.pair(name, sampler)
        pair.begin()
        pair.finish([{"model": name, "sampler": sampler.name} | one for one in measured])
        rows.append(summarise(measured, task, sampler, model=name, prompts=len(examples), settings={"seed": seed}))
    evaluation.write_results(rows, task.note)


def answers(rng, plan, name, i, example, rate, sampler):
    """The records of one prompt's answers, as the runner of evaluations makes them."""
    for k in range(sampler.drawn(plan.samples)):
        said = example.references[0].split()
        if rng.random() < rate:
            place = rng.integers(len(said))
            said[place] = str(rng.choice([p for p in PHONEMES if p != said[place]]))
        tokens = len(said) + plan.longer(name)
        yield {
            "example": i, "sample": k, "prompt": example.prompt, "completion": " ".join(said),
            "references": list(example.references), "finished": True, "length": tokens, "reference_length": 5.0,
            "log_prob": -2.0, "entropy": 0.3 + sampler.temperature / 5 + rate / 10,
            "token_ids": [*range(5, 5 + tokens), 2],
            **({"score": float(k), "chosen": k == 0} if sampler.best_of > 1 else {}),
        }  # fmt: skip


def write_rewards(folder, plan, size, seed, methods):
    rng = rng_of("rewards", size, seed)
    names = {
        f"{m}, sum": 0.2 + 0.1 * i for i, m in enumerate(m for m, e in methods.items() if e["command"] == "iqlearn")
    }
    names |= {"dense, sum": 0.15, "Q - V', sum": -0.05, "log-likelihood, sum": 0.3, "log-likelihood, mean": 0.25}
    names |= {"length": -0.1, "random": 0.0}
    values = {
        measure: {
            name: {"value": None if (measure, name) == ("within", "length") else value * scale + 0.01 * rng.normal(),
                   "low": None, "high": None}
            for name, value in names.items()
        }
        for measure, scale in (("overall", 1.0), ("within", 0.5))
    }  # fmt: skip
    cell = Path(folder) / "runs" / size / "rewards" / f"seed{seed}"
    write_json(cell / "rewards" / "rewards.json", {"correlation": {"heading": "Spearman", "values": values}})
    write_json(cell / "stages" / "rewards.json", {"code": CODE, "identity": "1d" * 32})


def planted():
    """Against sft: A better, B equal, C equal and longer; of D the variant that is best on valid is bad on test."""
    rates = {
        ("sft", "greedy"): (0.5, 0.2), ("sft", "T=1.0"): (0.3, 0.5), ("d1", "greedy"): (0.2, 0.75),
        ("d1", "T=1.0"): (0.45, 0.2), ("d2", "greedy"): (0.4, 0.1), ("d2", "T=1.0"): (0.4, 0.1),
    }  # fmt: skip
    flat = {"a": 0.1, "b": 0.5, "c": 0.5, "control": 0.5}

    def wrong(size, method, sampler, split):
        return flat[method] if method in flat else rates[method, sampler][split == "test"]

    methods = {
        "sft": {"label": "SFT", "role": "reference"},
        "a": {"label": "Method A", "command": "iqlearn", "group": "iq", "flags": {"3000": {"td_coef": 0.1}}},
        "b": {"label": "Method B", "command": "dpr", "from": "sft"},
        "c": {"label": "Method C"},
        "d1": {"label": "D, first", "group": "d"},
        "d2": {"label": "D, second", "group": "d"},
        "control": {"label": "A control", "role": "control", "command": "none", "guided": 0.5, "from": "sft"},
    }
    return Plan(methods, wrong, longer=lambda method: 3 * (method == "c"), prompts=40, rewards="-wer")


def small(folder, **more):
    """Two methods, two seeds, one sampler, unless said otherwise."""
    options = {"seeds": (0, 1), "samplers": ("greedy",), "prompts": 6, "curves": False, **more}
    methods = options.pop("methods", {"sft": {"role": "reference"}, "a": {}})
    return write_study(folder, Plan(methods, options.pop("wrong", lambda *_: 0.5), **options))
