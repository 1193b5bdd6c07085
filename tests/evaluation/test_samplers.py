"""The notation of samplers: what it means, what it refuses, and that equal samplers have equal names."""

import pytest

from inverselm.errors import UserError
from inverselm.evaluation.samplers import Sampler, parse_sampler, parse_samplers


@pytest.mark.parametrize(
    ("text", "expected", "name"),
    [
        ("greedy", Sampler(temperature=0.0), "greedy"),
        ("T=0", Sampler(temperature=0.0), "greedy"),
        ("beam=1", Sampler(temperature=0.0), "greedy"),
        ("T=0.5", Sampler(temperature=0.5), "T=0.5"),
        ("temperature=1", Sampler(temperature=1.0), "T=1.0"),
        ("top_p=0.9", Sampler(top_p=0.9), "T=1.0,top_p=0.9"),
        ("top_p=0.9, T=0.7", Sampler(temperature=0.7, top_p=0.9), "T=0.7,top_p=0.9"),
        ("beam=4", Sampler(temperature=0.0, num_beams=4), "beam=4"),
        (
            "beam=4,length_penalty=0.6",
            Sampler(temperature=0.0, num_beams=4, length_penalty=0.6),
            "beam=4,length_penalty=0.6",
        ),
        ("best_of=8,T=1.0", Sampler(best_of=8), "best_of=8,T=1.0"),
        ("best_of=8,by=sum_reward", Sampler(best_of=8, by="sum_reward"), "best_of=8,T=1.0,by=sum_reward"),
        ("greedy,calculator", Sampler(temperature=0.0, calculator=True), "greedy,calculator"),
        ({"T": 0.5, "top_p": 0.9}, Sampler(temperature=0.5, top_p=0.9), "T=0.5,top_p=0.9"),
        ({"num_beams": 4}, Sampler(temperature=0.0, num_beams=4), "beam=4"),
        ({"greedy": True}, Sampler(temperature=0.0), "greedy"),
        ("guided=0.5", Sampler(guidance_weight=0.5), "T=1.0,guided=0.5"),
        ("guided=-.25,T=0.7", Sampler(temperature=0.7, guidance_weight=-0.25), "T=0.7,guided=-0.25"),
        ("greedy,guided=1", Sampler(temperature=0.0, guidance_weight=1.0), "greedy,guided=1.0"),
        (
            "guided=1,beam=4,length_penalty=0.6",
            Sampler(temperature=0.0, num_beams=4, length_penalty=0.6, guidance_weight=1.0),
            "beam=4,length_penalty=0.6,guided=1.0",
        ),
        (
            "best_of=8,guided=0.5,by=sum_reward,calculator",
            Sampler(best_of=8, by="sum_reward", calculator=True, guidance_weight=0.5),
            "best_of=8,T=1.0,by=sum_reward,calculator,guided=0.5",
        ),
        ({"T": 1, "guidance_weight": 2}, Sampler(guidance_weight=2.0), "T=1.0,guided=2.0"),
        ("T=0.5,guided=0", Sampler(temperature=0.5), "T=0.5"),
    ],
)
def test_notation(text, expected, name):
    assert parse_sampler(text) == expected
    assert expected.name == name
    assert parse_sampler(name) == expected, "a name is its own notation"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is unknown; write greedy"),
        ("temperatur=1", "'temperatur' is unknown; did you mean temperature"),
        ("top-p=0.9", "'top-p' is unknown; did you mean top_p"),
        ("T=warm", "T is 'warm', not a number"),
        ("T", "T needs a value, such as T=0.5"),
        ("T=", "T needs a value"),
        ("T=-1", "T is -1.0; set it above 0"),
        ("T=nan", "T is nan"),
        ("T=inf", "T is inf"),
        ("T=1,T=2", "T is given twice"),
        ("T=1,temperature=2", "temperature is given twice"),
        ("top_p=0", "top_p is 0.0; set it above 0 and at most 1"),
        ("top_p=1.5", "top_p is 1.5"),
        ("greedy,T=1", "greedy takes no other setting"),
        ("greedy=1", "greedy stands alone"),
        ("calculator", "says nothing about sampling"),
        ("beam=2.5", "beam is '2.5', not a whole number"),
        ("beam=0", "counts of 1 or more"),
        ("beam=4,T=1", "beam search does not sample"),
        ("beam=4,calculator", "the calculator does not work with beam search"),
        ("T=1,length_penalty=0.6", "length_penalty belongs to beam search"),
        ("T=0,top_p=0.9", "top_p and best_of need T above 0"),
        ("T=0,best_of=4", "top_p and best_of need T above 0"),
        ("T=1,by=sum_reward", "by=sum_reward belongs to best_of"),
        ("best_of=4,by=luck", "by=luck is unknown; choose mean_log_prob, sum_log_prob, mean_reward, sum_reward"),
        (3, "sampler 3: is no text"),
        ("guided", "guided needs a value, such as guided=0.5"),
        ("guided=far", "guided is 'far', not a number"),
        ("guided=-1.5", "guided is -1.5; set it to a number of at least -1"),
        ("guided=nan", "guided is nan"),
        ("guided=inf", "guided is inf"),
        ("guide=1", "'guide' is unknown; did you mean guided"),
        ("greedy,guided=1,T=1", "greedy takes no other setting than calculator and guided"),
        ("greedy,guided=1,guidance_weight=2", "guidance_weight is given twice"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(text, message):
    with pytest.raises(UserError) as error:
        parse_sampler(text)
    assert message in str(error.value)
    assert str(text) in str(error.value)


def test_equal_samplers_have_equal_names():
    whole = Sampler(temperature=1, top_p=1, guidance_weight=1)
    assert whole == Sampler(guidance_weight=1.0)
    assert whole.name == Sampler(guidance_weight=1.0).name == "T=1.0,guided=1.0"
    beams = [Sampler(temperature=0, num_beams=2, length_penalty=penalty) for penalty in (2, 2.0)]
    assert {sampler.name for sampler in beams} == {"beam=2,length_penalty=2.0"}


def test_repetitions_run_once_in_order():
    found = parse_samplers(["T=1.0", "greedy", "top_p=0.9", "T=1", "T=1.0,top_p=0.9", Sampler(temperature=0.0)])
    assert [sampler.name for sampler in found] == ["T=1.0", "greedy", "T=1.0,top_p=0.9"]
    with pytest.raises(UserError, match="no sampler"):
        parse_samplers([])


def test_how_many_answers_a_sampler_draws_and_measures():
    counts = {
        s: (parse_sampler(s).drawn(3), parse_sampler(s).measured(3)) for s in ("greedy", "beam=4", "T=1", "best_of=5")
    }
    assert counts == {"greedy": (1, 1), "beam=4": (1, 1), "T=1": (3, 3), "best_of=5": (5, 1)}
    assert [parse_sampler(f"best_of=2,by={by}").uses_reward for by in ("mean_log_prob", "sum_log_prob")] == [False] * 2
    assert [parse_sampler(f"best_of=2,by={by}").uses_reward for by in ("mean_reward", "sum_reward")] == [True] * 2
