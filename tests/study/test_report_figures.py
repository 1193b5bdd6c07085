"""What a study's report draws and lists: points, bars, curves, costs, token rewards, each against numbers by hand."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from helpers.study import cell_of, planted, small, write_study
from inverselm.report import study_page
from inverselm.report.study_figures import Figures, negative_is_good, reward_score, reward_table, short_sampler
from inverselm.report.study_heatmaps import choose_answers, study_heatmaps
from inverselm.report.study_report import best_samplers
from inverselm.report.study_tables import full_table, shared_machine, spread, step_seconds, timing_table
from inverselm.report.study_words import fixed, interval
from inverselm.study import load_study
from inverselm.study.answers import Answers

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), planted())


def test_every_number_is_in_the_tables(folder):
    study = load_study(folder)
    header, rows = full_table(study, "3000")
    assert header[:5] == ["method", "sampler", "seeds", "wer", "per"]
    assert len(rows) == 7 * 2
    row = next(row for row in rows if row[:2] == ["Method A", "T=1.0"])
    assert row[2:4] == ["3", spread(study.values("3000", "a", "test", "T=1.0", "wer"))]
    assert row[header.index("Self-BLEU")] == spread(study.values("3000", "a", "test", "T=1.0", "self_bleu"))


def test_points_are_means_and_bars_reach_over_the_seeds(folder):
    study = load_study(folder)
    figures = Figures(study, best_samplers(study))
    panel = figures.front("3000", "self_bleu")[0]
    assert [line.name for line in panel.lines] == ["SFT", "Method A"]
    [dot] = [dot for dot in panel.lines[1].shown if dot.label == "T=1"]
    wer, bleu = (study.values("3000", "a", "test", "T=1.0", name) for name in ("wer", "self_bleu"))
    assert (dot.x, dot.x_low, dot.x_high) == pytest.approx((sum(bleu) / 3, min(bleu), max(bleu)))
    assert (dot.y, dot.y_low, dot.y_high) == pytest.approx((sum(wer) / 3, min(wer), max(wer)))
    assert [dot.label for dot in panel.lines[1].shown] == ["T=1"], "greedy answers have no Self-BLEU"
    entropy = figures.front("3000", "entropy")[0].lines[1]
    assert sorted(dot.label for dot in entropy.shown) == ["T=1", "greedy"]
    heat = figures.temperature("3000")[0].lines[1]
    assert [dot.x for dot in heat.shown] == [0.0, 1.0]
    titles = [panel.title for panel in figures.front("3000", "entropy")]
    assert titles == ["Method A", "Method B", "Method C", "d", "A control (control)"]


def test_curves_are_means_of_the_steps_that_all_seeds_have(folder, tmp_path):
    study = load_study(folder)
    panels = Figures(study, {}).curves("3000")
    assert [panel.title for panel in panels] == ["Method A", "Method C", "d"]
    line = panels[0].lines[1]
    logs = [study.cells["3000", "a", seed].history for seed in range(3)]
    wanted = [next(e["eval_nll"] for e in log if e.get("step") == 600 and "eval_nll" in e) for log in logs]
    assert line.dots[-1].x == 600
    assert line.dots[-1].y == pytest.approx(sum(wanted) / 3)
    assert [thin[-1][1] for thin in line.thin] == wanted, "not eval_loss, which has IQLearn's penalty in it"


def test_sizes_have_a_log_axis_and_the_best_samplers(tmp_path):
    def wrong(size, method, sampler, split):
        return {"100": 0.8, "3000": 0.4}[size] + (0.15 if sampler == "greedy" else 0.0)

    folder = small(tmp_path, sizes=("3000", "100"), samplers=("greedy", "T=1.0"), wrong=wrong, prompts=20)
    study = load_study(folder)
    figures = Figures(study, best_samplers(study))
    [greedy], [best] = figures.sizes("greedy"), figures.sizes(None)
    assert greedy.logx
    assert greedy.ticks == {3000.0: "3,000", 100.0: "100"}
    assert [dot.x for dot in best.lines[0].shown] == [100, 3000]
    for size, dot in zip(("100", "3000"), best.lines[0].shown, strict=True):
        sampler = best_samplers(study)[size, "sft"]
        values = study.values(size, "sft", "test", sampler, "wer")
        assert dot.y == pytest.approx(sum(values) / 2)
    assert Figures(load_study(small(tmp_path / "one")), {}).sizes(None) == []


def test_rewards_over_lambda(folder):
    study = load_study(folder)
    overall, within = Figures(study, {}).rewards("3000")
    [line] = overall.lines
    table = reward_table(study, "3000")["overall"]
    assert [dot.x for dot in line.dots] == [0.0, 0.1]
    assert line.dots[0].y == pytest.approx(sum(table["Q - V', sum"]) / 3), "the reference is lambda 0"
    assert line.dots[1].y == pytest.approx(sum(table["a, sum"]) / 3)
    assert set(overall.levels) == {"dense reward", "log-likelihood", "mean log-likelihood", "length", "random"}
    assert "length" not in within.levels, "not defined"
    assert reward_score(study) == "−wer"
    assert not negative_is_good(study)
    assert negative_is_good(replace(study, facts={**study.facts, "rewards": {"metric": ""}}))


def test_timing(folder):
    study = load_study(folder)
    header, rows = timing_table(study, "3000")
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert set(by_name) == {"SFT", "Method A", "Method B", "Method C", "D, first", "D, second"}, "decoding trains not"
    assert step_seconds(study.cells["3000", "a", 2]) == pytest.approx((0.08 * 600 + 2) / 600)
    assert by_name["SFT"]["s/step"] == "0.0817"
    assert by_name["Method B"]["starts from"] == "SFT"
    assert by_name["SFT"]["training (s)"] == "61"
    assert by_name["SFT"]["peak memory (MiB)"] == "1,024"


def test_ratios_of_time(tmp_path):
    study = load_study(small(tmp_path, seconds=lambda method: {"sft": 10.0, "a": 40.0}[method]))
    rows = timing_table(study, "3000")[1]
    assert [row[6] for row in rows] == ["1.00", f"{40.5 / 10.5:.2f}"]


def test_stages_at_the_same_time_are_noticed(tmp_path, folder):
    assert shared_machine(load_study(folder)), "all of them end in the same second"
    clock = iter(range(10_000))

    def one_after_another(size, method, seed, stage):
        return (datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=70 * next(clock))).isoformat()

    assert not shared_machine(load_study(small(tmp_path, finished=one_after_another)))


def test_numbers_in_words():
    assert interval((-0.0214, -0.0331, -0.0098)) == "−0.021 [−0.033, −0.010]"
    assert interval((12.34, 2.0, 22.7)) == "+12 [+2, +23]"
    assert interval(None) == "–"
    assert fixed(-1e-17, 3, sign=True) == "+0.000"
    assert short_sampler("best_of=8,T=1.0,by=sum_log_prob") == "best of 8 T=1 sum_log_prob"


def test_answers_for_heatmaps_reach_from_best_to_worst():
    rows = [{"sample": k, "token_ids": [1], "metrics": {"wer": w}} for w in (0.5, 0.0, 1.0, 0.25) for k in (0, 1)]
    rows.append({"sample": 0, "token_ids": [], "metrics": {"wer": 2.0}})
    assert [r["metrics"]["wer"] for r in choose_answers(rows, "wer", 3)] == [0.0, 0.5, 1.0]
    assert len(choose_answers(rows, "wer", 9)) == 4
    assert len(choose_answers(rows, "wer", 1)) == 1


@pytest.fixture
def with_models(tmp_path):
    """A study whose reference and IQLearn model are real ones."""
    from inverselm.scorers.markers import write_marker
    from inverselm.training.scratch import build_from_scratch

    methods = {"sft": {"role": "reference", "label": "SFT"}, "iq": {"command": "iqlearn", "label": "IQ"}}
    folder = small(tmp_path / "study", methods=methods, seeds=(0,))
    scratch = tmp_path / "tiny.yaml"
    scratch.write_text(
        "model: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
        "num_attention_heads: 2, max_position_embeddings: 96, tie_word_embeddings: true}\n"
        "tokenizer: {type: bpe, vocab_size: 300}\n",
        encoding="utf-8",
    )
    for seed, (method, name, role) in enumerate(
        (("sft", "model", "sft"), ("sft", "model/baseline", "baseline"), ("iq", "model", "iqlearn"))
    ):
        model, tokenizer = build_from_scratch(scratch, ["Say: abc\n AA B CH"], seed=seed)
        target = cell_of(folder, "3000", method, 0) / name
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        write_marker(target, role, **({"gamma": 0.5} if role == "iqlearn" else {}))
    return folder


def test_token_rewards_are_of_the_sampled_ids(with_models):
    from inverselm.scorers import QFunctionReward, TokenReward

    study = load_study(with_models)
    answers = Answers(study)
    found, note = study_heatmaps(study, answers, 2)
    assert note == ""
    assert [[h.reward for h in row] for row in found] == [["Dense reward of SFT", "Q − γV′ of IQ"]] * 2
    models = [cell_of(with_models, "3000", name, 0) / "model" for name in ("sft", "iq")]
    scorers = [TokenReward.from_checkpoints(models[0]), QFunctionReward.from_checkpoint(models[1], gamma=0.5)]
    chosen = choose_answers(answers.records("3000", "sft", 0, "greedy"), "wer", 2)
    for row, record in zip(found, chosen, strict=True):
        for heatmap, scorer in zip(row, scorers, strict=True):
            prompt = scorer.tokenizer(text=record["prompt"])["input_ids"]
            [wanted] = scorer.score_ids([prompt], [record["token_ids"]])
            assert [t.reward for t in heatmap.tokens] == pytest.approx(wanted.rewards.tolist(), abs=1e-5)
            assert heatmap.prompt == record["prompt"]


def test_heatmaps_are_in_the_page_and_models_may_be_gone(with_models, tmp_path):
    make = partial(study_page, with_models, tmp_path / "report.html", heatmaps=1, num_resamples=50, progress=False)
    assert "Dense reward of SFT; wer" in make().read_text(encoding="utf-8")
    assert (tmp_path / "figures/heatmap_1_2.png").is_file()
    (cell_of(with_models, "3000", "iq", 0) / "model/config.json").unlink()
    found, note = study_heatmaps(load_study(with_models), Answers(load_study(with_models)), 1)
    assert (len(found[0]), note) == (1, "no IQLearn model is there")
    (cell_of(with_models, "3000", "sft", 0) / "model/config.json").unlink()
    assert "Token rewards: the reference&#x27;s model is not there any more." in make().read_text(encoding="utf-8")
