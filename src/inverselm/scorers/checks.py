"""Checks on the checkpoints of a reward: one tokenizer, an EOS token, two different models."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = (
    "Hello, world!",
    "  two  spaces\n\nand\tlines ",
    "12 + 345 = 357",
    "Ünïcödé, 漢字 and 🙂",
    "def f(x):\n    return x",
)
_SPECIAL = ("bos_token", "eos_token", "unk_token")
_BLOCK = 2**20


def check_tokenizer_has_eos(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """The end-of-sequence token ends every answer, so there must be one and it must be a token of its own.

    Raises:
        UserError: no EOS token, or one that the tokenizer does not know.
    """
    hint = 'set "eos_token" in its tokenizer_config.json'
    if tokenizer.eos_token is None:
        raise UserError(f"{name}: the tokenizer has no end-of-sequence token; {hint}")
    if tokenizer.eos_token not in tokenizer.get_vocab():
        raise UserError(f"{name}: the end-of-sequence token {tokenizer.eos_token!r} is not in the vocabulary; {hint}")


def check_same_tokenizer(a: "PreTrainedTokenizerBase", b: "PreTrainedTokenizerBase", name_a: str, name_b: str) -> None:
    """Token rewards compare two models token by token, so both must cut text into the same ids.

    Compared are the vocabularies, the BOS, EOS and unknown tokens and the ids of a few probe texts. The padding token
    may differ: it is never a state or an action.

    Raises:
        UserError: names the first difference.
    """
    difference = _vocab_difference(a.get_vocab(), b.get_vocab(), name_a, name_b)
    for kind in () if difference else _SPECIAL:
        left, right = getattr(a, kind), getattr(b, kind)
        if left != right:
            difference = f"the {kind} is {left!r} in {name_a} but {right!r} in {name_b}"
            break
    for probe in () if difference else _PROBES:
        left, right = a.encode(probe), b.encode(probe)
        if left != right:
            difference = f"{probe!r} becomes {left} in {name_a} but {right} in {name_b}"
            break
    if difference:
        raise UserError(f"{name_a} and {name_b} have different tokenizers: {difference}; use models that share one")


def _vocab_difference(a: dict[str, int], b: dict[str, int], name_a: str, name_b: str) -> str:
    if a == b:
        return ""
    differing = [token for token in {**a, **b} if a.get(token) != b.get(token)]
    token = min(differing, key=lambda t: (min(a.get(t, len(a) + len(b)), b.get(t, len(a) + len(b))), t))
    if token not in a or token not in b:
        has, lacks = (name_a, name_b) if token in a else (name_b, name_a)
        return f"{lacks} lacks the token {token!r} of {has} (vocabularies of {len(a):,} and {len(b):,} tokens)"
    return f"the token {token!r} has id {a[token]} in {name_a} but {b[token]} in {name_b}"


def check_different_checkpoints(sft_path: str | Path, baseline_path: str | Path) -> None:
    """The reward is the difference of two checkpoints, so two equal ones would reward nothing.

    Local folders are compared by their safetensors files (and, for adapters, by the base model they name).

    Raises:
        UserError: the same path or hub name, or identical weights.
    """
    sft, baseline = Path(sft_path).expanduser(), Path(baseline_path).expanduser()
    fix = "every reward would be zero; pass an earlier checkpoint as the baseline"
    if str(sft_path) == str(baseline_path) or (sft.exists() and sft.resolve() == baseline.resolve()):
        raise UserError(f"the SFT model and the baseline are the same, {sft_path}: {fix}")
    if sft.is_dir() and baseline.is_dir() and _same_weights(sft, baseline):
        raise UserError(f"{sft_path} and {baseline_path} hold identical weights: {fix}")


def _same_weights(a: Path, b: Path) -> bool:
    names = sorted(file.name for file in a.glob("*.safetensors"))
    if not names or names != sorted(file.name for file in b.glob("*.safetensors")) or _base_model(a) != _base_model(b):
        return False
    return all(_same_file(a / name, b / name) for name in names)


def _same_file(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as left, b.open("rb") as right:
        while block := left.read(_BLOCK):
            if block != right.read(_BLOCK):
                return False
    return True


def _base_model(folder: Path) -> str | None:
    file = folder / "adapter_config.json"
    return json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") if file.is_file() else None
