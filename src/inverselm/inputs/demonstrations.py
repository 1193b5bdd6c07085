"""Are these rows in one of TRL's formats, and is every one of them usable? Checked before a model is loaded."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from inverselm.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

LINE_COLUMN = "__line__"  # where a row came from, e.g. "train.jsonl: line 17"
_PROGRESS_ROWS = 50_000
_EXTRAS = ("tools", "chat_template_kwargs")  # columns that TRL reads beside the text
_ALIASES = {
    "prompt": ("question", "instruction", "input", "query", "problem", "source", "context"),
    "completion": ("answer", "output", "response", "target", "solution", "reply", "label", "chosen"),
    "messages": ("conversation", "chat", "dialogue", "dialog"),
    "text": ("content", "document"),
}
_ACCEPTED = {
    "demonstrations": (("prompt", "completion"), ("messages",), ("conversations",), ("text",)),
    "answers": (("prompt", "completion"), ("messages",), ("conversations",)),
    "prompts": (("prompt",),),
}


def check_demonstrations(
    dataset: "Dataset",
    source: str,
    *,
    need: str = "demonstrations",
    eos_token: str | None = None,
    text_field: str = "text",
    allow_empty: bool = False,
) -> str:
    """Check every row and return the format found.

    Args:
        dataset: rows, with or without `LINE_COLUMN`.
        source: name for messages; rows without a line are numbered from 1.
        need: "demonstrations" (prompt and completion, messages, or text), "answers" (the same without text) or
            "prompts" (a prompt; other columns are not looked at).
        eos_token: a completion of nothing but this token is an error too.
        text_field: name of the text column.
        allow_empty: accept empty completions, e.g. of a model that answered with EOS at once; nulls stay errors.

    Returns:
        "prompt-completion", "conversational-prompt-completion", "messages", "text", "prompt" or
        "conversational-prompt"; "messages" stands for `conversations` too. `training_columns` takes the same name.

    Raises:
        UserError: a missing column, or the first unusable row with the number of other unusable ones.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_list([{"prompt": "1+1=", "completion": "2"}])
        >>> check_demonstrations(rows, "sums.jsonl")
        'prompt-completion'
    """
    if need not in _ACCEPTED:
        raise ValueError(f"need must be one of {sorted(_ACCEPTED)}, got {need!r}")
    names = dataset.column_names or list(next(iter(dataset), {}))
    columns = _columns(names, source, need, text_field)
    checker = _Checker(columns, text_field, eos_token, allow_empty)
    lines = [LINE_COLUMN] if LINE_COLUMN in names else []
    first, bad, number, conversational = "", 0, 0, None
    for number, row in enumerate(_rows(dataset, [*columns, *lines]), 1):
        if conversational is None and row[columns[0]] is not None:
            conversational = isinstance(row[columns[0]], list)
        problem = checker.problem(row, bool(conversational))
        if problem:
            bad += 1
            first = first or f"{row[LINE_COLUMN] if lines else f'{source}: row {number}'}: {problem}"
    if not number:
        raise UserError(f"{source}: has no rows")
    if bad:
        more = f" (and {bad - 1:,} more {'row' if bad == 2 else 'rows'} with problems)" if bad > 1 else ""
        raise UserError(first + more)
    return _format(columns, text_field, bool(conversational))


def training_columns(dataset: "Dataset", found: str, *, text_field: str = "text") -> "Dataset":
    """Keep only the columns that TRL reads for the format `found` (see `check_demonstrations`).

    `LINE_COLUMN` goes, and so do columns that would make TRL take the rows for another format (`prompt` beside
    `messages`). `tools` and `chat_template_kwargs` stay. `conversations` becomes `messages`, with `from` and `value`
    renamed to `role` and `content`.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_list([{"prompt": "1+1=", "completion": "2", "id": 7}])
        >>> training_columns(rows, "prompt-completion").column_names
        ['prompt', 'completion']
    """
    names = dataset.column_names or list(next(iter(dataset), {}))
    if found == "messages" and "messages" not in names:
        dataset = dataset.map(_to_messages, remove_columns=["conversations"])
        names = ["messages", *names]
    wanted = {
        "prompt-completion": ("prompt", "completion"),
        "conversational-prompt-completion": ("prompt", "completion"),
        "messages": ("messages",),
        "text": (text_field,),
        "prompt": ("prompt",),
        "conversational-prompt": ("prompt",),
    }[found]
    return dataset.select_columns([*wanted, *(name for name in _EXTRAS if name in names)])


def _to_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "messages": [{"role": m["from"], "content": m["value"]} if "from" in m else m for m in row["conversations"]]
    }


def _rows(dataset: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    from tqdm.auto import tqdm

    total = len(dataset) if hasattr(dataset, "__len__") else None
    with tqdm(total=total, desc="Checking rows", disable=total is None or total <= _PROGRESS_ROWS) as bar:
        for batch in dataset.select_columns(columns).iter(batch_size=1000):
            values = [batch[name] for name in columns]
            for row in zip(*values, strict=True):
                yield dict(zip(columns, row, strict=True))
            bar.update(len(values[0]))


def _columns(names: list[str], source: str, need: str, text_field: str) -> list[str]:
    accepted = [tuple(text_field if n == "text" else n for n in columns) for columns in _ACCEPTED[need]]
    for columns in accepted:
        if all(column in names for column in columns):
            return list(columns)
    wanted = ", or ".join(" and ".join(f"'{c}'" for c in cs) for cs in accepted if cs != ("conversations",))
    there = ", ".join(f"'{name}'" for name in names if name != LINE_COLUMN) or "no columns"
    noun = "column" if len(accepted) == len(accepted[0]) == 1 else "columns"
    raise UserError(f"{source}: needs the {noun} {wanted}, but has {there}{_suggestion(names, accepted)}")


def _suggestion(names: list[str], accepted: list[tuple[str, ...]]) -> str:
    lowered = {name.lower(): name for name in reversed(names)}
    for columns in accepted:
        renames = []
        for column in columns:
            if column in names:
                continue
            found = next((lowered[a] for a in (column, *_ALIASES.get(column, ())) if a in lowered), None)
            if found is None:
                break
            renames.append(f"'{found}' to '{column}'")
        else:
            return f"; rename {' and '.join(renames)}"
    talk = next((name for name in ("messages", "conversations") if name in names), None)
    if talk:
        return f"; split '{talk}': all but the last message are the prompt, the last one the completion"
    return ""


def _format(columns: list[str], text_field: str, conversational: bool) -> str:
    if columns[0] in ("messages", "conversations"):
        return "messages"
    if columns == [text_field]:
        return "text"
    return ("conversational-" if conversational else "") + "-".join(columns)


class _Checker:
    """Says in a few words what is wrong with a row, or nothing."""

    def __init__(self, columns: list[str], text_field: str, eos_token: str | None, allow_empty: bool) -> None:
        self.eos_token, self.allow_empty = eos_token, allow_empty
        self.checks: dict[str, Callable[[Any, str, bool], str]] = {}
        for name in columns:
            if name in ("messages", "conversations"):
                self.checks[name] = self._dialogue
            else:
                self.checks[name] = self._prompt if name == "prompt" else self._answer
        self.text_field = text_field

    def problem(self, row: dict[str, Any], conversational: bool) -> str:
        return next((p for name, check in self.checks.items() if (p := check(row[name], name, conversational))), "")

    def _prompt(self, value: Any, name: str, conversational: bool) -> str:
        if conversational:
            return _shape(value, name) or next((p for m in value if (p := self._message(m, name))), "")
        if not isinstance(value, str):
            return _not_text(value, name)
        return "" if value.strip() else f"'{name}' is empty; give it text, or remove the row"

    def _answer(self, value: Any, name: str, conversational: bool) -> str:
        if conversational and name != self.text_field:
            return self._dialogue(value, name, conversational)
        if not isinstance(value, str):
            return _not_text(value, name)
        return self._empty(value, f"'{name}'")

    def _dialogue(self, value: Any, name: str, conversational: bool) -> str:
        problem = _shape(value, name) or next((p for m in value if (p := self._message(m, name))), "")
        if problem:
            return problem
        roles = [_role(message) for message in value]
        if "assistant" in roles and roles[-1] == "assistant":
            return ""
        hint = f"; rename the role '{roles[-1]}' to 'assistant'" if roles[-1] in ("gpt", "bot", "model", "ai") else ""
        if "assistant" not in roles:
            return f"'{name}' has no message of the assistant to learn from{hint}"
        return f"the last message of '{name}' is from '{roles[-1]}', not from the assistant{hint}"

    def _message(self, message: Any, name: str) -> str:
        if not isinstance(message, Mapping):
            return f"'{name}' holds something that is not a message with role and content"
        role, content = _role(message), message.get("content", message.get("value"))
        if not isinstance(role, str) or not role:
            return f"a message in '{name}' has no role"
        if content is None and message.get("tool_calls"):
            return ""
        if content is None:
            return f"a message of '{role}' in '{name}' has no content"
        if isinstance(content, list):
            content = "".join(str(part.get("text") or "") if isinstance(part, Mapping) else "" for part in content)
        if not isinstance(content, str):
            return f"the content of a message of '{role}' in '{name}' is not text"
        if role == "assistant" and not message.get("tool_calls"):
            return self._empty(content, f"a message of the assistant in '{name}'")
        return ""

    def _empty(self, text: str, what: str) -> str:
        if self.allow_empty:
            return ""
        if not text.strip():
            return f"{what} is empty; give it text, or remove the row"
        if self.eos_token and not text.replace(self.eos_token, "").strip():
            return f"{what} is only the end-of-sequence token {self.eos_token}; give it text, or remove the row"
        return ""


def _role(message: Mapping[str, Any]) -> Any:
    return message.get("role", message.get("from"))


def _shape(value: Any, name: str) -> str:
    if value is None:
        return f"'{name}' is null; give it messages, or remove the row"
    if not isinstance(value, list):
        return f"'{name}' is not a list of messages, unlike the first column or row"
    return "" if value else f"'{name}' is an empty list; give it messages, or remove the row"


def _not_text(value: Any, name: str) -> str:
    if value is None:
        return f"'{name}' is null; give it text, or remove the row"
    return f"'{name}' is {type(value).__name__}, not text" + (
        ": prompt and completion must both be text, or both be lists of messages" if isinstance(value, list) else ""
    )
