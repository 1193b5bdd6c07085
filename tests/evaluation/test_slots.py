"""Slot errors: what counts as said, missing and hallucinated, by rule."""

import pytest

from inverselm.evaluation.tasks.e2e import RULES, group_of, plain
from inverselm.evaluation.tasks.slots import SlotErrors, SlotMatcher, parse_meaning

FULL = (
    "name[The Eagle], eatType[coffee shop], food[Japanese], priceRange[less than £20], customer rating[low], "
    "area[riverside], familyFriendly[yes], near[Burger King]"
)


def errors(meaning, text, *known):
    meaning = parse_meaning(meaning)
    return SlotMatcher([meaning, *map(parse_meaning, known)]).errors(text, meaning)


def test_meanings():
    assert parse_meaning("name[A], customer rating[1 out of 5],area[x]") == (
        ("name", "A"),
        ("customer rating", "1 out of 5"),
        ("area", "x"),
    )
    assert parse_meaning("Say this: name[A] | name[A] food[]") == (("name", "A"),)
    assert parse_meaning("a list [1, 2]") == (("a list", "1, 2"),)
    assert parse_meaning("no slots") == ()


def test_a_whole_sentence():
    text = (
        "The Eagle is a low rated coffee shop near Burger King and the riverside that is family friendly and is less "
        "than £20 for Japanese food."
    )
    assert errors(FULL, text) == SlotErrors(0, 0, 8)
    assert errors(FULL, "The Eagle is a coffee shop near Burger King.") == SlotErrors(5, 0, 8)
    assert errors(FULL, "") == SlotErrors(8, 0, 8)


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("familyFriendly[yes]", ["family-friendly", "Kids are welcome", "child friendly", "not only child friendly"]),
        (
            "familyFriendly[no]",
            [
                "it is not family friendly",
                "non-kid-friendly",
                "isn't suitable for children",
                "no children",
                "children are not allowed",
                "an adults only pub",
                "a child unfriendly place",
                "an unfamily friendly place",
            ],
        ),
        ("priceRange[cheap]", ["cheap", "low-priced", "under £20", "less than 20 pounds", "prices are low"]),
        ("priceRange[£20-25]", ["moderately priced", "£20-£25", "mid-range", "an average price range"]),
        ("priceRange[more than £30]", ["expensive", "high prices", "over £30", "in the higher price range"]),
        ("customer rating[1 out of 5]", ["one star", "1 out of 5", "low customer rating", "poorly rated", "rated low"]),
        ("customer rating[average]", ["3 out of 5 stars", "three-star", "average rating", "rated as average"]),
        ("customer rating[5 out of 5]", ["five stars", "5/5", "highly rated", "a high customer rating"]),
        ("area[city centre]", ["in the city center", "centre of the city", "downtown"]),
        ("area[riverside]", ["by the river", "Riverside"]),
        ("eatType[coffee shop]", ["a coffee-shop", "Café"]),
        ("eatType[pub]", ["a pub"]),
        ("food[English]", ["British food", "english"]),
        ("food[Fast food]", ["fast-food", "burgers"]),
        ("near[Café Rouge]", ["near CAFE ROUGE"]),
        ("name[The Rice Boat]", ["Rice Boat", "the rice boat's"]),
    ],
)
def test_how_values_are_said(value, texts):
    slot = value.partition("[")[0]
    others = [f"{slot}[{v}]" for groups in RULES.values() for group in groups for v in group if group_of(_key(slot), v)]
    for text in texts:
        assert errors(value, text, *others) == SlotErrors(0, 0, 1), text


def _key(slot):
    return slot.replace(" ", "").lower()


@pytest.mark.parametrize(
    ("meaning", "text", "expected"),
    [
        ("food[French]", "Italian food", (1, 1, 1)),
        ("food[French]", "French and Italian food", (0, 1, 1)),
        ("food[French], priceRange[cheap]", "French food", (1, 0, 2)),
        ("familyFriendly[yes]", "it is not family friendly", (1, 1, 1)),
        ("familyFriendly[no]", "family friendly", (1, 1, 1)),
        ("food[French]", "French food for the family", (0, 1, 1)),
        ("eatType[pub]", "a pub restaurant", (0, 0, 1)),
        ("eatType[restaurant]", "a pub", (1, 1, 1)),
        ("near[Raja Indian Cuisine], food[French]", "French, near Raja Indian Cuisine", (0, 0, 2)),
        ("near[Raja Indian Cuisine]", "Indian food", (1, 1, 1)),
        ("near[Yippee Noodle Bar], eatType[pub]", "a pub near Yippee Noodle Bar", (0, 0, 2)),
        ("customer rating[high], priceRange[cheap]", "highly rated and cheap", (0, 0, 2)),
        ("customer rating[low], priceRange[high]", "a high price range and a low customer rating", (0, 0, 2)),
        ("customer rating[low], priceRange[high]", "prices are high, rated low", (0, 0, 2)),
        ("customer rating[1 out of 5]", "an average customer rating of 1 out of 5", (0, 0, 1)),
        ("customer rating[3 out of 5]", "3 out of 5 stars", (0, 0, 1)),
        ("customer rating[1 out of 5]", "ratings score an average of 1 out of 5", (0, 0, 1)),
        ("customer rating[low], priceRange[moderate]", "poorly rated and moderately expensive", (0, 0, 2)),
        ("customer rating[low], priceRange[high]", "a low rating, rated with high prices", (0, 0, 2)),
        ("priceRange[moderate]", "moderately expensive", (0, 0, 1)),
        ("priceRange[cheap]", "inexpensive", (0, 0, 1)),
        ("name[Cotto]", "Cotto is near The Eagle", (0, 1, 1)),
        ("name[Cotto]", "Cottonwood", (1, 0, 1)),
        ("name[Cotto Blue], near[Cotto]", "Cotto Blue is near Avalon", (1, 1, 2)),
        ("name[Cotto Blue]", "Cotto Blue", (0, 0, 1)),
    ],
)
def test_wrong_values_and_contexts(meaning, text, expected):
    known = [FULL, "eatType[pub], food[Italian], food[Indian], name[Cotto], near[Avalon]"]
    assert errors(meaning, text, *known) == SlotErrors(*expected)


def test_rules_of_slots_that_the_data_does_not_have_are_off():
    assert errors("name[Cotto]", "Cotto is a cheap French pub by the river") == SlotErrors(0, 0, 1)


def test_slots_of_other_data():
    meaning = "name[Hotel Astor], hasParking[no], dogs_allowed[yes], stars[4 stars]"
    assert errors(meaning, "Hotel Astor has 4 stars and no parking, and dogs allowed.") == SlotErrors(0, 0, 4)
    assert errors(meaning, "The Hotel Astor, of 4 stars, has parking; dogs allowed") == SlotErrors(1, 1, 4)
    assert errors(meaning, "HOTEL ASTOR: 4 Stars. Dogs are not welcome") == SlotErrors(2, 0, 4)
    both = "food[Thai], food[Greek]"
    assert errors(both, "Thai food") == SlotErrors(1, 0, 2)


def test_plain_form():
    assert plain("  Café\n“Ü”  – it’s £20") == 'cafe "u" - it\'s £20'
    for slot, groups in RULES.items():
        for group in groups:
            for value in group:
                assert group_of(slot, value.upper()) == group
