"""Multi30k (English-German image captions) as {prompt, completion} rows.

usage: python prepare.py <folder with train.en.gz, train.de.gz, val.*, test_2016_flickr.*> <output folder>

The data: https://github.com/multi30k/dataset, task 1, raw; for research use.
"""

import gzip
import json
import sys
from pathlib import Path

SPLITS = {"train": "train", "val": "val", "test": "test_2016_flickr"}


def lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [line.strip() for line in stream]


def main(source: str, target: str) -> None:
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    for split, name in SPLITS.items():
        english, german = (lines(Path(source) / f"{name}.{language}.gz") for language in ("en", "de"))
        pairs = [(e, g) for e, g in zip(english, german, strict=True) if e and g]
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as stream:
            for e, g in pairs:
                row = {"prompt": f"{e} =>", "completion": f" {g}"}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{split}: {len(pairs)} rows")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
