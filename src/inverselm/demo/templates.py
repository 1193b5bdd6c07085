"""The word problems of the demo, as data: a question with slots, and the calculations that answer it."""

from dataclasses import dataclass

NAMES = ("Tom", "Ana", "Ben", "Mia", "Sam", "Eva", "Leo", "Zoe", "Max", "Ivy", "Dan", "Kim", "Raj", "Lin", "Omar")
OBJECTS = (
    "apples",
    "pens",
    "books",
    "eggs",
    "cards",
    "coins",
    "shells",
    "cakes",
    "balls",
    "stamps",
    "pears",
    "toys",
    "beads",
    "nuts",
)


@dataclass(frozen=True)
class Step:
    """One line of a solution: `text` holds `{e}` where the calculation `left op right` stands.

    An operand is the name of a number of the question ("a"), a constant (2), or an earlier result ("#0").
    """

    text: str
    left: str
    op: str
    right: str | int


@dataclass(frozen=True)
class Template:
    """A question with the slots {name}, {obj} and numbers; `ranges` are the inclusive bounds of each number."""

    question: str
    ranges: dict[str, tuple[int, int]]
    steps: tuple[Step, ...]


_SMALL = (2, 9)
_LARGE = (2, 30)

TEMPLATES = (
    Template(
        "{name} has {a} bags with {b} {obj} in each. How many {obj} are there?",
        {"a": _SMALL, "b": _SMALL},
        (Step("There are {e} {obj}.", "a", "*", "b"),),
    ),
    Template(
        "{name} has {a} {obj} and gets {b} more. How many {obj} are there now?",
        {"a": _LARGE, "b": _LARGE},
        (Step("Now there are {e} {obj}.", "a", "+", "b"),),
    ),
    Template(
        "{name} has {a} {obj} and loses {b} of them. How many {obj} are left?",
        {"a": _LARGE, "b": _LARGE},
        (Step("{e} {obj} are left.", "a", "-", "b"),),
    ),
    Template(
        "{name} shares {a} {obj} among {b} friends. How many {obj} does each friend get?",
        {"a": (4, 81), "b": _SMALL},
        (Step("Each gets {e} {obj}.", "a", "/", "b"),),
    ),
    Template(
        "{name} has {a} boxes of {b} {obj} and finds {c} more. How many {obj} in all?",
        {"a": _SMALL, "b": _SMALL, "c": (2, 30)},
        (Step("The boxes hold {e}.", "a", "*", "b"), Step("In all {e} {obj}.", "#0", "+", "c")),
    ),
    Template(
        "{name} buys {a} {obj} at ${b} each and pays with ${c}. How much change is due?",
        {"a": _SMALL, "b": _SMALL, "c": (10, 99)},
        (Step("They cost ${e}.", "a", "*", "b"), Step("The change is ${e}.", "c", "-", "#0")),
    ),
    Template(
        "{name} has {a} {obj}, gives away {b} and buys {c}. How many {obj} now?",
        {"a": _LARGE, "b": _LARGE, "c": (2, 50)},
        (Step("First {e} are left.", "a", "-", "b"), Step("Then {e} {obj}.", "#0", "+", "c")),
    ),
    Template(
        "{name} gets {a} {obj} on Monday, {b} on Tuesday and {c} on Friday. How many {obj} in all?",
        {"a": (2, 40), "b": (2, 40), "c": (2, 40)},
        (Step("Two days give {e}.", "a", "+", "b"), Step("In all {e} {obj}.", "#0", "+", "c")),
    ),
    Template(
        "{name} has {a} {obj}. A friend has {b} times as many. How many {obj} do both have?",
        {"a": _SMALL, "b": _SMALL},
        (Step("The friend has {e}.", "a", "*", "b"), Step("Both have {e} {obj}.", "#0", "+", "a")),
    ),
    Template(
        "A hall has {a} rows of {b} chairs, and {c} chairs are taken. How many are free?",
        {"a": _SMALL, "b": _SMALL, "c": _LARGE},
        (Step("The hall has {e} chairs.", "a", "*", "b"), Step("{e} are free.", "#0", "-", "c")),
    ),
    Template(
        "{name} reads {a} pages a day for {b} days. The book has {c} pages. How many pages are left?",
        {"a": _SMALL, "b": _SMALL, "c": (10, 99)},
        (Step("{name} reads {e} pages.", "a", "*", "b"), Step("{e} pages are left.", "c", "-", "#0")),
    ),
    Template(
        "{name} has {a} {obj}, keeps {b} and splits the rest among {c} friends. How many does each get?",
        {"a": (10, 90), "b": (2, 40), "c": _SMALL},
        (Step("{e} {obj} are split.", "a", "-", "b"), Step("Each gets {e}.", "#0", "/", "c")),
    ),
    Template(
        "{name} opens {a} packs of {b} {obj} and fills {c} jars equally. How many {obj} per jar?",
        {"a": _SMALL, "b": _SMALL, "c": _SMALL},
        (Step("The packs hold {e}.", "a", "*", "b"), Step("Each jar gets {e} {obj}.", "#0", "/", "c")),
    ),
    Template(
        "School is {a} km away. {name} goes there and back on {b} days. How many km in all?",
        {"a": (2, 4), "b": _SMALL},
        (Step("A day is {e} km.", "a", "*", 2), Step("In all {e} km.", "#0", "*", "b")),
    ),
    Template(
        "{name} buys {a} {obj} at ${b} each and {c} hats at ${d} each. How much is it?",
        {"a": _SMALL, "b": _SMALL, "c": _SMALL, "d": _SMALL},
        (
            Step("The {obj} cost ${e}.", "a", "*", "b"),
            Step("The hats cost ${e}.", "c", "*", "d"),
            Step("In all ${e}.", "#0", "+", "#1"),
        ),
    ),
    Template(
        "{name} earns ${a} an hour for {b} hours, spends ${c} and finds ${d}. How much is it now?",
        {"a": _SMALL, "b": _SMALL, "c": (2, 60), "d": (2, 30)},
        (
            Step("The pay is ${e}.", "a", "*", "b"),
            Step("After spending, ${e}.", "#0", "-", "c"),
            Step("Now ${e}.", "#1", "+", "d"),
        ),
    ),
    Template(
        "{name} bakes {a} trays of {b} buns, eats {c} and packs the rest in bags of {d}. How many bags?",
        {"a": _SMALL, "b": _SMALL, "c": (2, 20), "d": _SMALL},
        (
            Step("There are {e} buns.", "a", "*", "b"),
            Step("{e} are packed.", "#0", "-", "c"),
            Step("That is {e} bags.", "#1", "/", "d"),
        ),
    ),
)
