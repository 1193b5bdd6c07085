"""`inverselm report`: a page, figures and tables of a study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from .arguments import Help, parse


@dataclass
class ReportArguments:
    """Flags of `inverselm report`."""

    study_dir: str | None = field(default=None, metadata={"help": "The folder that `inverselm study` wrote."})
    output_file: str | None = field(
        default=None, metadata={"help": "The page. Default: report.html in the study's folder."}
    )
    png_dir: str | None = field(
        default=None, metadata={"help": "Folder for the figures as PNG. Default: figures, beside the page."}
    )
    heatmaps: int = field(
        default=3, metadata={"help": "Answers to show with token rewards; this loads models, 0 does not."}
    )
    num_resamples: int = field(
        default=10_000, metadata={"help": "Bootstrap resamples, and permutations, of each test."}
    )
    alpha: float = field(
        default=0.05, metadata={"help": "Level of the tests; intervals hold with probability 1 - alpha."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of resamples and permutations."})
    task: str | None = field(
        default=None,
        metadata={
            "help": "file.py:name of a task of your own, if its main metric is no mean over answers. Its code is run."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier report."})


GUIDE = Help(
    "A report of a study, also while it runs: one self-contained HTML page, every figure as PNG, results.csv, "
    "verdicts.csv and verdicts.json. First the verdict: each group of methods at its best variant and sampler on "
    "validation data, measured on test against the reference at its best sampler and against the best control, paired "
    "over prompts and seeds, after Holm's correction. Then quality against diversity, temperature and data size, "
    "learning curves, rewards, cost, and all numbers. Cells of other code or data than study.json says are refused.",
    (
        "inverselm report --study_dir runs/cmudict",
        "inverselm report --study_dir runs/cmudict --output_file reports/cmudict.html --heatmaps 0",
        "inverselm report --study_dir runs/cmudict --overwrite True --num_resamples 2000",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, write, and say what the study shows."""
    (args,) = parse(command, (ReportArguments,), argv, GUIDE)
    from .common import quiet_libraries

    quiet_libraries()
    target = _check(args)
    from ..report.study_report import FIGURES, FILES, study_page
    from ..study.collect import load_study

    study = load_study(args.study_dir)
    png_dir = Path(args.png_dir).expanduser() if args.png_dir else target.with_name(FIGURES)
    path = study_page(
        study,
        target,
        png_dir=png_dir,
        heatmaps=args.heatmaps,
        num_resamples=args.num_resamples,
        alpha=args.alpha,
        seed=args.seed,
        task=args.task,
    )
    cells = [
        (s, n, seed) for s in study.sizes for n, m in study.methods.items() if s in m.sizes for seed in study.seeds
    ]
    print(f"{len(cells) - len(study.missing)} of {len(cells)} cells are finished.")
    for line in study.missing[:5]:
        print(f"  missing: {line}")
    if len(study.missing) > 5:
        print(f"  and {len(study.missing) - 5} more; the page lists them.")
    content = json.loads(path.with_name(FILES[2]).read_text(encoding="utf-8"))
    for record in content["verdicts"]:
        against = (
            content["reference"] if record["against"] == "reference" else f"the best control, {record['other_method']}"
        )
        print(f"{record['size']} rows: {record['group']} against {against}: {record['outcome']}")
    count = len(content["figures"])
    print(f"Wrote {path}: open it in a browser. Beside it {', '.join(FILES)}; {count} figures in {png_dir}.")


def _check(args: Any) -> Path:
    """The page's path, after checking that it can be written and that nothing is lost."""
    from ..inputs.models import check_positive
    from ..report.study_report import FILES
    from .output import check_output_file

    if not args.study_dir:
        raise UserError("no study: pass --study_dir <folder of `inverselm study`>")
    if args.heatmaps < 0:
        raise UserError(f"--heatmaps is {args.heatmaps}; set it to 0 or more")
    if not 0 < args.alpha < 1:
        raise UserError(f"--alpha is {args.alpha}; set it between 0 and 1")
    check_positive(args, ("num_resamples",))
    if not (Path(args.study_dir).expanduser() / "study.json").is_file():
        raise UserError(f"--study_dir {args.study_dir}: holds no study (no study.json); name the folder of a study")
    target = Path(args.output_file or Path(args.study_dir) / "report.html").expanduser()
    if args.png_dir and Path(args.png_dir).expanduser().is_file():
        raise UserError(f"--png_dir {args.png_dir}: is a file; name a folder")
    for path in (target, *(target.with_name(name) for name in FILES)):
        check_output_file(str(path), overwrite=args.overwrite, flag="--output_file " if path == target else "")
    return target
