"""Which states are projected, and how they are cut into chunks, against one document at a time."""

from __future__ import annotations

import pytest
import torch

from helpers.head import mixed_batch
from helpers.mdp import EOS, LAYOUTS, Document, lay_out, random_documents, steps
from inverselm.token_mdp import TokenBatch
from inverselm.token_mdp.chunks import Chunk, States

FEW = [[0.0] * 7]
SIZES = (1, 2, 3, 5, 1000)


def expected_states(documents, batch, places):
    """{flat column: (token, flat column of the next state or None), or None where only a value is needed}."""
    width = batch.input_ids.size(1)
    states = {}
    for document, (row, start) in zip(documents, places, strict=True):
        first = row * width + start
        for step in steps(document):
            if step.next_column is not None:
                states.setdefault(first + step.next_column, None)
        for step in steps(document):
            after = None if step.next_column is None else first + step.next_column
            states[first + step.column - 1] = (document.ids[step.column], after)
    return dict(sorted(states.items()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(8))
def test_states_are_those_that_the_definition_needs(layout, seed):
    documents = random_documents(seed, count=6)
    batch, _, places = lay_out(documents, layout, extra=seed % 3)
    expected = expected_states(documents, batch, places)
    states = States.of(batch)
    assert states.index.tolist() == list(expected)
    assert states.acts.tolist() == [state is not None for state in expected.values()]
    assert states.action.tolist() == [0 if state is None else state[0] for state in expected.values()]
    after = [*states.index[1:].tolist(), None]
    for state, continues, place in zip(expected.values(), states.continues.tolist(), after, strict=True):
        assert continues == (state is not None and state[1] is not None)
        assert not continues or place == state[1]
    owner = batch.document_ids + 1000 * torch.arange(batch.input_ids.size(0))[:, None]
    same = owner.flatten()[states.index]
    assert torch.equal(same[:, None] == same, states.document[:, None] == states.document)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_tokens_to_states_and_back(layout, seed):
    batch = mixed_batch(layout, seed)
    states = States.of(batch)
    numbers = torch.rand(batch.input_ids.shape) + 1
    there = states.at_actions(numbers)
    assert there.shape == (len(states),)
    assert ((there != 0) == states.acts).all()
    assert torch.equal(states.to_tokens(there), torch.where(batch.action_mask, numbers, 0.0))
    back = torch.rand(len(states), requires_grad=True)
    torch.testing.assert_close(states.at_actions(states.to_tokens(back)), torch.where(states.acts, back, 0.0))
    assert torch.equal(torch.autograd.grad(states.to_tokens(back).sum(), back)[0], states.acts.float())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_chunks_hold_every_state_once_and_every_next_state(layout, size, seed):
    batch = mixed_batch(layout, seed)
    states = States.of(batch)
    chunks = list(states.chunks(size))
    assert [i for c in chunks for i in range(c.start, c.end)] == list(range(len(states)))
    for chunk in chunks:
        assert 0 < chunk.end - chunk.start <= size
        for i in range(chunk.start, chunk.end):
            assert not states.continues[i] or i + 1 < chunk.stop
        shared = chunk.end < len(states) and bool(states.continues[chunk.end - 1])
        assert chunk.stop - chunk.end == shared


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_stats_of_chunks_are_those_of_the_batch(layout, size):
    """Each action is in one chunk, with its own numbers and the value of its next state, also over a cut."""
    batch = mixed_batch(layout)
    states = States.of(batch)
    n = len(states)
    q, value, entropy = torch.randn(n), torch.randn(n) + 10, torch.rand(n)
    greedy = torch.rand(n) < 0.5
    whole = states.stats(q, value, entropy, greedy, batch)
    found = {name: torch.zeros(n) for name in ("action_logit", "value", "next_value", "entropy", "greedy")}
    seen = torch.zeros(n)
    for chunk in states.chunks(size):
        part = slice(chunk.start, chunk.stop)
        stats = states.flat_stats(chunk, q[part], value[part], entropy[part], greedy[part])
        seen[part] += stats.action_mask[0]
        assert torch.equal(stats.document_ids[0], states.document[part])
        for name, numbers in found.items():
            numbers[part] += getattr(stats, name)[0]
    assert torch.equal(seen, states.acts.float())
    for name, numbers in found.items():
        assert torch.equal(states.to_tokens(numbers), getattr(whole, name).float()), name
    bare = states.flat_stats(Chunk(0, n, n), q, value, None, None)
    assert bare.entropy is None
    assert bare.greedy is None


def test_next_values_by_hand():
    """One answer that ended, one that was cut off (its last column is a state without action), one turn in between."""
    documents = [
        Document([3, 4, 5, EOS], [False, True, True, True], FEW * 4),
        Document([3, 4, 5, 6, 3], [False, True, False, True, True], FEW * 5),
    ]
    batch, _, _ = lay_out(documents, "right")
    states = States.of(batch)
    assert states.index.tolist() == [0, 1, 2, 5, 7, 8, 9]
    assert states.acts.tolist() == [True, True, True, True, True, True, False]
    value = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert states.next_value(value).tolist() == [2.0, 3.0, 0.0, 5.0, 6.0, 7.0, 0.0]
    stats = states.stats(value, value, None, None, batch)
    assert stats.next_value.tolist() == [[0, 2, 3, 0, 0], [0, 5, 0, 6, 7]]


def test_cuts_lie_between_documents_where_that_costs_little():
    """A cut inside a document computes a state twice; a chunk less than half full costs more."""

    def states(*lengths):
        one = lambda n: Document([3] + [4] * (n - 1) + [EOS], [False] + [True] * n, FEW * (n + 1))
        return States.of(lay_out([one(n) for n in lengths], "packed")[0])

    inside = [Chunk(6, 10, 11), Chunk(10, 14, 15), Chunk(14, 16, 16)]
    assert list(states(3, 3, 10).chunks(4)) == [Chunk(0, 3, 3), Chunk(3, 6, 6), *inside]
    assert list(states(3, 3, 10).chunks(7)) == [Chunk(0, 6, 6), Chunk(6, 13, 14), Chunk(13, 16, 16)]
    assert list(states(3, 3, 10).chunks(16)) == [Chunk(0, 16, 16)]
    assert list(states(4, 10).chunks(8)) == [Chunk(0, 8, 9), Chunk(8, 14, 14)]
    assert list(states(5, 10).chunks(8)) == [Chunk(0, 5, 5), Chunk(5, 13, 14), Chunk(13, 15, 15)]


def test_a_batch_without_actions_has_no_states():
    batch = TokenBatch.build(torch.tensor([[5, 6, 7]]), torch.zeros(1, 3), eos_token_ids=[EOS])
    states = States.of(batch)
    assert len(states) == 0
    assert list(states.chunks(3)) == []
    assert states.at_actions(torch.rand(1, 3)).shape == (0,)
    assert states.to_tokens(torch.rand(0)).tolist() == [[0.0] * 3]
