"""`generate` beyond a model, away from its baseline."""

import pytest
import torch

from inverselm.errors import UserError
from inverselm.evaluation.gsm8k import CalculatorLogitsProcessor

from .conftest import make_model


def plain_loop(sft, base, tokenizer, prompt, weight, steps):
    """Greedy search by hand: no cache, no padding, no library."""
    ids = tokenizer.encode(prompt)
    start = len(ids)
    for _ in range(steps):
        with torch.no_grad():
            a, b = (m(torch.tensor([ids])).logits[0, -1].double() for m in (sft, base))
        ids.append(int(((1 + weight) * a - weight * b).argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tuple(ids[start:])


def test_greedy_equals_a_plain_loop_for_every_prompt_and_batch_size(model, tokenizer, run, prompts):
    base = make_model(len(tokenizer), seed=1).eval()
    expected = [plain_loop(model.eval(), base, tokenizer, p, 0.7, 12) for p in prompts]
    assert expected != [plain_loop(model, base, tokenizer, p, 0.0, 12) for p in prompts]
    for batch_size in (1, 2, 5):
        rows = run(model, tokenizer, temperature=0, batch_size=batch_size, guided_by=base, guidance_weight=0.7)
        assert [row[0].token_ids for row in rows] == expected


def test_weight_zero_changes_nothing(model, tokenizer, run):
    base = make_model(len(tokenizer), seed=1)
    sampled = {"num_return": 3, "batch_size": 2, "seed": 1}
    assert run(model, tokenizer, guided_by=base, guidance_weight=0.0, **sampled) == run(model, tokenizer, **sampled)
    assert run(model, tokenizer, guided_by=base, guidance_weight=0.5, **sampled) != run(model, tokenizer, **sampled)


class ForceThenCalculate(CalculatorLogitsProcessor):
    """Writes `a <<3*4=`, and then lets the calculator and the models work."""

    def __call__(self, input_ids, scores):
        script = self.tokenizer.encode("a <<3*4=")
        step = input_ids.shape[1] - self.prompt_length
        if step < len(script):
            scores = torch.full_like(scores, float("-inf"))
            scores[:, script[step]] = 0
        return super().__call__(input_ids, scores)


def test_what_the_calculator_forces_is_not_guided_away(model, tokenizer, run):
    base = make_model(len(tokenizer), seed=1)
    options = {"logits_processor": ForceThenCalculate, "guided_by": base, "guidance_weight": 2.0}
    for row in run(model, tokenizer, max_new_tokens=20, **options):
        assert row[0].text.startswith("a <<3*4=12>>")


def test_a_bad_weight_is_refused_before_sampling(model, tokenizer, run):
    with pytest.raises(UserError, match="weight"):
        run(model, tokenizer, guided_by=make_model(len(tokenizer)), guidance_weight=-3.0)
