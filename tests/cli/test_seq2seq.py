"""The commands on encoder-decoder models: the same demonstrations, and other flags only where the model has none."""

import json
import shlex

import pytest

from helpers.seq2seq import t5_for, t5_tokenizer, tiny_bart
from inverselm.cli.main import main
from inverselm.inference.generate import generate

from .conftest import SUMS, write_jsonl

CPU = "--use_cpu True --bf16 False --disable_tqdm True --report_to none"
FAST = "--max_steps 6 --learning_rate 1e-2 --per_device_train_batch_size 4"
FROM = "--model_name_or_path t5 --dataset_name sums.jsonl"


def call(text):
    return main(shlex.split(text))


def marker(folder):
    return json.loads((folder / "inverselm.json").read_text(encoding="utf-8"))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tensors(folder):
    from safetensors.torch import load_file

    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a tiny T5 and a tiny BART, with their tokenizer."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = t5_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    ids["decoder_start_token_id"] = tokenizer.eos_token_id
    bart = tiny_bart(0, len(tokenizer), max_position_embeddings=48, **ids)
    for name, model in (("t5", t5_for(tokenizer)), ("bart", bart)):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture(autouse=True)
def link(desk, models):
    for folder in models.iterdir():
        (desk / folder.name).symlink_to(folder)


@pytest.mark.slow
def test_sft_and_what_follows(desk, capsys):
    assert call(f"sft {FROM} {CPU} {FAST} --output_dir run --save_steps 2") == 0
    out = capsys.readouterr().out
    assert "nothing of the 24 rows is cut: the longest prompt has" in out
    assert "Training on the CPU in float32." in out
    assert marker(desk / "run") == {"role": "sft", "steps": 6, "base": "t5", "baseline": "baseline"}
    kept = marker(desk / "run/baseline")
    assert (kept["role"], kept["step"], kept["of_steps"]) == ("baseline", 3, 6)
    assert not same(desk / "run", desk / "run/baseline")
    assert "inverselm dpr" not in out
    suggested = [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("  inverselm ")]
    assert [argv[0] for argv in suggested] == ["score", "generate"]
    capsys.readouterr()
    for argv in suggested:
        assert main(["prompts.jsonl" if word == "<prompts>" else word for word in argv]) == 0
    scored = lines(desk / "scores.jsonl")
    assert len(scored) == len(SUMS)
    assert sum(item["reward"] for item in scored) > 0, "the SFT model likes its demonstrations better than the baseline"
    assert all(item["scored_text"] == item["completion"] + t5_tokenizer().eos_token for item in scored)
    assert call("score --model_name_or_path run --dataset_name answers.jsonl --output_file two.jsonl") == 0
    assert all(item["terminated"] == item["finished"] for item in lines(desk / "two.jsonl"))
    assert call(f"dpr --model_name_or_path run --dataset_name sums.jsonl --output_dir policy {CPU}") == 2
    assert "dpr does not train encoder-decoder models" in capsys.readouterr().err
    assert not (desk / "policy").exists()


@pytest.mark.slow
def test_sft_is_the_trainer_without_td(desk, capsys):
    from helpers.seq2seq import dataset
    from helpers.training import arguments, assert_same_weights
    from inverselm import Seq2SeqIQLearnConfig, Seq2SeqIQLearnTrainer

    assert call(f"sft {FROM} {CPU} {FAST} --output_dir run --baseline_fraction 0") == 0
    trainer = Seq2SeqIQLearnTrainer(
        t5_for(t5_tokenizer()),
        args=arguments(
            Seq2SeqIQLearnConfig, desk / "own", td_coef=0.0, max_steps=6, learning_rate=1e-2, optim="adamw_torch_fused"
        ),
        train_dataset=dataset(SUMS),
        processing_class=t5_tokenizer(),
    )
    trainer.train()
    from transformers import T5ForConditionalGeneration

    assert_same_weights(trainer.model, T5ForConditionalGeneration.from_pretrained(desk / "run"), atol=1e-5)
    assert not (desk / "run/baseline").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["t5", "bart"])
def test_iqlearn_from_a_config_file_with_evaluation(model, desk, capsys):
    (desk / "recipe.yaml").write_text(f"model_name_or_path: {model}\ntd_coef: 0.5\n", encoding="utf-8")
    options = "--gamma 0.9 --eval_strategy steps --eval_steps 3 --eval_dataset_name sums.jsonl --logging_steps 1"
    cut = "--max_source_length 8 --max_target_length 5 --dataset_name sums.jsonl"
    assert call(f"iqlearn --config recipe.yaml {options} {cut} {CPU} {FAST} --output_dir iq") == 0
    out = capsys.readouterr().out
    assert "24 of 24 prompts (100.0%) are longer than 8 tokens (--max_source_length): their end is cut." in out
    assert "24 of 24 answers (100.0%) are longer than 5 tokens (--max_target_length): they are cut" in out
    assert marker(desk / "iq") == {
        "role": "iqlearn", "steps": 6, "base": model, "td_coef": 0.5, "gamma": 0.9, "baseline": "baseline"
    }  # fmt: skip
    logged = json.loads((desk / "iq/trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert sum("td_error" in entry for entry in logged) == 6
    assert sum("eval_td_error" in entry for entry in logged) == 2
    assert call("score --model_name_or_path iq --dataset_name sums.jsonl") == 0
    assert call("generate --model_name_or_path iq --dataset_name prompts.jsonl --max_new_tokens 8") == 0


@pytest.mark.slow
def test_adapters(desk, capsys):
    lora = "--use_peft True --lora_r 4 --lora_target_modules q wo"
    assert call(f"sft {FROM} {CPU} {FAST} {lora} --output_dir lora") == 0
    for folder in ("lora", "lora/baseline"):
        config = json.loads((desk / folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["task_type"] == "SEQ_2_SEQ_LM"
        assert not (desk / folder / "model.safetensors").exists()
    assert call("score --model_name_or_path lora --dataset_name sums.jsonl") == 0
    assert max(abs(item["reward"]) for item in lines(desk / "scores.jsonl")) > 0
    assert call("generate --model_name_or_path lora --dataset_name prompts.jsonl --max_new_tokens 4") == 0


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_weights(desk):
    whole = f"sft {FROM} {CPU} {FAST} --save_steps 2 --output_dir"
    assert call(f"{whole} whole") == 0
    import shutil

    shutil.copytree(desk / "whole", desk / "half", ignore=shutil.ignore_patterns("checkpoint-6", "*.safetensors"))
    shutil.copytree(desk / "whole/checkpoint-4", desk / "half/checkpoint-4", dirs_exist_ok=True)
    shutil.copytree(desk / "whole/baseline", desk / "half/baseline", dirs_exist_ok=True)
    assert call(f"{whole} half --resume_from_checkpoint True") == 0
    assert same(desk / "whole", desk / "half")


def test_rows_that_do_not_fit_are_left_out_of_scores(desk, capsys):
    long = {"prompt": "7 " * 30, "completion": "7 " * 30}
    write_jsonl(desk / "mixed.jsonl", [SUMS[0], {**long, "completion": "7"}, {**long, "prompt": "7"}])
    assert call("score --model_name_or_path bart --reward log_prob --dataset_name mixed.jsonl") == 0
    assert "2 of 3 answers (66.7%) are left out: longer than the model's 48 positions." in capsys.readouterr().out
    assert call("score --model_name_or_path t5 --reward log_prob --dataset_name mixed.jsonl --overwrite") == 0
    assert len(lines(desk / "scores.jsonl")) == 3  # T5 has relative positions


def test_every_position_but_the_start_tokens_can_be_scored(desk, capsys):
    """47 tokens and the start token fill 48 positions; one more does not fit."""
    answer = "7 " * 23
    ids = t5_tokenizer()(answer)["input_ids"]
    write_jsonl(desk / "fits.jsonl", [{"prompt": "a", "completion": answer}])
    write_jsonl(desk / "does_not.jsonl", [{"prompt": "a", "completion": answer + "7"}])
    assert len(ids) == 47
    assert call("score --model_name_or_path bart --reward bellman --dataset_name fits.jsonl") == 0
    assert call("score --model_name_or_path bart --reward bellman --dataset_name does_not.jsonl --overwrite") == 2
    assert "the answer is longer than the model's 48 positions" in capsys.readouterr().err


def test_greedy_answers_do_not_depend_on_the_batch():
    """BART's encoder has absolute positions: padding must not shift them."""
    tokenizer = t5_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    prompts = ["a", "a much longer prompt 12+34", "12", "1+1= ", "b 7"]
    for seed in range(4):
        model = tiny_bart(seed, len(tokenizer), decoder_start_token_id=tokenizer.eos_token_id, **ids)
        answers = lambda some, model=model: [
            row[0].token_ids
            for row in generate(model, tokenizer, some, temperature=0, max_new_tokens=6, progress=False)
        ]
        assert answers(prompts) == [answer for prompt in prompts for answer in answers([prompt])]


CASES = [
    (f"sft {FROM} --max_length 64 --output_dir new", "--max_length: means nothing|--max_target_length"),
    (f"iqlearn {FROM} --packing --output_dir new", "--packing: means nothing to an encoder-decoder"),
    (f"sft {FROM} --td_coef 0.1 --output_dir new", "flags of `inverselm iqlearn`"),
    (f"sft {FROM} --max_target_lengt 9 --output_dir new", "unknown flag --max_target_lengt (did you mean"),
    (f"sft {FROM} --load_in_4bit --output_dir new", "--load_in_4bit"),
    ("sft --model_name_or_path t5 --dataset_name messages.jsonl --output_dir new", "'prompt' and 'completion'|last"),
    ("sft --model_name_or_path t5 --dataset_name talk.jsonl --output_dir new", "no chat template; pass a model"),
    ("sft --model_name_or_path t5 --dataset_name empty.jsonl --output_dir new", "empty.jsonl: line 2"),
    (f"sft {FROM} --max_steps 1 --output_dir new", "one optimiser step"),
    (f"iqlearn {FROM} --gamma 2 --output_dir new", "gamma must be in"),
    (f"iqlearn {FROM} --max_target_length 0 --output_dir new", "max_target_length must be >= 1"),
    (f"sft {FROM} --config list.yaml --output_dir new", "list.yaml"),
    (f"sft {FROM} --config length.yaml --output_dir new", "--max_length: means nothing"),
    ("dpr --model_name_or_path t5 --dataset_name sums.jsonl --output_dir new", "dpr does not train encoder-decoder"),
    ("score --model_name_or_path t5 --dataset_name sums.jsonl", "No baseline found in t5"),
]


@pytest.mark.parametrize(("command", "parts"), CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_one_line_and_writes_nothing(command, parts, desk, capsys):
    (desk / "length.yaml").write_text("max_length: 64\n", encoding="utf-8")
    before = sorted(path.name for path in desk.iterdir())
    assert call(command) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"inverselm {command.split()[0]}: error: ")
    for part in parts.split("|"):
        assert part in err
    assert sorted(path.name for path in desk.iterdir()) == before


@pytest.mark.parametrize("command", ["sft", "iqlearn"])
def test_help_knows_the_model(command, desk, capsys):
    assert call(f"{command} --model_name_or_path t5 --help") == 0
    page = capsys.readouterr().out
    assert "--max_source_length" in page
    assert "--packing" not in page
    assert ("--td_coef" in page) == (command == "iqlearn")
    assert call(f"{command} --model_name_or_path sft --help") == 0
    page = capsys.readouterr().out
    assert "--max_source_length" not in page
    assert "--packing" in page
    assert call(f"{command} --model_name_or_path t5 --help_all") == 0
    assert "--generation_max_length" in capsys.readouterr().out
