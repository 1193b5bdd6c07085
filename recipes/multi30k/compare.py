"""BLEU and chrF of `inverselm generate` outputs, with paired bootstrap tests against the first file.

usage: python compare.py sft.jsonl dpr.jsonl iqlearn.jsonl
"""

import json
import sys
from pathlib import Path

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest


def read(path: str) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    first = [row for row in rows if row["sample"] == 0]
    return [row["completion"].strip() for row in first], [row["reference"].strip() for row in first]


def main(paths: list[str]) -> None:
    systems, references = [], None
    for path in paths:
        answers, own = read(path)
        if references not in (None, own):
            raise SystemExit(f"{path} has other references than {paths[0]}")
        systems.append((Path(path).stem, answers))
        references = own
    words = sum(len(r.split()) for r in references or [])
    test = PairedTest(systems, {"BLEU": BLEU(), "chrF": CHRF()}, [references], test_type="bs", n_samples=1000)
    signatures, table = test()
    print(f"{'system':<24} {'BLEU':>6} {'95% ±':>6} {'p':>7} {'chrF':>6} {'95% ±':>6} {'p':>7} {'length':>7}")
    for i, (name, answers) in enumerate(systems):
        cells = []
        for metric in (key for key in table if key != "System"):  # sacrebleu calls chrF "chrF2"
            r = table[metric][i]
            p = "-" if r.p_value is None else f"{r.p_value:.4f}"
            cells.append(f"{r.score:6.2f} {r.ci:6.2f} {p:>7}")
        length = sum(len(a.split()) for a in answers) / words
        print(f"{name:<24} {' '.join(cells)} {length:7.3f}")
    print("p: paired bootstrap against", systems[0][0], "| length: words per reference word")
    for name, signature in signatures.items():
        print(f"{name}: {signature}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
