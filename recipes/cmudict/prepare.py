"""CMUdict (English word -> phonemes) as {prompt, completion} rows, split by word.

usage: python prepare.py <cmudict.dict or cmudict.dict.gz> <output folder>

The data: https://github.com/cmusphinx/cmudict. A training row is a word with one of its pronunciations; a row of
valid.jsonl and test.jsonl is a word with all of them. The order is random, with a fixed seed, so that the first n
training rows are a sample.
"""

import gzip
import json
import random
import re
import sys
from pathlib import Path

VALID, TEST = 300, 1000


def read(path: Path) -> dict[str, list[str]]:
    """Word -> pronunciations; words of letters and apostrophes alone."""
    found: dict[str, list[str]] = {}
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
        for line in stream:
            entry = line.split("#")[0].split()
            if not entry:
                continue
            word = re.sub(r"\(\d+\)$", "", entry[0])
            if re.fullmatch(r"[a-z']*[a-z][a-z']*", word):
                said = found.setdefault(word, [])
                if (phonemes := " ".join(entry[1:])) not in said:
                    said.append(phonemes)
    return found


def main(source: str, target: str) -> None:
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    said = read(Path(source))
    words = sorted(said)
    random.Random(0).shuffle(words)
    parts = {"valid": words[:VALID], "test": words[VALID : VALID + TEST], "train": words[VALID + TEST :]}
    for name, chosen in parts.items():
        rows = []
        for word in chosen:
            prompt = f"{' '.join(word)} ="
            if name == "train":
                rows += [{"prompt": prompt, "completion": f" {phonemes}"} for phonemes in said[word]]
            else:
                rows.append({"prompt": prompt, "completion": f" {said[word][0]}", "references": said[word]})
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
