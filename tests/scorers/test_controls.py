"""The controls of a reward: what each keeps and what it takes away, for ids and for batches of every layout."""

import copy
import itertools
from collections import Counter

import pytest
import torch
from scipy.stats import kstest

from helpers.data import sums, text_tokenizer, tiny_for
from inverselm.errors import UserError
from inverselm.scorers import REWARD_CONTROLS, ControlledReward, FrozenLM, TokenReward
from inverselm.token_mdp import TokenBatch

PROMPTS = [text_tokenizer().encode(row["prompt"]) for row in sums(9)]
ANSWERS = [[*text_tokenizer().encode(row["completion"]), 0] for row in sums(9)]
MASKS = [[1 if len(ids) < 3 or t != 1 else 0 for t in range(len(ids))] for ids in ANSWERS]
"""In the longer answers, the second token is a tool's."""


@pytest.fixture(scope="module")
def plain():
    frozen = [FrozenLM(tiny_for(text_tokenizer(), seed)) for seed in (0, 1)]
    return TokenReward(text_tokenizer(), frozen[0], frozen[1:])


def rewards(scorer, masks=None, prompts=PROMPTS, answers=ANSWERS, **options):
    return [s.rewards.tolist() for s in scorer.score_ids(prompts, answers, masks, **options)]


def actions(rows, masks):
    return [[x for x, m in zip(row, mask, strict=True) if m] for row, mask in zip(rows, masks, strict=True)]


def close(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, abs=1e-5)


WHOLE = [[1] * len(ids) for ids in ANSWERS]


@pytest.mark.parametrize("masks", [None, MASKS], ids=["all", "tools"])
class TestWhatEachKeeps:
    @pytest.fixture
    def found(self, plain, masks):
        """found(control): the real and the controlled rewards of each answer's actions; off them all is 0."""

        def of(control, **options):
            controlled = rewards(ControlledReward(plain, control, **options), masks)
            for row, mask in zip(controlled, masks or WHOLE, strict=True):
                assert all(x == 0.0 for x, m in zip(row, mask, strict=True) if not m)
            return actions(rewards(plain, masks), masks or WHOLE), actions(controlled, masks or WHOLE)

        return of

    def test_shuffled_tokens(self, found):
        real, shuffled = found("shuffled_tokens")
        close([sorted(row) for row in real], [sorted(row) for row in shuffled])
        assert sum(a != b for a, b in zip(real, shuffled, strict=True)) > 5

    def test_sequence_sum_on_last(self, found):
        real, moved = found("sequence_sum_on_last")
        close([[*[0.0] * (len(row) - 1), sum(row)] for row in real], moved)

    def test_shuffled_sequences(self, found):
        """Every answer has exactly one other's rewards, and every answer's are given once."""
        real, dealt = found("shuffled_sequences")
        givers = []
        for i, row in enumerate(dealt):
            wanted = []
            for given in real:  # what this answer would get from each
                kept = min(len(row), len(given))
                laid = [*given[:kept], *[0.0] * (len(row) - kept)]
                laid[-1] += sum(given[kept:])
                wanted.append(laid)
            matches = [j for j, laid in enumerate(wanted) if laid == pytest.approx(row, abs=1e-5)]
            assert len(matches) == 1
            assert matches != [i]
            givers += matches
        assert sorted(givers) == list(range(9))
        close(sorted([sum(row)] for row in real), sorted([sum(row)] for row in dealt))
        assert any(len(real[g]) > len(real[i]) for i, g in enumerate(givers))
        assert any(len(real[g]) < len(real[i]) for i, g in enumerate(givers))

    def test_random(self, found):
        real, _ = found("random")
        every = torch.tensor(list(itertools.chain(*real)))
        noise = [list(itertools.chain(*found("random", seed=seed)[1])) for seed in range(15)]
        z = (torch.tensor(noise).flatten() - every.mean()) / every.std(correction=0)
        assert kstest(z.numpy(), "norm").pvalue > 0.01
        assert len({round(x, 6) for row in noise for x in row}) > 0.99 * z.numel()

    def test_log_prob_only(self, found, plain, masks):
        _, alone = found("log_prob_only")
        reference = [s.ref_log_prob.tolist() for s in plain.score_ids(PROMPTS, ANSWERS, masks)]
        close(actions(reference, masks or WHOLE), alone)
        assert max(x for row in alone for x in row) < 0


@pytest.mark.parametrize("control", REWARD_CONTROLS)
class TestAllControls:
    def test_the_reference_stays(self, plain, control):
        a, b = plain.score_ids(PROMPTS, ANSWERS), ControlledReward(plain, control).score_ids(PROMPTS, ANSWERS)
        assert all(torch.equal(x.ref_log_prob, y.ref_log_prob) for x, y in zip(a, b, strict=True))
        assert any(not torch.allclose(x.rewards, y.rewards, atol=1e-3) for x, y in zip(a, b, strict=True))

    def test_random_numbers_depend_on_the_call_alone(self, plain, control):
        """Not on the global state, on earlier calls, or on how the call is cut into batches."""
        first = rewards(ControlledReward(plain, control, seed=3))
        torch.manual_seed(99)
        torch.rand(7)
        state = torch.get_rng_state()
        scorer = ControlledReward(plain, control, seed=3)
        rewards(scorer, prompts=PROMPTS[:4], answers=ANSWERS[:4])
        close(rewards(scorer, batch_size=2), first)
        close(rewards(copy.copy(scorer)), first)
        assert torch.equal(torch.get_rng_state(), state)

    def test_equal_answers_of_a_call_draw_their_own_numbers(self, plain, control):
        long = max(ANSWERS, key=len)
        found = rewards(ControlledReward(plain, control), prompts=PROMPTS[:1] * 6, answers=[long] * 6)
        assert (len({tuple(row) for row in found}) > 1) == (control in ("shuffled_tokens", "random"))

    @pytest.mark.parametrize("layout", ["right", "left", "packed"])
    def test_a_batch_is_a_call(self, plain, control, layout):
        scorer = ControlledReward(plain, control)
        wanted = rewards(scorer)
        if layout == "packed":
            rows = [[*p, *a] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
            ids = torch.tensor([list(itertools.chain(*rows))])
            chosen = [[False] * len(p) + [True] * len(a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
            batch = TokenBatch.build(
                ids, torch.tensor([list(itertools.chain(*chosen))]), eos_token_ids=[0],
                position_ids=torch.tensor([list(itertools.chain(*(range(len(row)) for row in rows)))]),
            )  # fmt: skip
        else:
            batch = TokenBatch.from_ids(PROMPTS, ANSWERS, pad_token_id=1, eos_token_ids=[0], padding_side=layout)
        found, reference = scorer.score_with_reference(batch)
        assert (found[~batch.action_mask] == 0).all()
        assert found[batch.action_mask].tolist() == pytest.approx(list(itertools.chain(*wanted)), abs=2e-5)
        assert torch.equal(reference, plain.score_with_reference(batch)[1])

    def test_texts_are_scored_too(self, plain, control):
        prompts, answers = [row["prompt"] for row in sums(9)], [row["completion"] for row in sums(9)]
        scorer = ControlledReward(plain, control)
        close([s.rewards for s in scorer.score(prompts, answers)], rewards(scorer))
        assert scorer.tokenizer is plain.tokenizer
        assert scorer.device == plain.device


def test_a_single_answer_cannot_be_shuffled_with_others(plain):
    with pytest.raises(UserError, match="needs two answers in a call"):
        rewards(ControlledReward(plain, "shuffled_sequences"), prompts=PROMPTS[:1], answers=ANSWERS[:1])
    two = rewards(ControlledReward(plain, "shuffled_sequences"), prompts=PROMPTS[:2], answers=ANSWERS[:2])
    assert [sum(row) for row in two] == pytest.approx([sum(row) for row in rewards(plain)[1::-1]], abs=1e-5)


def test_answers_without_actions_are_left_out(plain):
    """A row of a tool's tokens alone neither gives nor takes rewards."""
    masks = [[0] * len(ANSWERS[0]), *WHOLE[1:4]]
    for control in REWARD_CONTROLS:
        found = rewards(ControlledReward(plain, control), masks, PROMPTS[:4], ANSWERS[:4])
        assert found[0] == [0.0] * len(ANSWERS[0])
        if control == "shuffled_sequences":
            real = rewards(plain, masks, PROMPTS[:4], ANSWERS[:4])
            close(sorted([sum(row)] for row in real[1:]), sorted([sum(row)] for row in found[1:]))


def test_every_permutation_of_tokens_occurs(plain):
    """An answer of three tokens, 300 times in a call: all six orders, about equally often."""
    answer = next(ids for ids in ANSWERS if len(ids) == 3)
    found = rewards(ControlledReward(plain, "shuffled_tokens"), prompts=PROMPTS[:1] * 300, answers=[answer] * 300)
    counts = Counter(tuple(round(x, 3) for x in row) for row in found)
    assert len(counts) == 6
    assert min(counts.values()) > 25


def test_every_giver_occurs(plain):
    """Over many calls each of four answers gets each other's rewards, about equally often."""
    answers = [ANSWERS[0]] * 4
    counts = Counter()
    for seed in range(60):
        scorer = ControlledReward(plain, "shuffled_sequences", seed=seed)
        prompts = PROMPTS[:4]
        real = [round(sum(row), 3) for row in rewards(plain, prompts=prompts, answers=answers)]
        dealt = [round(sum(row), 3) for row in rewards(scorer, prompts=prompts, answers=answers)]
        counts.update((i, min(range(4), key=lambda j: abs(real[j] - total))) for i, total in enumerate(dealt))
    assert set(counts) == set(itertools.permutations(range(4), 2))
    assert min(counts.values()) > 8


@pytest.mark.parametrize("control", ["shuffled_tokens", "shuffled_sequences", "random"])
def test_another_seed_or_call_gives_other_numbers(plain, control):
    first = rewards(ControlledReward(plain, control))
    assert rewards(ControlledReward(plain, control, seed=1)) != first
    again = rewards(ControlledReward(plain, control), prompts=[*PROMPTS, PROMPTS[0]], answers=[*ANSWERS, ANSWERS[1]])
    assert again[:9] != first


def test_unknown_controls_are_refused(plain):
    with pytest.raises(UserError, match="shuffled_tokens"):
        ControlledReward(plain, "shuffled")
