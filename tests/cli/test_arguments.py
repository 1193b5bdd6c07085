"""Flags and YAML: what wins, what is unknown, and what --help teaches."""

import pytest
import torch
from trl import ModelConfig, SFTConfig

from inverselm.cli import generate
from inverselm.cli.arguments import parse, short_help
from inverselm.cli.scoring import filtering, score
from inverselm.cli.training import dpr
from inverselm.cli.training.finetune import GUIDES, BaselineArguments
from inverselm.errors import UserError
from inverselm.training.dense_path import DensePathConfig
from inverselm.training.iqlearn import IQLearnConfig

SFT = (BaselineArguments, SFTConfig, ModelConfig)
IQ = (BaselineArguments, IQLearnConfig, ModelConfig)


def parsed(*argv, kinds=SFT, command="sft"):
    return parse(command, kinds, argv, GUIDES[command])


def fails(argv, *parts, kinds=SFT):
    with pytest.raises(UserError) as caught:
        parse("sft", kinds, argv, GUIDES["sft"])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_flags_win_over_yaml_over_defaults(form, recipe, monkeypatch):
    monkeypatch.delenv("INVERSELM_TEST", raising=False)
    path = recipe(
        "env: {INVERSELM_TEST: 5}\ndataset_name: a.jsonl\nlearning_rate: 1e-4\nmax_steps: 7\ntd_coef: 0.5\nlora_r: 3\n"
    )
    argv = [part.format(path) for part in form] + ["--max_steps", "9"]
    data, training, model = parsed(*argv, kinds=IQ, command="iqlearn")
    assert (data.dataset_name, training.learning_rate, training.max_steps) == ("a.jsonl", 1e-4, 9)
    assert (training.td_coef, model.lora_r, data.baseline_fraction) == (0.5, 3, 0.5)
    import os

    assert os.environ.pop("INVERSELM_TEST") == "5"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has an accelerator")
def test_without_a_gpu_the_default_is_the_cpu_in_float32(recipe):
    training = parsed("--dataset_name", "x")[1]
    assert training.use_cpu
    assert not training.bf16
    assert parsed("--bf16", "True")[1].bf16
    assert parsed("--config", recipe("bf16: true\n"))[1].bf16


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--learning_rat", "1"], ["unknown flag --learning_rat", "did you mean --learning_rate?"]),
        (["--zzzzzz=1"], ["unknown flag --zzzzzz; --help_all"]),
        (["--learning_rate", "fast"], ["--learning_rate: invalid float value: 'fast'"]),
        (["--eval_strategy", "sometimes"], ["sometimes"]),
        (["stray"], ["'stray' belongs to no flag"]),
        (["--max_steps", "3", "4"], ["'4' belongs to no flag"]),
        (["--output_dir"], ["--output_dir", "expected one argument"]),
        (["--config"], ["--config needs a YAML file"]),
        (["--config", "--max_steps"], ["--config needs a YAML file"]),
        (["--config", "a", "--config", "b"], ["--config is given twice"]),
        (["--config", "none.yaml"], ["--config none.yaml: cannot be read"]),
        (["--td_coef", "1"], ["unknown flag --td_coef"]),
    ],
)
def test_bad_flags(argv, parts):
    fails(argv, *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("learning_rat: 1\n", ["unknown field 'learning_rat' (did you mean learning_rate?)"]),
        ("learning-rate: 1\n", ["unknown field 'learning-rate'"]),
        ("- a\n", ["must be a mapping"]),
        ("", ["must be a mapping"]),
        ("a: 1\nb: [1\n", ["line 3: not valid YAML"]),
        ("env: 3\n", ["'env' must be a mapping"]),
        ("learning_rate: fast\n", ["--learning_rate: invalid float value"]),
        ("5: 1\n", ["unknown field 5"]),
    ],
)
def test_bad_yaml(text, parts, recipe):
    fails(["--config", recipe(text)], *parts)


@pytest.mark.parametrize(
    ("command", "kinds", "guide", "words"),
    [
        (
            "sft",
            SFT,
            GUIDES["sft"],
            ["--baseline_fraction", "--scratch_config", "{messages}", "--max_length"],
        ),
        ("iqlearn", IQ, GUIDES["iqlearn"], ["--td_coef", "--mle_warmup_steps", "(default: 0.1)"]),
        ("dpr", (dpr.RewardArguments, DensePathConfig, ModelConfig), dpr.GUIDE, ["--kl_coef", "--centre_rewards"]),
        ("score", (score.ScoreArguments,), score.GUIDE, ["--baseline", "--html", "--resume"]),
        ("generate", (generate.GenerateArguments,), generate.GUIDE, ["--calculator", "--metrics", "gsm8k"]),
    ],
)
def test_short_help_teaches(command, kinds, guide, words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    with pytest.raises(SystemExit) as stop:
        parse(command, kinds, ["--help"], guide)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.rstrip("\n") == short_help(command, kinds, guide)
    assert text.startswith(f"usage: inverselm {command} ")
    assert f"examples:\n  inverselm {command} " in text
    for word in [*words, "--dataset_name", "--model_name_or_path"]:
        assert word in text
    flags = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert len(flags) == len(set(flags)), "a flag is listed twice"
    body = text[text.index("flags:") :]
    assert all(len(line) <= 90 for line in body.splitlines() if line.startswith("  "))
    assert ("--help_all" in text) == (command in ("sft", "iqlearn", "dpr"))


def test_short_help_names_the_choices_that_its_words_do_not():
    text = " ".join(short_help("filter", (filtering.FilterArguments,), filtering.GUIDE).split())
    assert "lines, the mean. (token | sentence | line; default: token)" in text
    assert "is named, too. (sentence | line; default: line)" in text
    assert "else log_ratio. (default: log_prob)" in text


def test_flags_that_commands_share_are_listed_last():
    for command, kind, guide in (
        ("filter", filtering.FilterArguments, filtering.GUIDE),
        ("generate", generate.GenerateArguments, generate.GUIDE),
    ):
        lines = short_help(command, (kind,), guide).splitlines()
        flags = [line.split()[0] for line in lines if line.startswith("  --")]
        assert flags[-6:] == ["--batch_size", "--dtype", "--device", "--trust_remote_code", "--overwrite", "--resume"]
        assert flags[0] == "--model_name_or_path"


def test_dpr_does_not_offer_what_it_refuses():
    assert "--scratch_config" not in short_help("dpr", (dpr.RewardArguments,), dpr.GUIDE)


def test_every_listed_flag_exists():
    for command, kinds, guide in (
        ("sft", SFT, GUIDES["sft"]),
        ("dpr", (dpr.RewardArguments, DensePathConfig, ModelConfig), dpr.GUIDE),
    ):
        for name in guide.common:
            assert f"  --{name}" in short_help(command, kinds, guide), name


def test_help_all_lists_what_is_inherited(capsys):
    with pytest.raises(SystemExit) as stop:
        parsed("--help_all")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--weight_decay", "--lora_dropout", "--baseline_fraction", "--dataset_streaming"):
        assert flag in text
