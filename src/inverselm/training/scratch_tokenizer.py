"""Tokenizers that give back exactly the text they were given, trained in seconds.

    type: bpe     byte-level BPE: every text round-trips. vocab_size (default 2000) is an upper bound; little text gives
                  fewer tokens. split_digits (default true): each digit is a token of its own, as sums need it.
                  lowercase (default false): text is lowercased first, so it comes back in lower case.
    type: char    one token per character of the training text; any other character becomes <unk>. Also takes lowercase.

Both have `<|endoftext|>` (EOS) and `<|pad|>`. With `chat_template: chatml` they also have `<|im_start|>` and
`<|im_end|>`; `<|im_end|>` ends a turn and is then the EOS. The template puts the line break of ChatML before a turn
instead of after it, so that an answer ends with its EOS, and marks assistant turns for `assistant_only_loss`.
There is no word tokenizer: it could not give spaces and unseen words back.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from inverselm.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

EOS, PAD, UNK, IM_START, IM_END = "<|endoftext|>", "<|pad|>", "<unk>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
_CHAT_TEXT = "system\nuser\nassistant\ntool\ndeveloper\n"  # roles are text too: a char tokenizer must know them
_KEYS: dict[str, dict[str, type]] = {
    "bpe": {"vocab_size": int, "split_digits": bool, "lowercase": bool, "chat_template": str},
    "char": {"lowercase": bool, "chat_template": str},
}
_TYPE_NAMES = {int: "a whole number", bool: "true or false", str: "text"}


def build_tokenizer(
    section: Mapping[str, Any], texts: Iterable[str], *, name: str = "configuration"
) -> "PreTrainedTokenizerFast":
    """Train the tokenizer that `section` describes (see the module's text for its keys) on `texts`.

    The same section and texts always give the same tokenizer. Raises `UserError` for an unknown type or key, a wrong
    type, a vocabulary too small for the bytes, or texts without a character.

    Example:
        >>> tokenizer = build_tokenizer({"type": "bpe", "vocab_size": 300}, ["one two", "two one"])
        >>> tokenizer.decode(tokenizer.encode(" déjà\\n 12"))
        ' déjà\\n 12'
    """
    kind = _check(section, name)
    chat = section.get("chat_template") is not None
    special = [EOS, PAD, *([IM_START, IM_END] if chat else [])]
    counted = _Counted(texts)
    build = _bpe if kind == "bpe" else _char
    core = build(section, counted, special, [_CHAT_TEXT] if chat else [], name)
    if not counted.characters:
        raise UserError(f"{name}: there is no text to train the tokenizer on")
    return _wrapped(core, kind, chat)


class _Counted:
    """Passes texts on and remembers how many characters there were."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts, self.characters = texts, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.characters += len(text)
            yield text


def _check(section: Mapping[str, Any], name: str) -> str:
    kind = section.get("type")
    if kind not in _KEYS:
        what = "is missing" if kind is None else f"'{kind}' is unknown"
        raise UserError(f"{name}: tokenizer.type {what}; it is one of {', '.join(_KEYS)}")
    for key, value in section.items():
        if key == "type":
            continue
        wanted = _KEYS[kind].get(key)
        if wanted is None:
            raise UserError(
                f"{name}: unknown key tokenizer.{key} for type {kind}; allowed are {', '.join(_KEYS[kind])}"
            )
        if type(value) is not wanted and not (key == "chat_template" and value is None):
            raise UserError(f"{name}: tokenizer.{key} must be {_TYPE_NAMES[wanted]}, not {value!r}")
    if section.get("chat_template") not in (None, "chatml"):
        raise UserError(f"{name}: tokenizer.chat_template must be chatml or left out, not {section['chat_template']!r}")
    return str(kind)


def _bpe(
    section: Mapping[str, Any], texts: Iterable[str], special: list[str], extra: list[str], name: str
) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    size, least = section.get("vocab_size", 2000), 256 + len(special)
    if size < least:
        raise UserError(f"{name}: tokenizer.vocab_size {size} is too small: the bytes and special tokens need {least}")
    core = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = section.get("split_digits", True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if split else []
    core.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    core.decoder = decoders.ByteLevel()
    if section.get("lowercase", False):
        core.normalizer = normalizers.Lowercase()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator((text for part in (extra, texts) for text in part), trainer)
    return core


def _char(
    section: Mapping[str, Any], texts: Iterable[str], special: list[str], extra: list[str], name: str
) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers

    lowercase = section.get("lowercase", False)
    characters: set[str] = set()
    for part in (extra, texts):
        for text in part:
            characters.update(normalizers.Lowercase().normalize_str(text) if lowercase else text)
    vocab = {token: i for i, token in enumerate([*special, UNK, *sorted(characters)])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNK))  # without merges, BPE is characters
    core.decoder = decoders.Fuse()
    if lowercase:
        core.normalizer = normalizers.Lowercase()
    return core


def _wrapped(core: "Tokenizer", kind: str, chat: bool) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=IM_END if chat else EOS,
        pad_token=PAD,
        unk_token=UNK if kind == "char" else None,
        extra_special_tokens=[IM_START, EOS] if chat else None,
        chat_template=CHATML if chat else None,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
