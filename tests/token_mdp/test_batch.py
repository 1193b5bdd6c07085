"""Who is whose next state: EOS, truncation, turns, packing, padding."""

from __future__ import annotations

import pytest
import torch

from helpers.mdp import EOS, LAYOUTS, lay_out, random_documents, steps
from inverselm.token_mdp import PADDING, TERMINAL, TokenBatch
from inverselm.token_mdp.batch import first_actions, last_actions


def build(ids, actions, **kwargs):
    kwargs.setdefault("eos_token_ids", [EOS])
    return TokenBatch.build(torch.tensor([ids]), torch.tensor([actions]).bool(), **kwargs)


def test_terminated_episode_ends_in_the_terminal_state():
    batch = build([5, 6, 7, 8, EOS], [0, 0, 1, 1, 1])
    assert batch.next_state.tolist() == [[-1, -1, 2, 3, TERMINAL]]
    assert batch.terminal.tolist() == [[False, False, False, False, True]]
    assert not batch.truncated.any()
    assert batch.num_actions == 3


def test_truncated_episode_bootstraps_at_its_last_token():
    batch = build([5, 6, 7, 8, 9], [0, 0, 1, 1, 1])
    assert batch.next_state.tolist() == [[-1, -1, 2, 3, 4]]
    assert not batch.terminal.any()
    assert batch.truncated.tolist() == [[False, False, False, False, True]]


def test_eos_of_an_earlier_turn_leads_to_the_next_assistant_state():
    #             u  u  a  a  a    u  u  a  a
    batch = build([5, 6, 7, 8, EOS, 5, 6, 7, EOS], [0, 0, 1, 1, 1, 0, 0, 1, 1])
    assert batch.next_state.tolist() == [[-1, -1, 2, 3, 6, -1, -1, 7, TERMINAL]]
    assert batch.terminal.sum() == 1
    assert batch.document_ids.unique().tolist() == [0]


def test_assistant_speaks_first_and_first_token_is_no_action():
    batch = build([7, 8, EOS, 5, 9, EOS], [1, 1, 1, 0, 1, 1])
    assert batch.action_mask.int().tolist() == [[0, 1, 1, 0, 1, 1]]
    assert batch.next_state.tolist() == [[-1, 1, 3, -1, 4, TERMINAL]]


def test_tokens_of_the_template_after_eos_do_not_undo_termination():
    batch = build([5, 7, EOS, 9], [0, 1, 1, 0])
    assert batch.next_state.tolist() == [[-1, 1, TERMINAL, -1]]


def test_truncation_in_the_middle_of_a_user_turn():
    closed = build([5, 7, EOS, 5, 6], [0, 1, 1, 0, 0])  # the assistant's turn was over
    assert closed.next_state.tolist() == [[-1, 1, TERMINAL, -1, -1]]
    open_turn = build([5, 7, 8, 5, 6], [0, 1, 1, 0, 0])  # it never ended: V is bootstrapped after all that is known
    assert open_turn.next_state.tolist() == [[-1, 1, 4, -1, -1]]
    assert open_turn.truncated.tolist() == [[False, False, True, False, False]]


def test_user_turn_that_ends_in_eos_is_not_an_end():
    batch = build([5, EOS, 7, 8], [0, 0, 1, 1])
    assert batch.next_state.tolist() == [[-1, -1, 2, 3]]


def test_packed_documents_never_cross():
    ids = [5, 7, EOS, 5, 7, 8, 7, 6, EOS]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1, 2]])
    batch = build(ids, [0, 1, 1, 0, 1, 1, 1, 1, 1], position_ids=positions)
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]]
    assert batch.action_mask.int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 1, 1]]  # column 6 opens a document
    assert batch.next_state.tolist() == [[-1, 1, TERMINAL, -1, 4, 5, -1, 7, TERMINAL]]
    assert batch.truncated.int().tolist() == [[0, 0, 0, 0, 0, 1, 0, 0, 0]]


def test_packed_inputs_are_told_by_positions_and_padded_ones_by_the_mask():
    positions = torch.tensor([[0, 1, 0, 1]])
    packed = build([5, 7, 5, 7], [0, 1, 0, 1], position_ids=positions)
    assert packed.packed
    assert set(packed.model_inputs()) == {"input_ids", "position_ids"}
    assert torch.equal(packed.model_inputs()["position_ids"], positions)
    right = build([5, 7, 0], [0, 1, 0], attention_mask=torch.tensor([[1, 1, 0]]))
    assert set(right.model_inputs()) == {"input_ids", "attention_mask"}
    left = build([0, 5, 7], [0, 0, 1], attention_mask=torch.tensor([[0, 1, 1]]))
    assert left.model_inputs()["position_ids"].tolist() == [[0, 0, 1]]
    assert left.model_inputs()["attention_mask"].tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_looks_like_eos(side):
    truncated, ended = [7, 8, 9], [7, EOS]
    batch = TokenBatch.from_ids(
        [[5], [5]], [truncated, ended], pad_token_id=EOS, eos_token_ids=[EOS], padding_side=side, pad_to_multiple_of=6
    )
    shift = 2 if side == "left" else 0
    assert batch.next_state[0, shift : shift + 4].tolist() == [-1, 1 + shift, 2 + shift, 3 + shift]
    shift = 3 if side == "left" else 0
    assert batch.next_state[1, shift : shift + 3].tolist() == [-1, 1 + shift, TERMINAL]
    assert batch.num_actions == 5
    assert batch.terminal.sum() == batch.truncated.sum() == 1
    assert (batch.document_ids[~batch.attention_mask] == PADDING).all()


def test_actions_on_padding_are_dropped():
    batch = build([5, 7, EOS, EOS], [0, 1, 1, 1], attention_mask=torch.tensor([[1, 1, 1, 0]]))
    assert batch.action_mask.int().tolist() == [[0, 1, 1, 0]]
    assert batch.next_state.tolist() == [[-1, 1, TERMINAL, -1]]
    left = build([0, 7, 8], [1, 1, 1], attention_mask=torch.tensor([[0, 1, 1]]))
    assert left.action_mask.int().tolist() == [[0, 0, 1]]


def test_several_eos_ids():
    for ending in (2, 3):
        assert build([5, 7, ending], [0, 1, 1], eos_token_ids=[2, 3]).terminal.sum() == 1
    assert build([5, 7, 3], [0, 1, 1], eos_token_ids=[2]).terminal.sum() == 0


def test_document_ends_at_eos():
    ids, actions = [7, 8, EOS, 7, EOS, 7, 8], [1] * 7
    stream = build(ids, actions, document_ends_at_eos=True)
    assert stream.document_ids.tolist() == [[0, 0, 0, 1, 1, 2, 2]]
    assert stream.action_mask.int().tolist() == [[0, 1, 1, 0, 1, 0, 1]]
    assert stream.next_state.tolist() == [[-1, 1, TERMINAL, -1, TERMINAL, -1, 6]]
    one = build(ids, actions)
    assert one.document_ids.tolist() == [[0] * 7]
    assert one.next_state.tolist() == [[-1, 1, 2, 3, 4, 5, 6]]
    padded = build([EOS, EOS, 7, EOS], [1] * 4, document_ends_at_eos=True, attention_mask=torch.tensor([[0, 0, 1, 1]]))
    assert padded.document_ids.tolist() == [[PADDING, PADDING, 0, 0]]
    both = build(ids, actions, document_ends_at_eos=True, position_ids=torch.tensor([[0, 1, 2, 3, 4, 5, 0]]))
    assert both.document_ids.tolist() == [[0, 0, 0, 1, 1, 2, 3]]


def test_packed_row_that_starts_inside_a_document():
    batch = build([7, 8, 5, 7], [1, 1, 0, 1], position_ids=torch.tensor([[4, 5, 0, 1]]))
    assert batch.document_ids.tolist() == [[0, 0, 1, 1]]
    assert batch.next_state.tolist() == [[-1, 1, -1, 3]]


def test_nothing_to_do():
    for batch in (
        build([5, 6, 7], [0, 0, 0]),
        build([5, 6, 7], [1, 1, 1], attention_mask=torch.zeros(1, 3)),
        build([5], [1]),
    ):
        assert batch.num_actions == 0
        assert (batch.next_state == TERMINAL).all()
        assert not batch.terminal.any()
        assert not batch.truncated.any()


def test_from_labels_and_from_ids_agree():
    ids = torch.tensor([[5, 6, 7, EOS], [5, 8, 9, 0]])
    labels = torch.tensor([[-100, -100, 7, EOS], [-100, 8, 9, -100]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    labelled = TokenBatch.from_labels(ids, labels, attention_mask=mask, eos_token_ids=[EOS])
    listed = TokenBatch.from_ids([[5, 6], [5]], [[7, EOS], [8, 9]], pad_token_id=0, eos_token_ids=[EOS])
    for name in ("input_ids", "attention_mask", "action_mask", "next_state", "document_ids", "position_ids"):
        assert torch.equal(getattr(labelled, name), getattr(listed, name)), name
    assert torch.equal(listed.to("cpu").next_state, listed.next_state)


def test_empty_prompts_and_completions():
    batch = TokenBatch.from_ids([[], [5]], [[7, EOS], []], pad_token_id=0, eos_token_ids=[EOS])
    assert batch.action_mask.int().tolist() == [[0, 1], [0, 0]]
    assert batch.next_state.tolist() == [[-1, TERMINAL], [-1, -1]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(15))
def test_against_one_document_at_a_time(layout, seed):
    documents = random_documents(seed, count=6)
    batch, _, places = lay_out(documents, layout, extra=seed % 3, pad=[0, EOS][seed % 2])
    mask = torch.zeros_like(batch.action_mask)
    following = torch.full_like(batch.next_state, TERMINAL)
    first, last = mask.clone(), mask.clone()
    for document, (row, start) in zip(documents, places, strict=True):
        chosen = steps(document)
        for step in chosen:
            mask[row, start + step.column] = True
            if step.next_column is not None:
                following[row, start + step.column] = start + step.next_column
        if chosen:
            first[row, start + chosen[0].column] = True
            last[row, start + chosen[-1].column] = True
    assert torch.equal(batch.action_mask, mask)
    assert torch.equal(batch.next_state, following)
    assert torch.equal(first_actions(batch.action_mask, batch.document_ids), first)
    assert torch.equal(last_actions(batch.action_mask, batch.document_ids), last)
    assert torch.equal(batch.terminal | batch.truncated, last)
    assert not (batch.terminal & batch.truncated).any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"eos_token_ids": []}, "eos_token_ids is empty"),
        ({"attention_mask": torch.ones(1, 2)}, "attention_mask has shape"),
        ({"position_ids": torch.zeros(1, 4)}, "position_ids has shape"),
        ({"position_ids": torch.tensor([[0, 1, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}, "packed rows"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build([5, 6, 7], [0, 1, 1], **kwargs)


def test_errors_of_shapes_and_lists():
    with pytest.raises(ValueError, match="action_mask has shape"):
        build([5, 6, 7], [0, 1])
    with pytest.raises(ValueError, match="2 prompts and 1 completions"):
        TokenBatch.from_ids([[5], [6]], [[7]], pad_token_id=0, eos_token_ids=[2])
    with pytest.raises(ValueError, match="0 prompts"):
        TokenBatch.from_ids([], [], pad_token_id=0, eos_token_ids=[2])
    with pytest.raises(ValueError, match="padding_side"):
        TokenBatch.from_ids([[5]], [[7]], pad_token_id=0, eos_token_ids=[2], padding_side="both")
