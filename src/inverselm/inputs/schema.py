"""The column types of records read from text files, inferred without ever changing a value."""

from typing import TYPE_CHECKING, Any

from inverselm.errors import UserError

if TYPE_CHECKING:
    from datasets import Features

_KINDS = {str: "string", bool: "bool", int: "int", float: "float", list: "list", dict: "struct", type(None): "null"}
_WORDS = {
    "string": "text",
    "bool": "true/false",
    "int": "a whole number",
    "float": "a number",
    "list": "a list",
    "struct": "an object",
}
_EXACT = 2**53  # every whole number up to here is also a float


class _Type:
    """What one place in the records holds; `where` is the first record that showed it."""

    __slots__ = ("fields", "item", "kind", "where", "wide")

    def __init__(self) -> None:
        self.kind = "null"
        self.where = ""
        self.wide = False  # an int that no float can hold was seen
        self.item: _Type | None = None
        self.fields: dict[str, _Type] = {}


class Schema:
    """The types of all records seen so far, one column per top-level key.

    Nulls and missing keys fit every type and stay null. Whole numbers and decimals mix only while each whole number
    is exactly representable as a float; every other mixture is a `UserError` that names both places.

    Example:
        >>> schema = Schema()
        >>> schema.add({"prompt": "1+1=", "completion": "2"}, "sums.jsonl: line 1")
        >>> list(schema.features())
        ['prompt', 'completion']
    """

    def __init__(self) -> None:
        self._root = _Type()

    @property
    def columns(self) -> list[str]:
        """Top-level keys in the order they were first seen."""
        return list(self._root.fields)

    def add(self, record: dict[str, Any], where: str) -> None:
        """Take one record in.

        Raises:
            UserError: a value has another type than the same column had before, or no Arrow type can hold it.
        """
        _observe(self._root, record, where, "")

    def features(self) -> "Features":
        """The `datasets.Features` of all records seen."""
        from datasets import Features

        return Features({name: _feature(child) for name, child in self._root.fields.items()})


def _observe(node: _Type, value: Any, where: str, path: str) -> None:
    kind = _KINDS[type(value)]
    if kind == "null":
        return
    if kind == "int":
        _check_int(node, value, where, path)
    if node.kind != kind:
        _settle(node, kind, where, path)
    if kind == "string":
        _check_text(value, where, path)
    elif kind == "list":
        node.item = node.item or _Type()
        for item in value:
            _observe(node.item, item, where, f"{path}[]")
    elif kind == "struct":
        for key, item in value.items():
            child = node.fields.get(key)
            if child is None:
                child = node.fields[key] = _Type()
            _observe(child, item, where, f"{path}.{key}" if path else key)


def _settle(node: _Type, kind: str, where: str, path: str) -> None:
    if node.kind == "null":
        node.kind, node.where = kind, where
    elif {node.kind, kind} == {"int", "float"} and not node.wide:
        node.kind = "float"
    else:
        raise UserError(
            f"{where}: '{path}' holds {_WORDS[kind]} here but {_WORDS[node.kind]} in {node.where}; "
            "give it one type in every row, or remove it"
        )


def _check_int(node: _Type, value: int, where: str, path: str) -> None:
    if not -(2**63) <= value < 2**63:
        raise UserError(f"{where}: the number in '{path}' does not fit 64 bits; write it as text, or remove it")
    node.wide = node.wide or abs(value) > _EXACT


def _check_text(value: str, where: str, path: str) -> None:
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        bad = value[error.start]
        raise UserError(
            f"{where}: '{path}' holds half of a surrogate pair (\\u{ord(bad):04x}), which is no character; "
            "repair the text, or remove the row"
        ) from error


def _feature(node: _Type) -> Any:
    from datasets import List, Value

    if node.kind == "list":
        return List(_feature(node.item or _Type()))
    if node.kind == "struct":
        return {name: _feature(child) for name, child in node.fields.items()}
    return Value({"int": "int64", "float": "float64"}.get(node.kind, node.kind))
