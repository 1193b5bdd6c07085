import copy

import pytest
from transformers import GenerationConfig

from inverselm.errors import UserError

CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
)


def test_checkpoint_settings_do_not_leak_into_greedy_search_and_are_put_back(model, tokenizer, run):
    plain = run(model, tokenizer, temperature=0)
    settings = GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=1, num_beams=3, max_length=5, top_k=20)
    model.generation_config = settings
    before = settings.to_dict()
    assert run(model, tokenizer, temperature=0) == plain
    assert model.generation_config is settings
    assert settings.to_dict() == before


def test_a_peft_wrapper_keeps_its_generation_config(model, tokenizer, run):
    from peft import LoraConfig, get_peft_model

    plain = run(model, tokenizer, temperature=0)
    model.generation_config = settings = GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=1)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert run(wrapped, tokenizer, temperature=0) == plain
    assert model.generation_config is settings
    assert wrapped.generation_config is settings


def test_dropout_is_off_during_generation(model, tokenizer, run):
    plain = run(model.eval(), tokenizer, temperature=0)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    assert run(model.train(), tokenizer, temperature=0) == plain


def test_model_mode_and_tokenizer_stay_as_they_were(model, tokenizer, run):
    tokenizer.padding_side = "right"
    model.train()
    model.model.layers[0].eval()
    run(model, tokenizer, temperature=0)
    assert model.training
    assert model.model.layers[1].training
    assert not model.model.layers[0].training
    assert tokenizer.padding_side == "right"
    with pytest.raises(RuntimeError, match="stop"):
        run(model, tokenizer, logits_processor=_failing)
    assert model.training
    assert model.generation_config.max_new_tokens is None


def _failing(tokenizer, prompt_length):
    raise RuntimeError("stop")


def test_chat_messages_are_written_with_the_template(model, tokenizer, run):
    messages = [{"role": "user", "content": "one two"}]
    with pytest.raises(UserError, match=r"prompt 1 .*chat template"):
        run(model, tokenizer, ["x", messages])
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = CHAT_TEMPLATE
    assert run(model, chat, [messages, "x"], temperature=0) == run(
        model, chat, ["[user]one two[bot]", "x"], temperature=0
    )


def test_a_prompt_without_room_or_tokens_is_named(model, tokenizer, run):
    long = "x" * 200
    room = 256 - len(tokenizer.encode(long))
    run(model, tokenizer, [long], max_new_tokens=room, temperature=0)
    with pytest.raises(UserError, match=r"prompt 1 has .* lower max_new_tokens"):
        run(model, tokenizer, ["x", long], max_new_tokens=room + 1)
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        run(model, tokenizer, ["x", ""])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_beams": 4}, "temperature=0"),
        ({"temperature": 0, "num_return": 2}, "num_return"),
        ({"prompts": "x"}, "list of prompts"),
    ],
)
def test_bad_options_are_refused(model, tokenizer, options, named, run):
    with pytest.raises(UserError, match=named):
        run(model, tokenizer, **options)


def test_no_prompts_give_no_completions(model, tokenizer, run):
    assert run(model, tokenizer, []) == []


def test_progress_bar_is_written_to_stderr_only_when_asked(model, tokenizer, capsys, run):
    run(model, tokenizer, temperature=0)
    assert capsys.readouterr().err == ""
    run(model, tokenizer, temperature=0, progress=True)
    captured = capsys.readouterr()
    assert "5/5" in captured.err
    assert captured.out == ""
