"""Helpers of the tests of `inverselm evaluate`."""

import json

from inverselm.evaluation.sampling import Runner

SHORT = ["--device", "cpu", "--max_new_tokens", "5", "--batch_size", "4", "--num_samples", "2"]
ARGV = ["evaluate", "--model_name_or_path", "sft", "--dataset_name", "prompts.jsonl", "--task", "exact_match", *SHORT]


def argv(*more, out="out"):
    """The command, with an output folder."""
    return [*ARGV, "--output_dir", out, *more]


def lines(path):
    """Rows of a JSONL file."""
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def tree(folder):
    """Every file's content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stopping(monkeypatch, at):
    """Ctrl-C in the `at`-th batch from now; counts the batches that were sampled."""
    real, calls = Runner.run, []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Runner, "run", interrupted)
    return calls
