"""A study as a mapping, to be changed."""

import copy

STUDY = {
    "name": "toy",
    "task": "exact_match",
    "data": {"train": "train.jsonl", "valid": "valid.jsonl", "test": "test.jsonl"},
    "sizes": {"8": {"max_steps": 4}, "all": {"max_steps": 8}},
    "seeds": [3, 5],
    "reference": "sft",
    "training": {
        "finetune": {"scratch_config": "tiny.yaml", "learning_rate": 0.01, "max_steps": 2},
        "iqlearn": {"learning_rate": 0.02},
        "dpr": {"max_steps": 3, "kl_coef": 2},
    },
    "evaluation": {"samplers": ["greedy", "T=1"], "num_samples": 2},
    "methods": {
        "sft": {"command": "sft", "label": "SFT"},
        "iq": {"command": "iqlearn", "td_coef": 0.5, "group": "iqlearn"},
        "long": {"command": "sft", "from": "sft", "max_steps": 9, "role": "control"},
        "dpr": {"command": "dpr", "from": "sft", "sizes": {"8": {"kl_coef": 4}}},
        "guided": {"command": "none", "from": "sft", "guided": 0.5},
    },
}


def changed(path, value):
    """The study with another value at `path`; None takes it out."""
    study = copy.deepcopy(STUDY)
    *parents, last = path
    at = study
    for name in parents:
        at = at[name]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return study
