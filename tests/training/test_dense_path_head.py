"""DensePathTrainer's log-probabilities come from the soft-Q head and are TRL's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from trl import GRPOTrainer

from helpers.models import gradients
from helpers.rollouts import dense_path
from inverselm.training import dense_path as module


def rows():
    """Left-padded prompts, answers of different lengths with padding behind."""
    ids = torch.tensor([[1, 1, 5, 6, 7, 8, 0, 1], [1, 9, 5, 6, 7, 0, 1, 1], [3, 4, 5, 6, 7, 8, 9, 4]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 0, 0], [1] * 8])
    return ids, mask


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_same_numbers_and_gradients_as_trl(tmp_path, temperature, batch_size):
    trainer = dense_path(tmp_path, temperature=temperature, kl_coef=0.0)
    (ids, mask), results = rows(), []
    weights = torch.arange(12.0).view(3, 4).sin()
    for method in (type(trainer)._get_per_token_logps_and_entropies, GRPOTrainer._get_per_token_logps_and_entropies):
        log_prob, entropy, aux = method(
            trainer, trainer.model, ids, mask, 4, batch_size=batch_size, compute_entropy=True
        )
        trainer.model.zero_grad()
        ((log_prob + 0.1 * entropy) * weights * mask[:, 4:]).sum().backward()
        results.append((log_prob.detach(), entropy.detach(), gradients(trainer.model)))
        assert aux is None
    (ours, our_entropy, ours_gradient), (theirs, their_entropy, their_gradient) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_entropy, their_entropy, rtol=1e-5, atol=1e-5)
    assert not ours[mask[:, 4:] == 0].any()
    for name, gradient in their_gradient.items():
        torch.testing.assert_close(ours_gradient[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_the_masks_given_are_left_alone(tmp_path):
    trainer = dense_path(tmp_path)
    ids, mask = rows()
    mask = mask.bool()
    before = mask.clone()
    trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 4)
    assert torch.equal(mask, before)


def test_an_output_layer_of_another_kind_goes_the_way_of_trl(tmp_path, monkeypatch):
    class Doubled(nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    trainer, (ids, mask) = dense_path(tmp_path), rows()
    head = trainer.model.lm_head
    trainer.model.lm_head = Doubled(head.in_features, head.out_features, bias=False)
    calls = []
    monkeypatch.setattr(
        GRPOTrainer,
        "_get_per_token_logps_and_entropies",
        lambda *a, **k: (calls.append(a), (torch.zeros(3, 4),) * 3)[1],
    )
    log_prob, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 4)
    assert len(calls) == 1
    assert trainer._last_log_prob is log_prob


def test_the_head_is_used(tmp_path, monkeypatch):
    used = []
    original = module.token_stats_and_output
    monkeypatch.setattr(
        module, "token_stats_and_output", lambda *a, **k: (used.append(k["temperature"]), original(*a, **k))[1]
    )
    dense_path(tmp_path, temperature=0.8, kl_coef=0.0).train()
    assert used
    assert set(used) == {0.8}
