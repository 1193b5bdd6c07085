"""Files to keep: what an export refuses, and what is in it."""

import io
import math

import pytest

from inverselm.errors import UserError
from inverselm.inspection import export as module
from inverselm.inspection.export import export
from inverselm.report.colors import LIGHT

ANSWER = {"title": "A < B", "prompt": "2+2=", "caption": "by token", "tokens": [[" 4", 0.5], ["<b>", -1], ["?", None]]}


def test_html_holds_the_answers_in_one_scale():
    page, kind = export({"format": "html", "title": "T", "answers": [ANSWER, ANSWER | {"marked": [0, 1]}], "scale": 2})
    text = page.decode()
    assert kind.startswith("text/html")
    assert text.count("A &lt; B") >= 2
    assert text.count("<mark> 4") or text.count("<mark>")
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert "n/a" in text
    assert text.count("−2.000") == 2


def test_png_stacks_the_answers():
    from PIL import Image

    sizes = []
    for count in (1, 2):
        content, kind = export({"format": "png", "answers": [ANSWER] * count, "scale": 1.0})
        assert kind == "image/png"
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        sizes.append(picture.size)
        orange = tuple(int(LIGHT.negative[i : i + 2], 16) for i in (1, 3, 5))
        height = picture.height // count
        for number in range(count):
            part = picture.crop((0, number * height, picture.width, (number + 1) * height))
            assert orange in {colour for _, colour in part.getcolors(10**6)}  # the −1 is in full orange
    assert sizes[1] == (sizes[0][0], 2 * sizes[0][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "pdf"}, "'format' must be one of html, png"),
        ({"format": ["html"]}, "'format' must be one of html, png"),
        ({"answers": [ANSWER | {"tokens": [["a", 10**400]]}]}, "a token is"),
        ({"answers": []}, "1 to 4 answers"),
        ({"answers": [ANSWER] * 5}, "1 to 4 answers"),
        ({"answers": ["x"]}, "'tokens' as a list"),
        ({"answers": [ANSWER | {"tokens": [["a"]]}]}, "a token is"),
        ({"answers": [ANSWER | {"tokens": [["a", "1"]]}]}, "a token is"),
        ({"answers": [ANSWER | {"tokens": [["a", True]]}]}, "a token is"),
        ({"answers": [ANSWER | {"title": 3}]}, "'title' must be text"),
        ({"answers": [ANSWER | {"marked": [0, 9]}]}, "within the answer's 3 tokens"),
        ({"answers": [ANSWER | {"marked": 1}]}, "'marked' is"),
        ({"scale": -1}, "scale must be a positive number"),
        ({"scale": "1"}, "'scale' must be a number"),
        ({"title": None}, "'title' must be text"),
    ],
)
def test_what_an_export_refuses(change, message):
    with pytest.raises(UserError) as error:
        export({"format": "html", "answers": [ANSWER], **change})
    assert message in str(error.value)
    with pytest.raises(UserError):
        export([])


def test_an_export_has_a_limit(monkeypatch):
    monkeypatch.setattr(module, "_TOKENS", 4)
    export({"format": "html", "answers": [ANSWER]})
    with pytest.raises(UserError, match="up to 4 tokens"):
        export({"format": "html", "answers": [ANSWER, ANSWER]})


def test_infinite_numbers_are_none():
    page, _ = export({"format": "html", "answers": [{"tokens": [["a", math.inf], ["b", 1.0]]}]})
    assert "n/a" in page.decode()
