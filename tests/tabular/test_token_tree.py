"""The enumerated MDP is the one TokenBatch describes."""

import pytest
import torch

from inverselm.tabular import TokenTree, sequence_log_probs
from inverselm.tabular import log_policy as policy_of
from inverselm.token_mdp import TokenBatch, bellman_residual, sequence_sum, stats_from_logits


def test_enumeration():
    tree = TokenTree(vocab_size=3, max_length=3, min_length=2)
    assert tree.states == ((), (1,), (2,), (1, 1), (1, 2), (2, 1), (2, 2))
    assert tree.sequences == ((1, 0), (2, 0), (1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 0))
    assert tree.allowed.tolist() == [[False, True, True]] + [[True] * 3] * 2 + [[True, False, False]] * 4
    end = tree.terminal
    assert tree.next_state[:3].tolist() == [[end, 1, 2], [end, 3, 4], [end, 5, 6]]
    assert (tree.next_state[3:] == end).all()


@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 1, "max_length": 2},
        {"vocab_size": 3, "max_length": 2, "eos": 3},
        {"vocab_size": 3, "max_length": 2, "min_length": 3},
        {"vocab_size": 3, "max_length": 2, "min_length": 0},
        {"vocab_size": 11, "max_length": 6},
    ],
)
def test_sizes_that_make_no_tree(sizes):
    with pytest.raises(ValueError, match=r"Need|More than"):
        TokenTree(**sizes)


@pytest.mark.parametrize("sizes", [(4, 4, 2, 1), (3, 4, 0, 3), (2, 5, 1, 1), (3, 1, 0, 1)])
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_stats_are_those_of_the_table(sizes, padding_side, table):
    """Q, V, V(next) and log pi of every action, read through TokenBatch, are the table's; every episode terminates."""
    tree = TokenTree(*sizes)
    q = table(tree, 0, 3.0)
    batch = tree.batch(padding_side=padding_side)
    stats = stats_from_logits(tree.logits_for(batch, q), batch)
    value = torch.cat([tree.mask(q).logsumexp(-1), q.new_zeros(1)])
    expected = {
        "action_logit": q,
        "value": value[:-1, None].expand_as(q),
        "next_value": value[tree.next_state],
        "log_prob": policy_of(tree, q),
    }
    for name, wanted in expected.items():
        torch.testing.assert_close(getattr(stats, name), tree.at_actions(wanted, batch), rtol=0, atol=1e-12, msg=name)
    assert int(batch.terminal.sum()) == len(tree.sequences)
    assert not batch.truncated.any()
    assert int(batch.num_actions) == sum(map(len, tree.sequences))


def test_sequence_log_probs_are_a_distribution(tree, table, read):
    q = table(tree, 1, 2.0)
    batch, stats = read(tree, q)
    log_probs = sequence_log_probs(tree, policy_of(tree, q))
    torch.testing.assert_close(sequence_sum(stats.log_prob, batch.action_mask), log_probs, rtol=0, atol=1e-12)
    assert abs(float(log_probs.exp().sum()) - 1) < 1e-12


def test_nothing_reads_columns_after_the_end(tree, table, read, gradient):
    """They are nan: neither the numbers nor the gradient are."""
    batch, stats = read(tree, table(tree, 2))
    assert tree.logits_for(batch, table(tree, 2)).isnan().any()
    for values in (stats.action_logit, stats.value, stats.next_value):
        assert values.isfinite().all()
    slope = gradient(lambda q: bellman_residual(read(tree, q)[1]).square().sum(), table(tree, 3))
    assert slope.isfinite().all()
    assert (slope[~tree.allowed] == 0).all()
    assert (slope[tree.allowed] != 0).any()


def test_table_round_trip(tree, table):
    q = table(tree, 3)
    batch = tree.batch()
    back = tree.to_table(tree.at_actions(q, batch), batch)
    assert torch.equal(back, torch.where(tree.allowed, q, 0.0))
    with pytest.raises(ValueError, match="no table"):
        tree.to_table(torch.rand_like(tree.at_actions(q, batch)), batch)


def test_prompts_and_packing_change_nothing(small, table):
    """The same actions have the same numbers behind a prompt and beside other documents in a packed row."""
    q = table(small, 4)
    rows = [(1, 2, 0), (2, 1, 1, 0), (0,)]
    ids = torch.tensor([[token for row in rows for token in (small.eos, *row)]])
    positions = torch.tensor([[t for row in rows for t in range(len(row) + 1)]])
    packed = TokenBatch.build(ids, positions > 0, eos_token_ids=[small.eos], position_ids=positions)
    stats = stats_from_logits(small.logits_for(packed, q), packed)
    alone = small.batch(rows)
    single = stats_from_logits(small.logits_for(alone, q), alone)
    prompted = small.batch(rows[:2], prompt_length=1)
    behind = stats_from_logits(small.logits_for(prompted, q), prompted)
    for name in ("action_logit", "value", "next_value"):
        one = getattr(single, name)
        assert torch.equal(getattr(stats, name)[packed.action_mask], one[alone.action_mask])
        keep = prompted.action_mask
        assert torch.equal(getattr(behind, name)[keep], one[:2][keep])
    assert int(prompted.num_actions) == 5
