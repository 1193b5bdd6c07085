"""Helpers of the tests of `inverselm rewards`."""

import json

from inverselm.scorers import QFunctionReward, TokenReward

REWARDS = ["rewards", "--model_name_or_path", "sft", "--device", "cpu", "--num_bootstrap", "20"]


def read(path="rewards/rewards.json"):
    """What a run found."""
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def lines(path):
    """Rows of a JSONL file."""
    with open(path, encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def values(part, measure):
    """reward -> value of a measure."""
    return {name: found["value"] for name, found in part["values"][measure].items()}


def scored(rows):
    """By the scorers themselves, row by row."""
    dense = TokenReward.from_checkpoints("sft", device="cpu")
    own = {kind: QFunctionReward.from_checkpoint("sft", kind=kind, device="cpu") for kind in ("bellman", "log_prob")}
    found = {"dense": [], "Q - V'": [], "log-likelihood": []}
    for row in rows:
        for name, scorer in zip(found, (dense, own["bellman"], own["log_prob"]), strict=True):
            one = scorer.score([row["prompt"]], [row["completion"]], add_eos=row.get("finished", True))[0]
            found[name].append(one.rewards)
    return found
