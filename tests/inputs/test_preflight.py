"""Checks before a run: folders, tokenizers, checkpoints and lengths."""

import json
import os

import pytest

from inverselm.errors import UserError
from inverselm.inputs.data import check_output_dir, count_too_long, report_lengths
from inverselm.scorers.checks import check_different_checkpoints, check_same_tokenizer, check_tokenizer_has_eos


def fails(call, *parts):
    """`call` raises one line that contains every part."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_output_dir(tmp_path, monkeypatch):
    check_output_dir(tmp_path / "new" / "er")
    assert not list(tmp_path.iterdir())
    full = tmp_path / "full"
    (full / "checkpoint-5").mkdir(parents=True)
    fails(lambda: check_output_dir(full), str(full), "--overwrite_output_dir", "--resume_from_checkpoint")
    check_output_dir(full, overwrite=True)
    check_output_dir(full, resume=True)
    fails(lambda: check_output_dir(tmp_path / "new", resume=True), "no checkpoint-* folder")
    fails(lambda: check_output_dir(full, resume=str(full / "checkpoint-5")), "trainer_state.json")
    (full / "checkpoint-5" / "trainer_state.json").write_text("{}")
    check_output_dir(full, resume=str(full / "checkpoint-5"))
    (tmp_path / "file").write_text("")
    fails(lambda: check_output_dir(tmp_path / "file", overwrite=True), "is a file")
    fails(lambda: check_output_dir(tmp_path / "file" / "below"), "in the way")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    fails(lambda: check_output_dir(tmp_path / "new"), "no permission to write in", str(tmp_path))


def tokenizer(words="abc", **kwargs):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<unk>", "<eos>", "<pad>", *words])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **{"eos_token": "<eos>", **kwargs})


def test_tokenizer_needs_eos():
    check_tokenizer_has_eos(tokenizer(), "m")
    fails(lambda: check_tokenizer_has_eos(tokenizer(eos_token=None), "m"), "m: the tokenizer has no end-of-sequence")
    unknown = tokenizer()
    unknown.eos_token = "</s>"
    fails(lambda: check_tokenizer_has_eos(unknown, "m"), "'</s>' is not in the vocabulary")


def test_tokenizers_must_agree():
    a = tokenizer("abc")
    check_same_tokenizer(a, tokenizer("abc", pad_token="<pad>"), "A", "B")
    fails(lambda: check_same_tokenizer(a, tokenizer("acb"), "A", "B"), "the token 'b' has id 4 in A but 5 in B")
    fails(lambda: check_same_tokenizer(a, tokenizer("abcd"), "A", "B"), "A lacks the token 'd' of B")
    fails(lambda: check_same_tokenizer(tokenizer("abcd"), a, "A", "B"), "B lacks the token 'd' of A")
    fails(lambda: check_same_tokenizer(a, tokenizer(eos_token="<pad>"), "A", "B"), "the eos_token is '<eos>' in A")
    from tokenizers import normalizers

    other = tokenizer("abc")
    other.backend_tokenizer.normalizer = normalizers.Replace("e", "a")
    fails(lambda: check_same_tokenizer(a, other, "A", "B"), "'Hello, world!' becomes")


def test_checkpoints_must_differ(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, weights in zip(folders, (b"x" * 2**21, b"x" * 2**21, b"x" * (2**21 - 1) + b"y"), strict=True):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
    a, b, c = folders
    (tmp_path / "link").symlink_to(a)
    check_different_checkpoints(a, c)
    check_different_checkpoints("org/one", "org/two")
    fails(lambda: check_different_checkpoints(a, b), "identical weights", str(b))
    fails(lambda: check_different_checkpoints(a, tmp_path / "link"), "are the same")
    fails(lambda: check_different_checkpoints("org/one", "org/one"), "are the same, org/one")
    for folder in (a, b):
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": folder.name}))
    check_different_checkpoints(a, b)


def test_lengths_are_reported():
    assert count_too_long([128, 129, 1], 128) == (1, 3)
    ids = [[0] * n for n in (4, 5, 9, 9, 4)]
    report = report_lengths(ids, [1, 1, 4, 5, 0], 4, name="train")
    assert report.startswith("train: 1 of 5 rows (20.0%) is longer than max_length=4 tokens: its answer is cut, kept")
    assert "2 of 5 rows (40.0%) are dropped: the prompt alone fills max_length=4" in report
    assert report_lengths(ids, [1] * 5, 9) == "all 5 rows fit into max_length=9 tokens (the longest has 9)."
    assert "nothing is cut" in report_lengths(ids, [1] * 5, None)
    assert "29,000 rows (0.5%) are longer" in report_lengths([[0] * 3] * 132 + [[0]] * 28868, [0] * 29000, 2)
    fails(lambda: report_lengths(ids, [4] * 5, 4), "in all 5 rows the prompt alone fills max_length=4")
    with pytest.raises(ValueError, match="shorter"):
        report_lengths(ids, [1], 4)
