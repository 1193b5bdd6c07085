"""The GSM8K calculator that works during generation: the model writes `<<3*4=`, the calculator writes `12>>`."""

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from ..errors import UserError
from .gsm8k import MAX_EXPRESSION_LENGTH, evaluate_expression, format_number

# An expression of the longest allowed length, one character per token, with room for `<<`, `=` and a first token.
_WINDOW = MAX_EXPRESSION_LENGTH + 28


class CalculatorLogitsProcessor(LogitsProcessor):
    """Forces the calculator's result and `>>`, token by token, whenever a row's generated text ends in `<<expr=`.

    Everything is read from the generated token ids (the columns from `prompt_length` on), so left padding and the
    key-value cache make no difference. A row of another text, a finished row, and a row whose expression has no value
    (malformed, division by zero, too long) keep their scores untouched.

    Tokens that hold `=` and more: `=1` or `=-` is completed when the result starts that way and left alone otherwise
    (it cannot be taken back); a token that also closes the mark (`=12>>`) is left alone. A `<<` in the prompt does not
    count. Beam search is not supported: its rows change places between steps, and `inverselm.inference.generate`
    refuses it.

    Args:
        tokenizer: the tokenizer that the model generates with.
        prompt_length: the number of columns that the (padded) prompts take; 1 for an encoder-decoder.

    Raises `UserError` when no sequence of the tokenizer's tokens reads `12>>`.

    Example:
        model.generate(**batch, logits_processor=[CalculatorLogitsProcessor(tokenizer, batch["input_ids"].shape[1])])
    """

    supports_beam_search = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_length: int) -> None:
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length
        self._plans: dict[int, tuple[int, list[int]]] = {}  # row -> (column where the forced tokens start, tokens)
        self._has_equals: dict[int, bool] = {}
        self._encode(tokenizer.encode("<<1+1=", add_special_tokens=False), "<<1+1=", "12>>")

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """`input_ids` (rows, length) and `scores` (rows, vocabulary) -> scores of the same shape."""
        length = input_ids.shape[1]
        if length < self.prompt_length:
            raise ValueError(f"prompt_length is {self.prompt_length}, but the rows hold only {length} tokens")
        if length == self.prompt_length:  # the first step of a generation
            self._plans.clear()
            return scores
        forced = {}
        for row, last in enumerate(input_ids[:, -1].tolist()):
            token = self._next_token(input_ids, row, last)
            if token is not None:
                forced[row] = token
        return _force(scores, forced) if forced else scores

    def _next_token(self, input_ids: torch.Tensor, row: int, last: int) -> int | None:
        length = input_ids.shape[1]
        if row in self._plans:
            start, tokens = self._plans[row]
            done = length - start
            if done < len(tokens) and last == tokens[done - 1]:
                return tokens[done]
            del self._plans[row]  # written, or the row was ended from outside
        if not self._contains_equals(last):
            return None
        tokens = self._result_tokens(input_ids[row, max(self.prompt_length, length - _WINDOW) :].tolist())
        if tokens is None:
            return None
        self._plans[row] = (length, tokens)
        return tokens[0]

    def _contains_equals(self, token: int) -> bool:
        if token not in self._has_equals:
            self._has_equals[token] = "=" in self._decode([token])
        return self._has_equals[token]

    def _result_tokens(self, ids: list[int]) -> list[int] | None:
        """What must follow the generated `ids`: the tokens of the rest of `result>>`, or None when nothing must."""
        text = self._decode(ids)
        _, mark, segment = text.rpartition("<<")
        expr, equals, begun = segment.partition("=")
        if not mark or not equals:
            return None
        value = evaluate_expression(expr)
        if value is None:
            return None
        result = format_number(value)
        begun = begun.strip()
        if not result.startswith(begun):  # the row wrote another result, or has closed the mark
            return None
        return self._encode(ids, mark + segment, result[len(begun) :] + ">>")

    def _encode(self, ids: list[int], head: str, text: str) -> list[int]:
        """Tokens that append exactly `text` to `ids`; some tokenizers put a space before a text that stands alone."""
        alone = self.tokenizer.encode(text, add_special_tokens=False)
        prefix = self.tokenizer.encode(head, add_special_tokens=False)
        whole = self.tokenizer.encode(head + text, add_special_tokens=False)
        candidates = [alone, whole[len(prefix) :]] if whole[: len(prefix)] == prefix else [alone]
        wanted = self._decode(ids) + text
        for tokens in candidates:
            if tokens and self._decode([*ids, *tokens]) == wanted:
                return tokens
        raise UserError(f"the tokenizer cannot write {text!r} after {head!r}: evaluate without the calculator")

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _force(scores: torch.Tensor, forced: dict[int, int]) -> torch.Tensor:
    """A copy of `scores` in which each row of `forced` allows only its one token."""
    rows = torch.tensor(list(forced), device=scores.device)
    tokens = torch.tensor(list(forced.values()), device=scores.device)
    scores = scores.clone()
    scores[rows] = float("-inf")
    scores[rows, tokens] = 0.0
    return scores
