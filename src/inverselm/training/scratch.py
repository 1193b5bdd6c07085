"""Small models from nothing: an architecture and a tokenizer described in a few lines of YAML.

    model:      {model_type: llama, hidden_size: 128, intermediate_size: 384, num_hidden_layers: 4,
                 num_attention_heads: 4, max_position_embeddings: 512, tie_word_embeddings: true}
    tokenizer:  {type: bpe, vocab_size: 2000, split_digits: true, lowercase: false}

`model` takes any causal model type of transformers and the fields of its configuration; vocabulary size and special
token ids come from the tokenizer, which `scratch_tokenizer` describes.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inverselm.errors import UserError
from inverselm.training.scratch_tokenizer import build_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["build_from_scratch", "texts_of"]

_SECTIONS = ("model", "tokenizer")
_FILLED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def build_from_scratch(
    config: str | Path | Mapping[str, Any], texts: Iterable[str], *, seed: int = 0, max_length: int | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """Train a tokenizer on `texts` and make a model with random weights for it.

    Args:
        config: path of a YAML file, or its content as a mapping.
        texts: what the tokenizer is trained on; read once. `texts_of` yields them from a dataset.
        seed: of the weights; torch's global random state stays as it is.
        max_length: longest sequence that will be used; an error if the model has fewer positions.

    Returns:
        The model (float32, SDPA attention, `vocab_size == len(tokenizer)`) and the tokenizer. EOS and padding are two
        tokens, and their ids are in `model.config` and `model.generation_config`.

    Raises:
        UserError: unreadable YAML, a missing section, an unknown key or model type, a wrong type, no text.

    Example:
        >>> sections = {"model": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
        ...             "num_hidden_layers": 1, "num_attention_heads": 2}, "tokenizer": {"type": "char"}}
        >>> model, tokenizer = build_from_scratch(sections, ["1+1=2"])
        >>> tokenizer.decode(tokenizer.encode("2=1+1")), model.config.vocab_size == len(tokenizer)
        ('2=1+1', True)
    """
    name, sections = _read(config)
    model_section = dict(sections["model"])
    model_type = _model_type(model_section.pop("model_type", None), name)
    _check_model_keys(model_section, model_type, name)
    shape = _config(model_type, model_section, name)  # before the tokenizer, whose training takes longer
    positions = getattr(shape, "max_position_embeddings", None)
    if max_length is not None and positions is not None and max_length > positions:
        raise UserError(
            f"{name}: the model has {positions} positions, fewer than max_length={max_length}; "
            "raise model.max_position_embeddings or lower --max_length"
        )
    tokenizer = build_tokenizer(sections["tokenizer"], texts, name=name)
    if positions is not None:
        tokenizer.model_max_length = positions
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return _model(_config(model_type, {**model_section, **ids}, name), seed, name), tokenizer


def texts_of(dataset: Iterable[Mapping[str, Any]], *, text_field: str = "text") -> Iterator[str]:
    """Yield every piece of text of a dataset in any of TRL's formats: prompts, completions, message contents, text.

    Example:
        >>> list(texts_of([{"prompt": "1+1=", "completion": "2"}]))
        ['1+1=', '2']
    """
    columns = ("prompt", "completion", "messages", "conversations", text_field)
    for row in dataset:
        for value in (row.get(column) for column in dict.fromkeys(columns)):
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                for message in value:
                    content = message.get("content", message.get("value"))
                    parts = [part.get("text") for part in content] if isinstance(content, list) else [content]
                    yield from (part for part in parts if isinstance(part, str))


def _read(config: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Mapping[str, Any]]]:
    name, content = ("configuration", config) if isinstance(config, Mapping) else (str(config), _yaml(Path(config)))
    if not isinstance(content, Mapping):
        raise UserError(f"{name}: needs the sections 'model' and 'tokenizer', but is not a mapping")
    for key in content:
        if key not in _SECTIONS:
            raise UserError(f"{name}: unknown section '{key}'; the sections are 'model' and 'tokenizer'")
    for section in _SECTIONS:
        if section not in content:
            raise UserError(f"{name}: the section '{section}' is missing; the sections are 'model' and 'tokenizer'")
        if not isinstance(content[section], Mapping):
            raise UserError(f"{name}: the section '{section}' must be a mapping of keys to values")
    return name, {section: content[section] for section in _SECTIONS}


def _yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({_one_line(error)})") from error


def _model_type(model_type: Any, name: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if model_type is None:
        raise UserError(f"{name}: model.model_type is missing; for example model_type: llama")
    if model_type not in CAUSAL:
        near = difflib.get_close_matches(str(model_type), CAUSAL, n=3) or [
            "llama",
            "qwen3",
            "gpt2",
            "gpt_neox",
            "mistral",
        ]
        raise UserError(
            f"{name}: unknown model.model_type '{model_type}'; try {', '.join(near)}, or another causal model"
        )
    return str(model_type)


def _check_model_keys(section: Mapping[str, Any], model_type: str, name: str) -> None:
    from transformers import AutoConfig

    default = AutoConfig.for_model(model_type)
    hidden = {"transformers_version", "architectures", "dtype", "model_type", *_FILLED}
    allowed = sorted(({*default.to_dict()} | {*default.attribute_map}) - hidden)
    for key in section:
        if key in _FILLED:
            raise UserError(f"{name}: model.{key} comes from the tokenizer; remove it")
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean '{near[0]}'? Allowed: " if near else "allowed are "
            raise UserError(f"{name}: unknown key model.{key} for {model_type}; {hint}{', '.join(allowed)}")


def _config(model_type: str, section: Mapping[str, Any], name: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(model_type, **section)
    except Exception as error:  # transformers validates with several kinds of exceptions
        hint = "; YAML reads 1e-5 as text, write 1.0e-5" if _has_exponent_text(section) else ""
        raise UserError(f"{name}: section 'model' is not valid for {model_type} ({_one_line(error)}){hint}") from error


def _has_exponent_text(section: Mapping[str, Any]) -> bool:
    return any(isinstance(v, str) and v[:1].isdigit() and "e" in v.lower() for v in section.values())


def _model(config: "PretrainedConfig", seed: int, name: str) -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # the processor's only; nothing is made elsewhere
        try:
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        except Exception as error:  # sizes that do not fit each other surface as any kind of exception
            raise UserError(f"{name}: no {config.model_type} can be built from 'model' ({_one_line(error)})") from error
    model.generation_config.eos_token_id = config.eos_token_id
    model.generation_config.pad_token_id = config.pad_token_id
    model.generation_config.bos_token_id = config.bos_token_id
    return model.eval()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
