"""The Triton kernels in Triton's interpreter, on a CPU. `test_triton_tiles` runs this file with TRITON_INTERPRET=1."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch

from helpers.mdp import lay_out, random_documents
from inverselm.objectives import entropy_regularised_mle, iqlearn, mle
from inverselm.token_mdp import HeadSpec, head_kl, head_loss, head_stats, triton_tiles
from inverselm.token_mdp.tile_gradients import Upstream, _logit_gradient
from inverselm.token_mdp.tiles import Reading, Tile, make_tiles, prepare_rows, product_weight, read_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}  # of P, relative
SIZES = ((1, 9), (16, 16), (23, 22), (50, 37))  # vocabulary, tile


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Names of the kernels that ran, in blocks of 16 columns so that small tiles have several."""
    monkeypatch.setattr(triton_tiles, "_BLOCK", 16)
    monkeypatch.setattr(triton_tiles, "_GRADIENT_BLOCK", 16)
    monkeypatch.setattr(triton_tiles, "_failures", [])
    names, launch = [], triton_tiles._launch

    def counted(name, *args, **kwargs):
        names.append(name)
        assert kwargs["BLOCK"] <= triton_tiles._BLOCK
        return launch(name, *args, **kwargs)

    monkeypatch.setattr(triton_tiles, "_launch", counted)
    return names


@pytest.fixture
def in_torch(monkeypatch):
    """Call something with Triton switched off."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(triton_tiles, "available", lambda *_: False)
            return function()

    return call


def exact_softmax(z, bias, factor, offset, softcap, temperature, action, start):
    """From the definition, in float64: P, logsumexp, maximum and mean of q over the columns that are not the action."""
    q = z.double() + (0.0 if bias is None else factor * bias.double())
    shift = 0.0 if offset is None else offset.double()[:, None]
    q = softcap * torch.tanh((q + shift) / softcap) / temperature if softcap else q + shift
    q = q.masked_fill(torch.arange(start, start + z.size(1)) == action[:, None], -torch.inf)
    p = q.softmax(dim=1)
    return p, q.logsumexp(dim=1), q.amax(dim=1), torch.where(p > 0, p * q, 0.0).sum(dim=1)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("bias", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_of_a_tile(dtype, bias, offset, softcap, launches):
    """Against float64; the actions lie before, at the edges of, in and after the tile's columns 100, 101, ..."""
    torch.manual_seed(0)
    for columns in (2, 16, 37):
        z = (torch.randn(5, columns) * 4).to(dtype)
        given = {
            "bias": None if bias is None else torch.randn(columns).to(bias),
            "factor": 0.7,
            "offset": torch.randn(5) * 3 if offset else None,
            "softcap": softcap,
            "temperature": 0.6,
            "action": torch.tensor([99, 100, 101, 100 + columns - 1, 100 + columns]),
            "start": 100,
        }
        p, *numbers = exact_softmax(z, **given)
        out = torch.full_like(z, torch.nan)
        got = triton_tiles.softmax_tile(z, out, **given, expectation=True)
        torch.testing.assert_close(out.double(), p, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] / 100)
        for one, expected in zip(got, numbers, strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one.double(), expected, rtol=3e-6, atol=3e-6)
        assert (out[1, 0], out[2, 1], out[3, -1]) == (0, 0, 0)

        in_place = triton_tiles.softmax_tile(z, z, **given, expectation=False)
        assert torch.equal(z, out)
        assert torch.equal(in_place.lse, got.lse)
        assert in_place.expected is None
    assert launches == ["softmax_row"] * 6


def test_a_tile_of_nothing_but_the_action():
    """No mass, finite numbers: nothing that is multiplied by exp(lse - V) = 0 may be infinite."""
    z = torch.tensor([[3.0], [4.0]])
    got = triton_tiles.softmax_tile(
        z, z, bias=None, factor=1.0, offset=torch.ones(2), softcap=None, temperature=1.0,
        action=torch.tensor([7, 6]), start=7, expectation=True,
    )  # fmt: skip
    assert z.tolist() == [[0.0], [1.0]]
    assert got.lse.tolist() == got.top.tolist() == got.expected.tolist() == [pytest.approx(-1e30), 5.0]


def test_nan_is_not_hidden():
    z = torch.tensor([[0.0, torch.nan, 1.0], [0.0, 1.0, 2.0]])
    arguments = {"bias": None, "factor": 1.0, "offset": None, "temperature": 1.0, "start": 0, "expectation": True}
    for softcap in (None, 3.0):
        place = z.clone()
        got = triton_tiles.softmax_tile(place, place, softcap=softcap, action=torch.tensor([0, 0]), **arguments)
        for tensor in (got.lse, got.expected, place[:, 2]):
            assert tensor.isnan().tolist() == [True, False]


def test_blocks_of_the_real_size(monkeypatch):
    monkeypatch.setattr(triton_tiles, "_BLOCK", 8192)
    z, action = torch.randn(2, 8192 + 5), torch.tensor([8192 + 2, -1])
    given = {"bias": None, "factor": 1.0, "offset": None, "softcap": None, "temperature": 1.0, "start": 0}
    p, *numbers = exact_softmax(z, action=action, **given)
    got = triton_tiles.softmax_tile(z, z, action=action, expectation=True, **given)
    torch.testing.assert_close(z.double(), p, rtol=1e-5, atol=1e-9)
    for one, expected in zip(got, numbers, strict=True):
        torch.testing.assert_close(one.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_are_those_of_torch(dtype, bias, softcap, launches, in_torch):
    """Every tile, side by side and in one place, the action in each and alone in one; temperature and scale on."""
    torch.manual_seed(1)
    for vocab, width in SIZES:
        spec = HeadSpec(1.3, softcap, 0.7, dtype, width)
        weight, action = torch.randn(vocab, 6), torch.arange(vocab)[:: max(1, vocab // 3)]
        b = torch.randn(vocab) if bias else None
        if bias and vocab > 2:
            b[1] = -torch.inf  # a token that is ruled out
        rows, product = prepare_rows(torch.randn(len(action), 6), weight, b, action, spec), product_weight(weight, spec)

        def run(reuse, rows=rows, product=product, b=b, spec=spec, vocab=vocab):
            stash = product.new_full((len(rows.action) * vocab,), torch.nan)
            tiles = make_tiles(rows, product, b, spec, stash, reuse=reuse)
            found = [(t.start, t.end, t.probs.clone(), t.lse, *more) for t, *more in tiles.softmaxes(expectation=True)]
            return found, stash

        for reuse in (False, True):
            ours, stash = run(reuse)
            theirs, _ = in_torch(partial(run, reuse))
            for (start, end, probs, *numbers), (*place, other_probs, other_lse, top, mean) in zip(
                ours, theirs, strict=True
            ):
                assert [start, end] == place
                others = other_lse > -1e29  # else the tile holds the action alone, and its P is multiplied by 0
                torch.testing.assert_close(
                    probs[others], other_probs[others], rtol=ROUNDING[dtype], atol=ROUNDING[dtype] / 100
                )
                for one, other in zip(numbers, (other_lse, top, mean), strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-5, atol=4e-3 if dtype != torch.float32 else 1e-5)
            assert stash.isnan().any() == (reuse and width < vocab)
    assert set(launches) == {"softmax_row"}


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logit_gradient_is_that_of_torch(dtype, entropy, softcap, launches, in_torch):
    torch.manual_seed(2)
    for columns in (1, 16, 37):
        probs = (torch.randn(4, columns) * 3).softmax(dim=1)
        probs[:, 0] = torch.tensor([0.0, 1e-40, 1e-30, 0.5])
        tile = Tile(3, 3 + columns, probs.to(dtype), torch.tensor([-1e30, -2.0, 3.0, 1.0]))
        reading = Reading(torch.randn(4), torch.zeros(4), torch.randn(4))
        upstream = Upstream(torch.randn(4), torch.randn(4), torch.randn(4) if entropy else None)
        run = partial(
            _logit_gradient, tile, torch.rand(4), reading, upstream, HeadSpec(1.3, softcap, 0.7, dtype, columns)
        )
        expected = in_torch(run)
        assert torch.equal(tile.probs, probs.to(dtype))  # torch does not write there
        got = run()
        assert got is tile.probs
        torch.testing.assert_close(got, expected, rtol=2 * ROUNDING[dtype], atol=ROUNDING[dtype] / 10)
        assert got.any()
    assert launches == ["logit_gradient"] * 3


def a_head(seed, dtype, bias):
    """Hidden states of packed documents, and a layer of 23 tokens."""
    torch.manual_seed(seed)
    batch, _, _ = lay_out(random_documents(seed, 3, vocab_size=23), "packed")
    hidden = torch.randn(*batch.input_ids.shape, 6).to(dtype).requires_grad_()
    weight = torch.randn(23, 6).to(dtype).requires_grad_()
    b = torch.randn(23).to(dtype).requires_grad_() if bias else None
    return batch, hidden, weight, b, [x for x in (hidden, weight, b) if x is not None]


def close(ours, theirs, dtype):
    """Two softmaxes rounded apart by one bit are all that may differ."""
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.03}
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_loss_is_that_of_torch(dtype, bias, softcap, launches, in_torch):
    batch, hidden, weight, b, inputs = a_head(3, dtype, bias)
    for objective, entropy in (
        (partial(iqlearn, td_coef=0.3, gamma=0.9), "log"),
        (partial(entropy_regularised_mle, entropy_coef=0.2), "grad"),
        (mle, "none"),
    ):

        def run(objective=objective, entropy=entropy):
            spec = HeadSpec(1.3, softcap, 0.7, dtype, 10)
            loss, stats = head_loss(hidden, weight, batch, objective, bias=b, spec=spec, entropy=entropy, chunk_size=7)
            found = [loss.value, stats.action_logit, stats.value, stats.next_value, *loss.metrics.values()]
            return found + ([] if stats.entropy is None else [stats.entropy]), torch.autograd.grad(loss.value, inputs)

        for ours, theirs in zip(run(), in_torch(run), strict=True):
            close(ours, theirs, dtype)
    assert {"logit_gradient", "softmax_row"} <= set(launches)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_stats_are_those_of_torch(dtype, softcap, launches, in_torch):
    batch, hidden, weight, b, inputs = a_head(4, dtype, bias=True)

    def run():
        spec = HeadSpec(1.0, softcap, 1.0, dtype, 10)
        stats = head_stats(hidden, weight, batch, bias=b, spec=spec, entropy=True, chunk_size=7)
        total = (stats.action_logit + 2 * stats.value - stats.next_value * stats.value + stats.entropy).sum()
        found = (stats.action_logit, stats.value, stats.next_value, stats.entropy)
        return found, torch.autograd.grad(total, inputs), (stats.greedy.float(),)

    for ours, theirs in zip(run(), in_torch(run), strict=True):
        close(ours, theirs, dtype)
    assert {"logit_gradient", "softmax_row"} <= set(launches)


def test_what_needs_the_logits_stays_in_torch(launches, in_torch):
    """head_kl iterates the tiles with their logits; float64 has no kernel."""
    batch, hidden, weight, b, _ = a_head(5, torch.float32, bias=True)
    run = lambda: head_kl(hidden, weight, hidden + 1, weight, batch, bias=b, other_bias=b)
    assert torch.equal(run(), in_torch(run))
    head_stats(hidden.double(), weight.double(), batch)
    assert launches == []
    assert not triton_tiles.available(torch.device("cpu"), torch.float64)
    assert not triton_tiles.available(torch.device("meta"), torch.float32)
    assert triton_tiles.available(torch.device("cpu"), torch.float32)


class Failing:
    """A kernel that works a few times."""

    def __init__(self, kernel, times):
        self.kernel, self.times = kernel, times

    def __getitem__(self, grid):
        self.times -= 1
        if self.times < 0:
            raise RuntimeError("out of registers")
        return self.kernel[grid]


@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize("name", ["softmax_row", "logit_gradient"])
def test_a_kernel_that_fails_is_replaced_by_torch(name, times, monkeypatch, caplog, in_torch):
    """At the first tile or a later one, the numbers are right; one line names the error, and Triton stays off."""
    batch, hidden, weight, _, inputs = a_head(6, torch.float32, bias=False)

    def run():
        loss, _ = head_loss(
            hidden, weight, batch, partial(entropy_regularised_mle, entropy_coef=0.2), entropy="grad",
            spec=HeadSpec(tile=10),
        )  # fmt: skip
        return (loss.value.detach(), *torch.autograd.grad(loss.value, inputs))

    kernels = triton_tiles._kernels()
    monkeypatch.setattr(kernels, name, Failing(getattr(kernels, name), times))
    with caplog.at_level(logging.WARNING):
        first, second = run(), run()
    expected = in_torch(run)
    close(first, expected, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(second, expected, strict=True))
    assert not triton_tiles.available(torch.device("cpu"), torch.float32)
    assert len(caplog.messages) == 1
    assert name in caplog.text
    assert "out of registers" in caplog.text


def test_a_failure_in_the_plain_mode_starts_again_where_it_happened(monkeypatch, in_torch):
    """`reuse` writes all tiles in one place: those that were read before must not be computed twice."""
    spec = HeadSpec(tile=10)
    weight, hidden, action = torch.randn(23, 6), torch.randn(4, 6), torch.tensor([0, 9, 15, 22])
    rows = prepare_rows(hidden, weight, None, action, spec)

    def run():
        tiles = make_tiles(rows, weight, None, spec, weight.new_empty(40), reuse=True)
        return read_rows(rows, tiles, spec, expectation=True)

    expected, _ = in_torch(run)
    kernels = triton_tiles._kernels()
    monkeypatch.setattr(kernels, "softmax_row", Failing(kernels.softmax_row, 1))
    got, kept = run()
    assert [tile.start for tile in kept] == [0, 10, 20]
    close((got.value, got.expectation), (expected.value, expected.expectation), torch.float32)
