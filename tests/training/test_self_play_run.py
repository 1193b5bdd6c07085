"""Self-play, whole: what each iteration starts from, what it samples, what it leaves, and what it refuses."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.data import CHATML_WITH_NEWLINE, chat_pairs, chats, sums, tiny_for, toy_tokenizer
from helpers.training import arguments, assert_same_weights, weights_moved
from inverselm import SelfPlayConfig, UserError, self_play
from inverselm.scorers import load_model
from inverselm.scorers.markers import read_marker
from inverselm.training import self_play_rollouts as rollouts
from inverselm.training.self_play import _pairs, can_resume
from inverselm.training.self_play_rollouts import encode_demonstrations, sample_answers
from inverselm.training.self_play_trainer import SelfPlayTrainer

TOKENIZER = toy_tokenizer()
EOS = TOKENIZER.eos_token_id


@pytest.fixture
def sft(tmp_path):
    tiny_for(TOKENIZER).save_pretrained(tmp_path / "sft")
    TOKENIZER.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


@pytest.fixture
def trainers(monkeypatch):
    """Every trainer that was made."""
    made = []
    plain = SelfPlayTrainer.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(SelfPlayTrainer, "__init__", init)
    return made


def config(folder, **options):
    settings = {"iterations": 2, "max_steps": 2, "learning_rate": 0.1, "max_completion_length": 8, **options}
    return arguments(SelfPlayConfig, folder, **{"generation_batch_size": 2, **settings})


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run(sft, tmp_path, trainers):
    """Each iteration samples from the last one's model and has it as its reference; the last one is the result."""
    said, out = [], tmp_path / "run"
    assert self_play(sft, sums(), config(out), say=said.append) == out
    assert [line.split(":")[0] for line in said] == ["Iteration 1 of 2", "Iteration 2 of 2"]
    demonstrations = encode_demonstrations(sums(), TOKENIZER, max_length=128, max_completion_length=8)
    models = [AutoModelForCausalLM.from_pretrained(f) for f in (sft, out / "iteration_1", out / "iteration_2", out)]
    assert weights_moved(models[0], models[1]) > 1e-3
    assert weights_moved(models[1], models[2]) > 1e-3
    assert_same_weights(models[2], models[3], atol=0.0)
    for number, model in enumerate(models[:2], 1):
        seed = trainers[0].args.seed + 1_000_003 * (number - 1)
        again = sample_answers(model, TOKENIZER, demonstrations, tmp_path / f"again_{number}.jsonl",
                               max_completion_length=8, batch_size=2, seed=seed)  # fmt: skip
        assert records(out / f"iteration_{number}" / "generated.jsonl") == again
    assert records(out / "iteration_1/generated.jsonl") != records(out / "iteration_2/generated.jsonl")
    for trainer in trainers:
        first = trainer.state.log_history[0]
        assert first["log_ratio/real"] == pytest.approx(0.0, abs=1e-5)
        assert trainer.state.global_step == 2
    facts = {"role": "selfplay", "iterations": 2, "loss_type": "spin", "beta": 0.1, "steps": 2}
    assert facts.items() <= read_marker(out).items()
    assert {"iteration": 1, "steps": 2}.items() <= read_marker(out / "iteration_1").items()
    made = records(out / "iteration_2/generated.jsonl")
    assert read_marker(out)["generated_length"] == sum(len(r["token_ids"]) for r in made) / 16
    assert read_marker(out)["generated_truncated"] == sum(not r["finished"] for r in made) / 16
    assert AutoTokenizer.from_pretrained(out).get_vocab() == TOKENIZER.get_vocab()
    assert not list(out.rglob("*.bin"))
    assert not list(out.rglob("*.parts"))


def test_own_answers_are_taken_as_sampled(sft, tmp_path, trainers):
    """An EOS only where the model ended; every row has an answer of its own, also where prompts repeat."""
    rows = sums(4) * 4
    self_play(sft, rows, config(tmp_path / "run", iterations=1))
    made = records(tmp_path / "run/iteration_1/generated.jsonl")
    data = trainers[0].train_dataset
    assert [row["prompt"] for row in made] == [row["prompt"] for row in rows]
    assert [tuple(ids) for ids in data["rejected_ids"]] == [tuple(row["token_ids"]) for row in made]
    for row in made:
        assert row["finished"] == (row["token_ids"][-1] == EOS)
        assert row["finished"] or len(row["token_ids"]) == 8
    assert 0 < sum(row["finished"] for row in made) < len(made)
    for prompt in {row["prompt"] for row in rows}:
        assert len({tuple(row["token_ids"]) for row in made if row["prompt"] == prompt}) > 1
    drawn = [row["token_ids"] for row in made]
    assert drawn[:8] != drawn[8:], "the parts have seeds of their own"
    assert all(ids[-1] == EOS for ids in data["chosen_ids"])


def test_sampling_goes_on_where_it_stopped_and_may_be_shared(sft, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(sft)
    demonstrations = encode_demonstrations(sums(), TOKENIZER, max_length=None, max_completion_length=8)
    settings = {"max_completion_length": 8, "batch_size": 1, "seed": 3}
    whole = sample_answers(model, TOKENIZER, demonstrations, tmp_path / "whole.jsonl", **settings)
    prompts, plain = [], rollouts.generate

    def counted(model, tokenizer, asked, **options):
        if len(prompts) == 8 and not counted.resumed:
            raise KeyboardInterrupt
        prompts.extend(asked)
        return plain(model, tokenizer, asked, **options)

    counted.resumed = False
    monkeypatch.setattr(rollouts, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        sample_answers(model, TOKENIZER, demonstrations, tmp_path / "stopped.jsonl", **settings)
    assert not (tmp_path / "stopped.jsonl").exists()
    counted.resumed = True
    assert sample_answers(model, TOKENIZER, demonstrations, tmp_path / "stopped.jsonl", **settings) == whole
    assert prompts == [one.prompt_ids for one in demonstrations], "each prompt once"

    class Process:
        num_processes, process_index, is_main_process = 2, 1, False

        def wait_for_everyone(self):
            pass

    monkeypatch.setattr("accelerate.PartialState", Process)
    with pytest.raises(FileNotFoundError):  # the other one writes the file
        sample_answers(model, TOKENIZER, demonstrations, tmp_path / "shared.jsonl", **settings)
    assert len(list((tmp_path / "shared.jsonl.parts").iterdir())) == 2
    Process.process_index, Process.is_main_process = 0, True
    assert sample_answers(model, TOKENIZER, demonstrations, tmp_path / "shared.jsonl", **settings) == whole
    with pytest.raises(UserError, match="answers to other demonstrations"):
        sample_answers(model, TOKENIZER, demonstrations[1:], tmp_path / "shared.jsonl", **settings)


def test_more_iterations_later(sft, tmp_path, trainers):
    """A finished run goes on as the longer one would have, and never mixes settings or data."""
    self_play(sft, sums(), config(tmp_path / "long", iterations=2))
    out = tmp_path / "run"
    self_play(sft, sums(), config(out, iterations=1))
    assert can_resume(out)
    assert read_marker(out)["iterations"] == 1
    with pytest.raises(UserError, match="holds a run of self-play; resume it"):
        self_play(sft, sums(), config(out, iterations=2))
    go_on = {"resume_from_checkpoint": "True"}
    for options, rows, start, name in (
        ({"loss_type": "gsil_lsif"}, sums(), sft, "loss_type"),
        ({"seed": 5}, sums(), sft, "seed"),
        ({}, sums(15), sft, "data"),
        ({}, sums(), tmp_path / "long", "model"),
    ):
        with pytest.raises(UserError, match=f"holds a run with {name}"):
            self_play(start, rows, config(out, **go_on, **options))
    count = len(trainers)
    self_play(sft, sums(), config(out, **go_on))
    assert len(trainers) == count + 1
    pair = [AutoModelForCausalLM.from_pretrained(folder) for folder in (out, tmp_path / "long")]
    assert_same_weights(*pair, atol=0.0)
    assert read_marker(out) == read_marker(tmp_path / "long")
    self_play(sft, sums(), config(out, **go_on))
    assert len(trainers) == count + 1, "nothing is left to do"


def test_adapters(sft, tmp_path, trainers):
    """Iteration 1 makes one on the SFT model, iteration 2 goes on with it."""
    out = tmp_path / "run"
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    self_play(sft, sums(), config(out, learning_rate=1.0), peft_config=lora)
    for folder in (out / "iteration_1", out / "iteration_2", out):
        assert (folder / "adapter_model.safetensors").is_file()
        assert not (folder / "model.safetensors").exists()
        assert not (folder / "ref").exists()
    models = [load_model(folder) for folder in (out / "iteration_1", out / "iteration_2", out)]
    assert weights_moved(models[0], models[1]) > 1e-4
    assert_same_weights(models[1], models[2], atol=0.0)
    base = {n.replace(".base_layer", ""): w for n, w in models[2].get_base_model().state_dict().items()}
    assert all(torch.equal(base[name], weight) for name, weight in tiny_for(TOKENIZER).state_dict().items())
    assert trainers[1].state.log_history[0]["log_ratio/real"] == pytest.approx(0.0, abs=1e-5)


def test_a_model_in_memory_and_held_out_rows(tmp_path, trainers):
    options = {"eval_strategy": "steps", "eval_steps": 2, "loss_type": "gsil_bernoulli"}
    out = self_play(
        tiny_for(TOKENIZER), sums(8), config(tmp_path / "run", **options),
        eval_dataset=sums(16)[8:], processing_class=TOKENIZER,
    )  # fmt: skip
    assert len(records(out / "iteration_2/generated_eval.jsonl")) == 8
    for trainer in trainers:
        (entry,) = (entry for entry in trainer.state.log_history if "eval_loss" in entry)
        assert {"eval_rewards/margins", "eval_generated_truncated"} <= entry.keys()
    assert {"gsil_scale": 0.01, "gsil_offset": 2.0}.items() <= read_marker(out).items()
    assert "beta" not in read_marker(out)


@pytest.mark.parametrize("form", ["pairs", "messages"])
def test_conversations(form):
    """Read by the chat template; an answer ends with its EOS, without what the template puts behind it."""
    tokenizer = toy_tokenizer(chat=True)
    plain = tokenizer.chat_template
    tokenizer.chat_template = CHATML_WITH_NEWLINE
    try:
        rows = chat_pairs(3) if form == "pairs" else chats(3)
        found = encode_demonstrations(rows, tokenizer, max_length=None, max_completion_length=8)
        asked = [tokenizer.apply_chat_template(r["prompt"], add_generation_prompt=True, tokenize=False)
                 for r in chat_pairs(3)]  # fmt: skip
        assert [tokenizer.decode(one.prompt_ids) for one in found] == asked
        answers = [row["completion"] + tokenizer.eos_token for row in sums(3)]
        assert [tokenizer.decode(one.answer_ids) for one in found] == answers
    finally:
        tokenizer.chat_template = plain


def test_empty_and_equal_answers_stay():
    found = encode_demonstrations(sums(2), TOKENIZER, max_length=None, max_completion_length=8)
    pairs = _pairs(found, [{"token_ids": [EOS]}, {"token_ids": found[1].answer_ids}])
    assert pairs["rejected_ids"][0] == [EOS]
    assert pairs["rejected_ids"][1] == pairs["chosen_ids"][1]


def test_prompts_without_room_are_left_out(monkeypatch):
    said = []
    monkeypatch.setattr(rollouts.logger, "warning", said.append)
    rows = [sums(1)[0], {"prompt": sums(1)[0]["prompt"] * 9, "completion": "1"}]
    found = encode_demonstrations(rows, TOKENIZER, max_length=20, max_completion_length=8)
    assert [one.row for one in found] == [0]
    assert "1 of 2 demonstrations are left out" in said[0]
    with pytest.raises(UserError, match="no prompt leaves room for max_completion_length=15 within 20"):
        encode_demonstrations(rows, TOKENIZER, max_length=20, max_completion_length=15)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "1+1=2"}, "needs 'prompt' and 'completion'"),
        ({"messages": [{"role": "user", "content": "1"}]}, "that end with the assistant's"),
        ({"prompt": "1+", "completion": "1", "tools": ["a"]}, "rows with tools"),
        ({"prompt": "", "completion": "1"}, "the prompt has no tokens"),
    ],
)
def test_rows_that_are_refused(row, message):
    with pytest.raises(UserError, match=message):
        encode_demonstrations([row], TOKENIZER, max_length=None, max_completion_length=8)
    with pytest.raises(UserError, match="no rows"):
        encode_demonstrations([], TOKENIZER, max_length=None, max_completion_length=8)


def test_runs_that_are_refused(sft, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    with pytest.raises(UserError, match="needs a SelfPlayConfig"):
        self_play(sft, sums(), args=1)
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=32))
    with pytest.raises(UserError, match="encoder-decoder"):
        self_play(t5, sums(), config(tmp_path / "run"), processing_class=TOKENIZER)
    shutil.copytree(sft, tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"1")
    with pytest.raises(UserError, match="Could not load a model"):
        self_play(tmp_path / "broken", sums(), config(tmp_path / "run"))
