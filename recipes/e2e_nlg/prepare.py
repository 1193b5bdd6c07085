"""E2E NLG (restaurant facts -> sentence) as {prompt, completion} rows.

usage: python prepare.py <folder with trainset.csv, devset.csv, testset_w_refs.csv, or each as .gz> <output folder>

The data: https://github.com/tuetschek/e2e-dataset (CC BY-SA 4.0). Rows of valid.jsonl and test.jsonl that share their
facts become one prompt with several references in `inverselm evaluate`. The order is random, with a fixed seed, so that
the first n training rows are a sample. Valid has the references of 150 of the 547 meanings of the development set,
test those of 300 of its 630.
"""

import csv
import gzip
import json
import random
import sys
from pathlib import Path

SPLITS = {"train": "trainset", "valid": "devset", "test": "testset_w_refs"}
MEANINGS = {"valid": 150, "test": 300}


def read(folder: Path, name: str) -> list[tuple[str, str]]:
    """(facts, sentence) pairs."""
    packed, plain = folder / f"{name}.csv.gz", folder / f"{name}.csv"
    how = {"encoding": "utf-8", "newline": ""}
    with gzip.open(packed, "rt", **how) if packed.is_file() else plain.open(**how) as stream:
        return [(row["mr"].strip(), " ".join(row["ref"].split())) for row in csv.DictReader(stream)]


def main(source: str, target: str) -> None:
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    for split, name in SPLITS.items():
        pairs = [(facts, sentence) for facts, sentence in read(Path(source), name) if facts and sentence]
        random.Random(0).shuffle(pairs)
        if split in MEANINGS:
            chosen = set(list(dict.fromkeys(facts for facts, _ in pairs))[: MEANINGS[split]])
            pairs = [pair for pair in pairs if pair[0] in chosen]
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as stream:
            for facts, sentence in pairs:
                row = {"prompt": f"{facts} =>", "completion": f" {sentence}"}
                stream.write(json.dumps(row | ({} if split == "train" else {"mr": facts}), ensure_ascii=False) + "\n")
        print(f"{split}: {len(pairs)} rows, {len({facts for facts, _ in pairs})} meanings")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
