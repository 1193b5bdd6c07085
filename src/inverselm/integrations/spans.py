"""Each token's place in the text, as `token_spans` finds it, by fewer calls of the tokenizer."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

from ..scorers.text import token_spans


def quick_spans(tokenizer: Any, ids: list[int]) -> tuple[str, list[tuple[int, int]]]:
    """What `token_spans` gives.

    That decodes twice for each token, since the text of a token may depend on its neighbours. Where it does not (no
    token holds part of a character, and the texts of the single tokens make up the whole), two calls are enough.

    Example:
        >>> text, spans = quick_spans(tokenizer, ids); [text[a:b] for a, b in spans]
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return token_spans(tokenizer, ids)
    pieces = backend.decode_batch([[token] for token in ids], skip_special_tokens=False)
    text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if "\ufffd" in text or "".join(pieces) != text:
        return token_spans(tokenizer, ids)
    return text, list(pairwise(accumulate(map(len, pieces), initial=0)))
