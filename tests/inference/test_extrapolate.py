"""Weight extrapolation of full models: every tensor by the definition, the files of the new folder, what is refused."""

import itertools
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.data import text_tokenizer, tiny_for
from inverselm.errors import UserError
from inverselm.inference import extrapolate_full
from inverselm.inference.extrapolate import extrapolate
from inverselm.scorers import TokenReward
from inverselm.scorers.markers import read_marker, write_marker


def save(folder, seed, shard="10GB", dtype=torch.float32, **options):
    tiny_for(text_tokenizer(), seed, dtype, **options).save_pretrained(folder, max_shard_size=shard)
    text_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def pair(tmp_path):
    return save(tmp_path / "sft", 0), save(tmp_path / "base", 1)


def weights(folder):
    """The parameters of a folder as transformers loads them, float64."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name: p.detach().double() for name, p in model.named_parameters()}


def check(out, sft, base, weight, rtol=0.0, atol=1e-6):
    """theta_SFT + w (theta_SFT - theta_base), parameter by parameter."""
    found, a, b = weights(out), weights(sft), weights(base)
    assert found.keys() == a.keys()
    for name in found:
        torch.testing.assert_close(found[name], a[name] + weight * (a[name] - b[name]), rtol=rtol, atol=atol)


@pytest.mark.parametrize("weight", [0.5, 3.0, -0.5])
def test_every_parameter_is_the_definitions(pair, tmp_path, weight):
    out = extrapolate(*pair, weight, tmp_path / "out")
    check(out, *pair, weight)
    assert max((x - weights(pair[0])[n]).abs().max() for n, x in weights(out).items()) > 0.1


def test_weight_zero_is_the_sft_model_and_minus_one_the_baseline(pair, tmp_path):
    zero = load_file(extrapolate(*pair, 0.0, tmp_path / "zero") / "model.safetensors")
    assert all(torch.equal(zero[n], t) for n, t in load_file(pair[0] / "model.safetensors").items())
    check(extrapolate(*pair, -1.0, tmp_path / "minus"), pair[1], pair[1], 0.0)


@pytest.mark.parametrize("shards", [("10KB", "10GB"), ("10GB", "10KB"), ("10KB", "20KB")])
def test_sharded_checkpoints(tmp_path, shards):
    sft, base = save(tmp_path / "sft", 0, shards[0]), save(tmp_path / "base", 1, shards[1])
    assert any(len(list(folder.glob("*.safetensors"))) > 1 for folder in (sft, base))
    out = extrapolate(sft, base, 0.5, tmp_path / "out", shard_bytes=8_000)
    check(out, sft, base, 0.5)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for f in files for t in load_file(f).values())
    held = [[t.nbytes for t in load_file(f).values()] for f in files]
    assert all(sum(sizes) <= 8_000 or len(sizes) == 1 for sizes in held)
    assert all(sum(a) + sum(b) > 8_000 for a, b in itertools.pairwise(held))
    single = extrapolate(sft, base, 0.5, tmp_path / "single", shard_bytes=1)
    assert [len(load_file(f)) for f in single.glob("*.safetensors")] == [1] * len(index["weight_map"])
    one = extrapolate(sft, base, 0.5, tmp_path / "one")
    assert [f.name for f in one.glob("*.safetensors*")] == ["model.safetensors"]


def test_blocks_of_a_tensor(pair, tmp_path, monkeypatch):
    """Large tensors are computed a few rows at a time."""
    monkeypatch.setattr(extrapolate_full, "_BLOCK", 50)
    check(extrapolate(*pair, 0.5, tmp_path / "out"), *pair, 0.5)


def test_arithmetic_in_float32_and_the_sft_models_dtype(tmp_path):
    """bfloat16 - float32: the difference of two close weights is not rounded before it is multiplied."""
    sft, base = save(tmp_path / "sft", 0, dtype=torch.bfloat16), tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
    model.save_pretrained(base)
    for folder in (sft, base):
        change(
            folder, lambda tensors: tensors.update(number=torch.tensor(1.0, dtype=tensors["model.norm.weight"].dtype))
        )
    out = load_file(extrapolate(sft, base, 100.0, tmp_path / "out") / "model.safetensors")
    a, b = load_file(sft / "model.safetensors"), load_file(base / "model.safetensors")
    for name, tensor in out.items():
        assert tensor.dtype == torch.bfloat16
        exact = a[name].double() + 100 * (a[name].double() - b[name].double())
        torch.testing.assert_close(tensor, exact.bfloat16(), rtol=0.01, atol=1e-6)
    name = "model.norm.weight"
    assert not torch.equal(out[name], a[name] + 100 * (a[name] - b[name].bfloat16()))


@pytest.mark.parametrize("both", ["sft", "base", "neither", "all"])
def test_tied_weights(tmp_path, both):
    """transformers writes a tied matrix once; others write it twice."""
    folders = {name: save(tmp_path / name, seed, tied=True) for seed, name in enumerate(("sft", "base"))}
    for name, folder in folders.items():
        if both in (name, "all"):
            tensors = load_file(folder / "model.safetensors")
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    out = extrapolate(*folders.values(), 0.5, tmp_path / "out")
    check(out, *folders.values(), 0.5)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with safe_open(out / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) == (both == "all")  # noqa: SIM118


def test_two_matrices_where_one_is_tied_are_refused(tmp_path):
    sft, base = save(tmp_path / "sft", 0, tied=True), save(tmp_path / "base", 1, tied=True)
    change(sft, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1.0}))
    with pytest.raises(UserError, match=r"base lacks lm_head\.weight of"):
        extrapolate(sft, base, 0.5, tmp_path / "out")


def test_whole_numbers_are_kept_if_they_agree(pair, tmp_path):
    for folder, value in zip(pair, (3, 3), strict=True):
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, "steps": torch.tensor([value])}, folder / "model.safetensors", metadata={"format": "pt"})
    out = extrapolate(*pair, 0.5, tmp_path / "out")
    assert load_file(out / "model.safetensors")["steps"].tolist() == [3]
    tensors["steps"] = torch.tensor([4])
    save_file(tensors, pair[1] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"steps holds torch\.int64 numbers, which differ"):
        extrapolate(*pair, 0.5, tmp_path / "other")
    assert not list(tmp_path.glob("*other*")) + list(tmp_path.glob(".*"))


def test_what_the_new_folder_holds(pair, tmp_path):
    sft, base = pair
    write_marker(sft, "sft", steps=4, baseline="baseline")
    for name in ("trainer_state.json", "training_args.bin", "README.md", "optimizer.pt", "train_results.json"):
        (sft / name).write_text("{}")
    for name in ("checkpoint-2", "baseline"):
        shutil.copytree(base, sft / name)
    write_marker(sft / "baseline", "baseline")
    (sft / "chat_template.jinja").write_text("{{ messages }}")
    out = extrapolate(sft, base, 0.5, sft / "further")
    assert {file.name for file in out.iterdir()} == {
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("model.safetensors", "inverselm.json"),
    }
    assert read_marker(out) == {"role": "extrapolated", "sft": str(sft), "baseline": str(base), "weight": 0.5}
    assert AutoTokenizer.from_pretrained(out).get_vocab() == text_tokenizer().get_vocab()
    with pytest.raises(UserError, match="No baseline found"):  # that of the folder around it is the SFT model's
        TokenReward.from_checkpoints(out)


def test_an_output_folder_in_use_is_refused(pair, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    extrapolate(*pair, 0.5, out)  # an empty one is fine
    with pytest.raises(UserError, match="pass --overwrite"):
        extrapolate(*pair, 1.0, out)
    extrapolate(*pair, 1.0, out, overwrite=True)
    check(out, *pair, 1.0)
    with pytest.raises(UserError, match="is read from there"):
        extrapolate(out, pair[1], 1.0, out, overwrite=True)
    with pytest.raises(UserError, match="is read from there"):
        extrapolate(*pair, 1.0, tmp_path, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty, and no extrapolated model"):
        extrapolate(*pair, 1.0, tmp_path / "mine", overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        extrapolate(*pair, 1.0, tmp_path / "mine" / "thesis.tex")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_nothing_is_left_of_a_run_that_was_stopped(pair, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(extrapolate_full, "_combined", stop)
    with pytest.raises(KeyboardInterrupt):
        extrapolate(*pair, 0.5, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"sft", "base"}
    monkeypatch.undo()
    (tmp_path / ".out.unfinished").mkdir()  # of a kill
    (tmp_path / ".out.unfinished" / "junk").write_text("x")
    assert not (extrapolate(*pair, 0.5, tmp_path / "out") / "junk").exists()


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def change(folder, function):
    tensors = load_file(folder / "model.safetensors")
    function(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: change(f, lambda t: t.pop("model.norm.weight")), "base lacks model.norm.weight of"),
        (lambda f: change(f, lambda t: t.update(x=torch.ones(1))), "sft lacks x of"),
        (lambda f: change(f, lambda t: t.update({"model.norm.weight": torch.ones(4)})), r"is \(16,\) in .* but \(4,\)"),
        (lambda f: edit(f, model_type="gpt2"), "is a llama model, .* a gpt2 model"),
        (lambda f: edit(f, quantization_config={"quant_method": "x"}), "is quantised"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "no whole model in safetensors files"),
        (lambda f: (f / "model.safetensors").rename(f / "m.safetensors"), "no whole model in safetensors files"),
    ],
)
def test_models_that_do_not_fit_are_refused(pair, tmp_path, spoil, message):
    spoil(pair[1])
    with pytest.raises(UserError, match=message):
        extrapolate(*pair, 0.5, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"sft", "base"}


def test_float8_weights_are_refused(pair, tmp_path):
    change(pair[0], lambda t: t.update({"model.norm.weight": torch.ones(16).to(torch.float8_e4m3fn)}))
    with pytest.raises(UserError, match="float8"):
        extrapolate(*pair, 0.5, tmp_path / "out")


def test_a_full_disk_is_seen_before_writing(pair, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(extrapolate_full.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"has 0\.0 GiB left"):
        extrapolate(*pair, 0.5, tmp_path / "out")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.01])
def test_bad_weights_are_refused(pair, tmp_path, weight):
    with pytest.raises(UserError, match="weight is"):
        extrapolate(*pair, weight, tmp_path / "out")


def test_the_same_model_twice_or_another_tokenizer_is_refused(pair, tmp_path):
    with pytest.raises(UserError, match="are the same"):
        extrapolate(pair[0], pair[0], 0.5, tmp_path / "out")
    content = json.loads((pair[1] / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    one, two = list(vocab)[-2:]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (pair[1] / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="different tokenizers"):
        extrapolate(*pair, 0.5, tmp_path / "out")


def test_names_in_the_hubs_cache(pair, tmp_path, monkeypatch):
    """A name is looked up in the hub's cache, as transformers does; what is not there is said."""
    import huggingface_hub.constants as constants

    for name, folder in zip(("sft", "base"), pair, strict=True):
        kept = tmp_path / "hub" / f"models--someone--{name}"
        (kept / "refs").mkdir(parents=True)
        (kept / "refs" / "main").write_text("a" * 40)
        shutil.copytree(folder, kept / "snapshots" / ("a" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    out = extrapolate(pair[0], "someone/base", 0.5, tmp_path / "out")
    check(out, *pair, 0.5)


def test_the_working_directory_and_links_are_folders_too(pair, tmp_path, monkeypatch):
    """An empty folder by any name: `.`, `..`, or a link to it."""
    wanted = load_file(extrapolate(*pair, 0.5, tmp_path / "plain") / "model.safetensors")
    for name in ("here", "above/below", "target"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("target")
    for inside, given, where in (("here", ".", "here"), (".", "link", "target"), ("here", "../link/../other", "other")):
        monkeypatch.chdir(tmp_path / inside)
        extrapolate(*pair, 0.5, given)
        found = load_file(tmp_path / where / "model.safetensors")
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert (tmp_path / "link").is_symlink()
    assert not list(tmp_path.rglob("*.unfinished"))
