"""The single-file examples compute what the library computes, stand alone, and stay short."""

import ast
import importlib.util
import math
import random
import sys
from pathlib import Path

import pytest
import torch

from inverselm.objectives import iqlearn, kl_in_reward, mle, policy_gradient
from inverselm.token_mdp import TokenBatch, log_ratio, returns_to_go, stats_from_logits, subtract_baseline

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("iqlearn_from_scratch", "dense_path_from_scratch")
VOCAB, EOS, GROUP = 11, 2, 4
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-10}


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def iqlearn_example():
    return load("iqlearn_from_scratch")


@pytest.fixture(scope="module")
def dense_path_example():
    return load("dense_path_from_scratch")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def random_batch(seed, *, pad_id=0, groups=4):
    """Right-padded groups of answers to one prompt each: ended by EOS or truncated, of one token or more."""
    rng = random.Random(seed)
    prompts, completions = [], []
    for _ in range(groups):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 5))]  # may hold EOS: it is not an action
        for _ in range(GROUP):
            answer = [rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 7))]
            prompts.append(prompt)
            completions.append([*answer[:-1], EOS] if rng.random() < 0.6 else answer)
    batch = TokenBatch.from_ids(prompts, completions, pad_token_id=pad_id, eos_token_ids=[EOS], pad_to_multiple_of=8)
    assert batch.terminal.any()
    assert batch.truncated.any()
    assert not batch.attention_mask.all()
    return batch


def random_logits(batch, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*batch.input_ids.shape, VOCAB, generator=generator, dtype=dtype)).requires_grad_(True)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def assert_agree(got, expected):
    tolerance = TOLERANCE[expected.dtype]
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


# ---- IQLearn ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("td_coef", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("pad_id", [0, EOS])
def test_iqlearn_loss_is_the_librarys(iqlearn_example, dtype, td_coef, gamma, pad_id):
    for seed in range(3):
        batch = random_batch(seed, pad_id=pad_id)
        logits = random_logits(batch, dtype, seed)
        ours, metrics = iqlearn_example.iqlearn_loss(logits, batch.input_ids, batch.action_mask, EOS, td_coef, gamma)
        theirs = iqlearn(stats_from_logits(logits, batch), td_coef=td_coef, gamma=gamma)
        assert_agree(ours, theirs.value)
        assert_agree(gradient(ours, logits), gradient(theirs.value, logits))
        for name in ("nll", "td_error", "value_first"):
            assert_agree(metrics[name], theirs.metrics[name])
            assert not metrics[name].requires_grad


def test_without_td_coef_it_is_mle(iqlearn_example, dtype):
    batch = random_batch(7)
    logits = random_logits(batch, dtype, 7)
    ours, _ = iqlearn_example.iqlearn_loss(logits, batch.input_ids, batch.action_mask, EOS, 0.0, 1.0)
    theirs, _ = mle(stats_from_logits(logits, batch))
    assert_agree(ours, theirs)
    assert_agree(gradient(ours, logits), gradient(theirs, logits))


def test_iqlearn_loss_by_hand(iqlearn_example):
    """Uniform policies: V = c + log 11. EOS pays Q = c; a truncated action pays c - V of the state it leads to."""
    tokens = torch.tensor([[5, 6, EOS, 0], [5, 6, 7, 0]])
    mask = torch.tensor([[False, True, True, False]] * 2)
    levels = torch.tensor([[1.0, 2.0, 4.0, 100.0], [1.0, 2.0, 4.0, 100.0]], dtype=torch.float64)
    logits = levels.unsqueeze(-1).expand(2, 4, VOCAB)
    log_v = math.log(VOCAB)
    first, ended, cut = 1 - (2 + log_v), 2.0, 2 - (4 + log_v)  # the first action is the same in both rows
    loss, metrics = iqlearn_example.iqlearn_loss(logits, tokens, mask, EOS, 0.5, 1.0)
    expected = log_v + 0.5 * (2 * first**2 + ended**2 + cut**2) / 4
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["td_error"].item() == pytest.approx((2 * abs(first) + abs(ended) + abs(cut)) / 4, abs=1e-12)
    assert metrics["value_first"].item() == pytest.approx(1 + log_v, abs=1e-12)


def test_more_padding_changes_nothing(iqlearn_example):
    batch = random_batch(3)
    logits = random_logits(batch, torch.float64, 3).detach()
    wide = lambda x, value: torch.cat([x, torch.full_like(x[:, :3], value)], dim=1)
    loss, _ = iqlearn_example.iqlearn_loss(logits, batch.input_ids, batch.action_mask, EOS, 0.3, 0.9)
    padded, _ = iqlearn_example.iqlearn_loss(
        wide(logits, 50.0), wide(batch.input_ids, 1), wide(batch.action_mask, False), EOS, 0.3, 0.9
    )
    assert_agree(padded, loss)


def test_toy_rows_are_the_librarys_batch(iqlearn_example):
    """`right_pad` marks the actions and, with --max_length, the truncations that the library sees."""
    m = iqlearn_example
    rows = m.demonstrations(50, 0.2, torch.Generator().manual_seed(0))
    for max_length in (m.WIDTH, 12):
        tokens, mask = m.right_pad(rows, max_length)
        kept = [(p, a[: max_length - len(p)]) for p, a in rows]
        assert all(answer for _, answer in kept)
        batch = TokenBatch.from_ids(
            [p for p, _ in kept], [a for _, a in kept], pad_token_id=m.PAD, eos_token_ids=[m.EOS]
        )
        width = batch.input_ids.size(1)
        assert torch.equal(tokens[:, :width], batch.input_ids)
        assert torch.equal(mask[:, :width], batch.action_mask)
        assert not mask[:, width:].any()
        assert bool(batch.truncated.any()) == (max_length == 12)


# ---- Dense-Path REINFORCE --------------------------------------------------------------------------------------------
def scored(module, batch, dtype, seed):
    """Log-probabilities of policy (with gradient), SFT and base, by the example and by the library."""
    logits = [random_logits(batch, dtype, 10 * seed + k) for k in range(3)]
    ours = [module.token_log_probs(x, batch.input_ids, batch.action_mask) for x in logits]
    stats = [stats_from_logits(x, batch) for x in logits]
    return logits, ours, stats


def test_token_log_probs_are_the_librarys(dense_path_example, dtype):
    for seed in range(3):
        batch = random_batch(seed)
        logits, ours, stats = scored(dense_path_example, batch, dtype, seed)
        weight = torch.randn(batch.input_ids.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
        assert_agree(ours[0], stats[0].log_prob)
        assert_agree(
            gradient((weight * ours[0]).sum(), logits[0]), gradient((weight * stats[0].log_prob).sum(), logits[0])
        )


def test_reward_return_and_baseline_are_the_librarys(dense_path_example, dtype):
    """With garbage off the actions, values and gradients."""
    m = dense_path_example
    for seed in range(3):
        batch = random_batch(seed)
        mask, generator = batch.action_mask, torch.Generator().manual_seed(seed)
        noise = lambda: torch.randn(mask.shape, dtype=dtype, generator=generator)  # noqa: B023
        a, b, weight = noise().requires_grad_(True), noise(), noise()
        pairs = {
            "reward": (m.dense_reward(a, b, mask), log_ratio(a, b, mask)),
            "return": (m.return_to_go(a, mask), returns_to_go(a, mask)),
            "baseline": (
                m.leave_one_out(a, mask, GROUP),
                subtract_baseline(a, mask, "leave_one_out", group_size=GROUP),
            ),
        }
        for ours, theirs in pairs.values():
            assert_agree(ours, theirs)
            assert_agree(gradient((weight * ours).sum(), a), gradient((weight * theirs).sum(), a))
            assert not ours[~mask].any()


def test_leave_one_out_by_hand(dense_path_example):
    """A group of three: two answers of two tokens, one of one. The third token of the last row has no peer."""
    returns = torch.tensor([[9.0, 1.0, 2.0, 9.0], [9.0, 3.0, 9.0, 9.0], [9.0, 8.0, 6.0, 5.0]])
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]]).bool()
    expected = torch.tensor([[0.0, 1 - 5.5, 2 - 6.0, 0], [0, 3 - 4.5, 0, 0], [0, 8 - 2.0, 6 - 2.0, 5.0]])
    torch.testing.assert_close(dense_path_example.leave_one_out(returns, mask, 3), expected)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1, 2.0])
def test_dpr_loss_has_the_librarys_gradient(dense_path_example, dtype, kl_coef):
    """-A log pi and the library's -A rho differ in value by design; their gradients on policy are the same."""
    for seed in range(3):
        batch = random_batch(seed)
        mask = batch.action_mask
        logits, ours, (policy, sft, base) = scored(dense_path_example, batch, dtype, seed)
        loss = dense_path_example.dpr_loss(*ours, mask, GROUP, kl_coef)
        reward = kl_in_reward(
            log_ratio(sft.log_prob, base.log_prob, mask), policy.log_prob, sft.log_prob, kl_coef, estimator="k1"
        )
        advantages = subtract_baseline(returns_to_go(reward, mask), mask, "leave_one_out", group_size=GROUP).detach()
        theirs = policy_gradient(policy, advantages)
        of_policy, of_sft, of_base = torch.autograd.grad(loss, logits, allow_unused=True)
        assert_agree(of_policy, gradient(theirs.value, logits[0]))
        assert_agree(loss, -(advantages * policy.log_prob).sum() / mask.sum())
        assert of_sft is None  # the SFT model and the baseline are constants
        assert of_base is None


def test_dpr_loss_of_no_action_keeps_its_graph(dense_path_example):
    """A batch without actions has loss 0 and a graph."""
    log_probs = [torch.zeros(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    loss = dense_path_example.dpr_loss(*log_probs, torch.zeros(4, 5, dtype=torch.bool), 4, 1.0)
    assert loss.item() == 0.0
    assert not gradient(loss, log_probs[0]).any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampled_ids_and_mask(dense_path_example, temperature):
    """Everything up to EOS, EOS included, is an action; then padding. The prompt stays. Some rows are truncated."""
    m = dense_path_example
    torch.manual_seed(0)
    right, _, _ = m.draw(64)
    prompts = right[:, : m.LETTERS + 1]
    tokens, mask = m.sample(m.TinyTransformer(), prompts, temperature)
    again, _ = m.sample(
        lambda x: torch.full((*x.shape, len(m.VOCAB)), -1e9).index_fill(-1, torch.tensor(m.EOS), 0.0), prompts, 1.0
    )
    assert torch.equal(tokens[:, : m.LETTERS + 1], prompts)
    for row, acted in zip(tokens.tolist(), mask.tolist(), strict=True):
        answer = row[m.LETTERS + 1 :]
        length = answer.index(m.EOS) + 1 if m.EOS in answer else len(answer)
        assert acted == [False] * (m.LETTERS + 1) + [True] * length + [False] * (len(answer) - length)
        assert set(answer[length:]) <= {m.PAD}
    assert (again[:, m.LETTERS + 1] == m.EOS).all()
    assert (again[:, m.LETTERS + 2 :] == m.PAD).all()


def test_planted_rows_differ_in_one_letter_of_the_answer(dense_path_example):
    m = dense_path_example
    torch.manual_seed(1)
    right, wrong, where = m.draw(200)
    differs = right != wrong
    assert (differs.sum(dim=1) == 1).all()
    assert torch.equal(differs.int().argmax(dim=1), where)
    assert m.ANSWER[where].all()
    assert (wrong[:, -1] == m.EOS).all()
    assert torch.equal(right[:, m.LETTERS + 1 : -1], right[:, : m.LETTERS].sort(dim=1).values)


def test_the_baseline_is_the_half_way_checkpoint(dense_path_example, monkeypatch):
    m = dense_path_example
    taken, steps = [], []
    step, deepcopy = torch.optim.AdamW.step, m.copy.deepcopy
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (steps.append(1), step(self, *a, **k))[1])
    monkeypatch.setattr(m.copy, "deepcopy", lambda x, *a: (taken.append((type(x), len(steps))), deepcopy(x, *a))[1])
    torch.manual_seed(0)
    sft, base = m.train_sft(m.draw(40)[0], 6)
    assert [when for kind, when in taken if kind is m.TinyTransformer] == [3]
    assert len(steps) == 6
    assert not torch.equal(sft.head.weight, base.head.weight)
    assert not any(p.requires_grad for model in (sft, base) for p in model.parameters())


# ---- the scripts -----------------------------------------------------------------------------------------------------
def numbers_in(nested):
    for value in nested.values():
        if isinstance(value, dict):
            yield from numbers_in(value)
        else:
            yield value


def test_iqlearn_script_runs(iqlearn_example, capsys):
    argv = ["--steps", "3", "--demos", "20", "--max_length", "14", "--seed", "3"]
    results = iqlearn_example.main(argv)
    assert set(results) == {"mle", "iqlearn"}
    assert set(results["mle"][3]) == {"nll", "td_error", "value_first", "exact_t1", "exact_greedy"}
    assert all(math.isfinite(x) for x in numbers_in(results))
    assert results["mle"][3] != results["iqlearn"][3]
    table = capsys.readouterr().out
    assert f"{results['iqlearn'][3]['nll']:8.3f}" in table
    assert iqlearn_example.main(argv) == results


def test_iqlearn_script_without_td_coef_runs_mle_twice(iqlearn_example):
    results = iqlearn_example.main(["--steps", "2", "--demos", "20", "--td_coef", "0"])
    assert results["mle"] == results["iqlearn"]


def test_dense_path_script_runs(dense_path_example, capsys):
    argv = ["--sft_steps", "6", "--steps", "2", "--demos", "40", "--seed", "3", "--lr", "1e-3"]
    results = dense_path_example.main(argv)
    policies = {f"{name} {sampler}" for name in ("sft", "dpr", "guided") for sampler in ("T=1", "greedy")}
    assert set(results) == {"planted", *policies}
    assert set(results["dpr T=1"]) == {"reward", "kl", "length", "exact"}
    assert all(math.isfinite(x) for x in numbers_in(results))
    assert results["sft T=1"]["kl"] == 0.0
    assert results["dpr T=1"]["kl"] != 0.0  # it has moved
    table = capsys.readouterr().out
    assert f"{results['dpr greedy']['reward']:7.3f}" in table
    assert "right: " in table
    assert "wrong: " in table
    assert dense_path_example.main(argv) == results


@pytest.mark.parametrize("argv", [["--kl_coef", "0"], ["--group_size", "1"]])
def test_dense_path_script_rejects_what_has_no_meaning(dense_path_example, argv, capsys):
    with pytest.raises(SystemExit):
        dense_path_example.main(argv)
    assert argv[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        load(name).main(["--help"])
    assert stop.value.code == 0
    assert "--seed" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_short_and_plain_torch(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) < 200
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch"}
    assert "importlib" not in imported
