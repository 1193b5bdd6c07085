"""Completions for a list of prompts: batched, left padded, seeded, and in the order of the prompts."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from ..errors import UserError
from ..scorers.frozen import FrozenLM, load_frozen
from .guided import GuidedDecodingProcessor

Prompt = str | list[dict[str, Any]] | list[int]
ProcessorFactory = Callable[[Any, int], Any]


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    `text` is without special tokens; `token_ids` are the generated tokens, with the end-of-sequence token when there is
    one; `finished` says that it ended by that token and not by the length limit.
    """

    text: str
    token_ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True)
class _Special:
    """Token ids that steer a generation."""

    eos: tuple[int, ...]
    pad: int
    decoder_start: int | None
    encoder_decoder: bool


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    num_return: int = 1,
    batch_size: int = 32,
    seed: int = 0,
    logits_processor: ProcessorFactory | None = None,
    guided_by: Any = None,
    guidance_weight: float = 0.0,
    progress: bool = True,
) -> list[list[Completion]]:
    """Samples `num_return` completions for each prompt.

    Only the arguments here decide how tokens are chosen: sampling settings in the checkpoint's generation config
    (`top_k`, penalties, minimum lengths) are off; only its end-of-sequence ids are added to the tokenizer's. Greedy
    results do not depend on the other prompts or on `batch_size`, up to rounding in half precision. A sampled run
    repeats exactly with the same `seed`, prompts and `batch_size`, and the global random state is left as it was.

    Args:
        model: a causal LM or an encoder-decoder of transformers, on any device.
        tokenizer: its tokenizer; neither it nor the model's mode is changed.
        prompts: texts, tokenized as they are; lists of chat messages, written with the chat template; or token ids.
        max_new_tokens: longest completion, in tokens.
        temperature: 0 is greedy search, or beam search when `num_beams` > 1.
        top_p: keep the smallest set of tokens with this probability.
        num_beams: beams; more than one needs `temperature=0`.
        length_penalty: of beam search: hypotheses are ranked by their sum of log pi / tokens^length_penalty.
        num_return: completions per prompt.
        batch_size: prompts per batch; a batch has `batch_size * num_return` rows.
        seed: of the sampling.
        logits_processor: called as `logits_processor(tokenizer, prompt_length)` for each batch, where `prompt_length`
            is the number of columns before the first generated token.
        guided_by: a baseline, as `GuidedDecodingProcessor` takes it: decode beyond `model`, away from the baseline.
        guidance_weight: how far; 0 is `model` itself.
        progress: show a bar with the time left, on stderr.

    Returns one list of `num_return` completions per prompt, in the order of the prompts.

    Raises `UserError` for options that do not go together, chat messages without a chat template, and a prompt that is
    empty or leaves no room for `max_new_tokens`.

    Example:
        texts = [c.text for [c] in generate(model, tokenizer, ["Question: 2+2?\\nAnswer:"], temperature=0)]
    """
    _check_options(prompts, max_new_tokens, temperature, top_p, num_beams, num_return, batch_size)
    if num_beams == 1 and length_penalty != 1.0:
        raise UserError(f"length_penalty is {length_penalty}, but there is no beam search: set num_beams above 1")
    encoded = [_encode(tokenizer, prompt, index) for index, prompt in enumerate(prompts)]
    special = _special_tokens(model, tokenizer)
    _check_lengths(model, encoded, max_new_tokens, special.encoder_decoder)
    config = _generation_config(special, max_new_tokens, temperature, top_p, num_beams, num_return, length_penalty)
    guidance = None
    if guided_by is not None:
        guidance = load_frozen(guided_by, name="baseline", device=model.device), guidance_weight
    order = sorted(
        range(len(encoded)), key=lambda i: -len(encoded[i])
    )  # longest first: memory runs out at once or never
    results: list[list[Completion]] = [[] for _ in encoded]
    bar = tqdm(total=len(encoded), desc="generate", unit="prompt", file=sys.stderr, disable=not progress)
    with bar, _own_generation_config(model, config), _evaluation_mode(model), torch.inference_mode():
        for number, start in enumerate(range(0, len(order), batch_size)):
            indices = order[start : start + batch_size]
            with _seeded(model, seed * 1_000_003 + number):
                rows = _generate_batch(
                    model, tokenizer, [encoded[i] for i in indices], config, special, logits_processor, guidance
                )
            completions = [_completion(tokenizer, row, special.eos) for row in rows]
            for position, index in enumerate(indices):
                results[index] = completions[position * num_return : (position + 1) * num_return]
            bar.update(len(indices))
    return results


def _check_options(
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    num_beams: int,
    num_return: int,
    batch_size: int,
) -> None:
    if isinstance(prompts, str):
        raise UserError("prompts is one string: give a list of prompts, [prompt]")
    counts = {
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "num_return": num_return,
        "batch_size": batch_size,
    }
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name} is {value}: set it to 1 or more")
    if temperature < 0:
        raise UserError(f"temperature is {temperature}: set it to 0 (greedy) or more")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}: set it above 0 and at most 1")
    if num_beams > 1 and temperature > 0:
        raise UserError("num_beams > 1 is beam search, which does not sample: set temperature=0, or num_beams=1")
    if temperature == 0 and num_return > num_beams:
        raise UserError(f"temperature=0 gives {num_beams} distinct completion(s), num_return is {num_return}: lower it")


def _encode(tokenizer: Any, prompt: Prompt, index: int) -> list[int]:
    """Token ids of one prompt."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    elif prompt and all(isinstance(item, int) for item in prompt):
        ids = prompt
    elif not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"prompt {index} is a list of chat messages, but the tokenizer has no chat template: "
            "set tokenizer.chat_template, or give the prompts as text"
        )
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)
        ids = ids["input_ids"]
    if not ids:
        raise UserError(f"prompt {index} has no tokens: remove it, or start it with a token such as the BOS token")
    return list(ids)


def _special_tokens(model: Any, tokenizer: Any) -> _Special:
    """End of sequence: the tokenizer's and the checkpoint's. Padding: the tokenizer's, else the end of sequence."""
    defaults = getattr(model, "generation_config", None)
    listed = getattr(defaults, "eos_token_id", None)
    eos = [] if listed is None else listed if isinstance(listed, list | tuple) else [listed]
    if tokenizer.eos_token_id is not None:
        eos = [tokenizer.eos_token_id, *eos]
    eos = tuple(dict.fromkeys(int(token) for token in eos))
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = eos[0] if eos else 0
    start = getattr(defaults, "decoder_start_token_id", None)
    if start is None:
        start = getattr(model.config, "decoder_start_token_id", None)
    return _Special(eos, pad, start, bool(getattr(model.config, "is_encoder_decoder", False)))


def _check_lengths(model: Any, encoded: list[list[int]], max_new_tokens: int, encoder_decoder: bool) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return
    room = limit if encoder_decoder else limit - max_new_tokens
    for index, ids in enumerate(encoded):
        if len(ids) > room:
            raise UserError(
                f"prompt {index} has {len(ids)} tokens, but the model's {limit} positions leave {room} for it: "
                "shorten the prompt or lower max_new_tokens"
            )


def _generation_config(
    special: _Special,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    num_beams: int,
    num_return: int,
    length_penalty: float,
) -> Any:
    from transformers import GenerationConfig

    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    if num_beams > 1:
        sampling["length_penalty"] = length_penalty
    return GenerationConfig(
        do_sample=temperature > 0,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        num_return_sequences=num_return,
        eos_token_id=list(special.eos) or None,
        pad_token_id=special.pad,
        decoder_start_token_id=special.decoder_start,
        use_cache=True,
        **sampling,
    )


def _generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    config: Any,
    special: _Special,
    logits_processor: ProcessorFactory | None,
    guidance: tuple[FrozenLM, float] | None = None,
) -> list[list[int]]:
    """Generated ids of each row, prompt-major, padding included."""
    width = max(len(ids) for ids in prompts)
    ids = torch.full((len(prompts), width), special.pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        # an encoder may count its positions from the first column
        columns = slice(len(prompt)) if special.encoder_decoder else slice(width - len(prompt), width)
        ids[row, columns], mask[row, columns] = torch.tensor(prompt), 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    prompt_length = 1 if special.encoder_decoder else width
    processors = [logits_processor(tokenizer, prompt_length)] if logits_processor else []
    if config.num_beams > 1 and any(not getattr(p, "supports_beam_search", True) for p in processors):
        raise UserError(f"{type(processors[0]).__name__} does not support beam search: set num_beams=1")
    if guidance is not None:  # first: what a processor forces is not to be guided away
        processors.insert(0, GuidedDecodingProcessor(*guidance, input_ids=ids, attention_mask=mask))
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors or None
    )
    return output[:, prompt_length:].tolist()


def _completion(tokenizer: Any, row: list[int], eos: tuple[int, ...]) -> Completion:
    """Cuts a row after its first end-of-sequence token."""
    end = next((i for i, token in enumerate(row) if token in eos), None)
    kept = row if end is None else row[: end + 1]
    text = tokenizer.decode(row[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion(text, tuple(kept), end is not None)


@contextmanager
def _own_generation_config(model: Any, config: Any) -> Iterator[None]:
    """Takes the checkpoint's generation config away: `model.generate` would fill every unset field from it.

    A wrapper (PEFT) and the model inside it each hold one, so all modules are visited.
    """
    before = {m: m.generation_config for m in model.modules() if "generation_config" in vars(m)}
    for module in before:
        module.generation_config = config
    try:
        yield
    finally:
        for module, settings in before.items():
            module.generation_config = settings


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module is back in its own mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _seeded(model: Any, seed: int) -> Iterator[None]:
    """Seeds the CPU and the model's CUDA devices, and puts their random states back afterwards."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    seed %= 2**63
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
