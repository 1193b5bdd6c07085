"""The sections of a study's page that its verdict rests on, and how it was made. Each says whether it has data."""

from __future__ import annotations

from .page import Page, table_fragment
from .study_figures import Figure, negative_is_good, reward_score, size_title
from .study_parts import ERROR_BARS, Made, heading, say, show, size_heading
from .study_tables import full_table, identity_table, rewards_table, shared_machine, timing_table
from .study_words import safe


def fronts(made: Made, page: Page) -> bool:
    """Main metric against diversity (arXiv 2409.01369, Figs. 2 and 3)."""
    study, drawn = made.study, False
    kinds = sorted({name.endswith("calculator") for name in study.samplers})
    for size in study.sizes:
        for kind in kinds:
            suffix, name = (", with the calculator", "_calculator") if kind else ("", "")
            panels = {x: made.figures.front(size, x, kind) for x in ("self_bleu", "entropy")}
            panels = {x: found for x, found in panels.items() if found}
            if panels and not drawn:
                drawn = True
                heading(page, "fronts", "Quality against diversity")
                count = study.facts.get("num_samples")
                say(
                    page,
                    "On test, a point for each sampler; each panel has one group of methods and the reference. "
                    f"{ERROR_BARS} Self-BLEU is BLEU-4 of an answer against the other answers to its prompt ({count} "
                    "for each), at the sampler's temperature; samplers with one answer have none, so the second figure "
                    "has entropy: that of the model at temperature 1 in the states that the sampler's answers visit.",
                )
            if panels and kind == kinds[0]:
                size_heading(page, study, size)
            for x, found in panels.items():
                title = {"self_bleu": "Self-BLEU", "entropy": "entropy"}[x]
                figure = Figure(
                    f"front_{x}_{size}{name}",
                    f"{study.main} against {title}, {size_title(study, size)}{suffix}",
                    found,
                    ERROR_BARS,
                )
                folded = f"Against {title}{suffix}" if x == "entropy" and "self_bleu" in panels else ""
                show(made, page, figure, fold=folded)
    return drawn or made.skip("Quality against diversity", "no method is evaluated for any seed")


def temperature(made: Made, page: Page) -> bool:
    """Main metric against temperature (arXiv 2409.01369, Fig. 4)."""
    study, drawn = made.study, False
    for size in study.sizes:
        for kind in sorted({name.endswith("calculator") for name in study.samplers}):
            panels = made.figures.temperature(size, kind)
            if panels and not drawn:
                drawn = True
                heading(page, "temperature", "Quality against temperature")
                say(page, f"On test; plain sampling alone, without top-p, beams or best-of-n. {ERROR_BARS}")
            if panels:
                suffix, name = (", with the calculator", "_calculator") if kind else ("", "")
                size_heading(page, study, size)
                title = f"{study.main} against temperature, {size_title(study, size)}{suffix}"
                show(made, page, Figure(f"temperature_{size}{name}", title, panels, ERROR_BARS))
    return drawn or made.skip("Quality against temperature", "there are not two temperatures")


def sizes(made: Made, page: Page) -> bool:
    """Main metric against the size of the training set (arXiv 2409.01369, Figs. 6 and 7)."""
    study = made.study
    if len(study.sizes) < 2:
        return made.skip("Quality against training-set size", "the study has one size")
    greedy = made.figures.sizes("greedy") if "greedy" in study.samplers else []
    best = made.figures.sizes(None)
    if not greedy and not best:
        return made.skip("Quality against training-set size", "no method is evaluated, or the sizes are not known")
    heading(page, "sizes", "Quality against training-set size")
    say(page, f"On test. {ERROR_BARS}")
    for name, panels, title in (
        ("greedy", greedy, "greedy"),
        ("best", best, "each method at its best sampler on valid"),
    ):
        if panels:
            page.html(f"<h3>{safe(title.capitalize())}</h3>")
            show(
                made,
                page,
                Figure(f"sizes_{name}", f"{study.main} against training-set size, {title}", panels, ERROR_BARS),
            )
    return True


def curves(made: Made, page: Page) -> bool:
    """Validation loss over training."""
    study, drawn = made.study, False
    for size in study.sizes:
        panels = made.figures.curves(size)
        if panels and not drawn:
            drawn = True
            heading(page, "curves", "Learning curves")
            say(
                page,
                "Mean over seeds, each seed faintly. The negative log-likelihood of validation answers where the "
                "trainer logs it (eval_nll), else its own loss (eval_loss): of SFT that is the same. The first fifth "
                "of the steps may lie above.",
            )
        if panels:
            size_heading(page, study, size)
            show(
                made,
                page,
                Figure(f"curves_{size}", f"Validation loss over training, {size_title(study, size)}", panels),
            )
    return drawn or made.skip("Learning curves", "no trainer_state.json has a validation loss")


def rewards(made: Made, page: Page) -> bool:
    """Rank correlation of rewards with the metric (arXiv 2409.01369, Fig. 8 and Table 2)."""
    study, drawn = made.study, False
    for size in study.sizes:
        table = rewards_table(study, size)
        if table is None:
            continue
        if not drawn:
            heading(page, "rewards", "Do rewards rank answers?")
            good = "so a good reward has a negative correlation" if negative_is_good(study) else "higher is better"
            say(
                page,
                f"Spearman's rank correlation of accumulated rewards with {reward_score(study)} ({good}), over answers "
                "of the reference on valid: over all of them, and among those to one prompt. Controls: the reference's "
                f"log-likelihood, length, and random numbers. {ERROR_BARS}",
            )
            drawn = True
        size_heading(page, study, size)
        panels = made.figures.rewards(size)
        if panels:
            show(
                made,
                page,
                Figure(f"rewards_{size}", f"Rewards against {reward_score(study)}, {size_title(study, size)}", panels),
            )
        count = sum(of_size == size for of_size, _ in study.rewards)
        caption = f"Mean over {count} of {len(study.seeds)} seeds [lowest, highest]. Sum: accumulated; mean: per token."
        fragment = table_fragment(*table, caption=caption)
        page.details("Table of all rewards", fragment)
    return drawn or made.skip("Do rewards rank answers?", "there are no rewards.json")


def timing(made: Made, page: Page) -> bool:
    """Seconds per step and in all (arXiv 2409.01369, Table 1)."""
    study, drawn = made.study, False
    for size in study.sizes:
        table = timing_table(study, size)
        if table is None:
            continue
        if not drawn:
            drawn = True
            heading(page, "timing", "Cost of training")
            say(
                page,
                "Means over seeds. Seconds per step: the training loop, validation included, over its steps. Training: "
                "the whole command, loading and saving included, without the model it starts from; a run that was "
                "stopped and resumed counts its last part alone. Ratios are to the reference. Memory: the process's "
                "peak, on the host.",
            )
            if shared_machine(study):
                page.html(
                    "<p><strong>Several stages ran at the same time</strong> on one machine, so seconds depend on what "
                    "ran beside: read the ratios with care.</p>"
                )
        size_heading(page, study, size)
        page.table(*table)
    return drawn or made.skip("Cost of training", "no training run is finished")


def heatmaps(made: Made, page: Page) -> bool:
    """Token rewards of a few answers."""
    from .png import heatmap_png
    from .study_heatmaps import heatmap_fragments, reward_scales

    if made.heatmaps is None:
        return made.skip("Token rewards", "not asked for (--heatmaps 0)")
    if not made.heatmaps:
        return made.skip("Token rewards", made.heatmap_note or "no model could be loaded")
    heading(page, "heatmaps", "Token rewards")
    note = f" Not shown: {made.heatmap_note}." if made.heatmap_note else ""
    say(
        page,
        "Answers of the reference to test prompts, from the lowest to the highest metric, with the reward of every "
        f"sampled token in nats. One colour scale for each reward.{note}",
    )
    for fragments in heatmap_fragments(made.heatmaps):
        page.columns(fragments)
    scales = reward_scales(made.heatmaps)
    for number, row in enumerate(made.heatmaps, 1):
        for place, heatmap in enumerate(row, 1):
            path = made.png(f"heatmap_{number}_{place}")
            heatmap_png(heatmap.tokens, path, title=heatmap.title, scale=scales[heatmap.reward], width=800)
    return True


def tables(made: Made, page: Page) -> bool:
    """Every method with every sampler."""
    study = made.study
    found = {size: full_table(study, size) for size in study.sizes}
    found = {size: table for size, table in found.items() if table[1]}
    if not found:
        return made.skip("All numbers", "no method is evaluated for any seed")
    heading(page, "tables", "All numbers")
    say(
        page,
        "On test, mean ± standard deviation over seeds; * fewer seeds than planned, left out of the tests where the "
        "reference has more. Length in tokens, ratio: to the references; entropy in nats per token. results.csv has "
        "every cell, on valid too.",
    )
    for size, table in found.items():
        page.details(size_title(study, size).capitalize(), table_fragment(*table))
    return True


def identity(made: Made, page: Page) -> bool:
    """Versions, hashes, machine, what is missing and what is left out."""
    study = made.study
    heading(page, "made", "How it was made")
    page.details("Versions, code, data and machine", table_fragment(*identity_table(study)))
    if study.missing:
        count = f"{len(study.missing)} {'cell is' if len(study.missing) == 1 else 'cells are'} missing"
        items = "".join(f"<li>{safe(line)}</li>" for line in study.missing)
        page.details(f"{count} or not finished", f"<ul>{items}</ul>")
    else:
        say(page, "Every cell of the study is finished.")
    if made.left_out:
        page.html(f"<p>Left out:</p><ul>{''.join(f'<li>{safe(line)}</li>' for line in made.left_out)}</ul>")
    return True
