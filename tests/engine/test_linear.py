"""The faster product of linear layers: the same numbers, only where it is faster, and nothing of the model changed."""

import pytest
import torch
from torch import nn

from app.engine import linear
from app.engine.linear import PRODUCTS, prepared, quicken
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")


def race(monkeypatch: pytest.MonkeyPatch, single: str, many: str) -> None:
    """Let these products win, whatever the clock says."""
    winners = {True: single, False: many}
    monkeypatch.setattr(linear, "seconds", lambda name, rows, *_: 1.0 if name == winners[rows == (1,)] else 9.0)


@pytest.mark.parametrize(
    ("name", "rows", "packs"),
    [("transposed", 1, False)] + [("onednn", rows, packs) for rows in (1, 2, 7, 8, 33, 200) for packs in (True, False)],
)
@pytest.mark.parametrize("bias", [None, torch.randn(80)])
def test_every_product_is_the_product(name: str, rows: int, packs: bool, bias: torch.Tensor | None) -> None:
    x, weight = torch.randn(rows, 48), torch.randn(80, 48)
    output = PRODUCTS[name](x, prepared(name, weight, packs), bias)
    assert output.is_contiguous()
    torch.testing.assert_close(output, nn.functional.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 16), (5, 16), (1, 1, 16), (2, 3, 16), (16,), (0, 16), (1, 0, 16)])
@pytest.mark.parametrize(
    ("single", "many"), [("onednn", "onednn"), ("transposed", "onednn"), ("transposed", "torch"), ("torch", "onednn")]
)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_quickened_layer_gives_what_it_gave(
    monkeypatch: pytest.MonkeyPatch, single: str, many: str, shape: tuple[int, ...], bias: bool, share: float
) -> None:
    race(monkeypatch, single, many)
    monkeypatch.setattr(linear, "_PACKED_SHARE", share)
    layer = nn.Linear(16, 24, bias=bias)
    x = torch.randn(shape)
    with torch.inference_mode():
        before = layer(x)
        assert quicken(layer) == f"{single}, {many}"
        assert layer(x).shape == before.shape
        torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
        turned = torch.randn(16, 3).t()
        torch.testing.assert_close(layer(turned), nn.functional.linear(turned, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3", "t5", "gpt2"])
def test_a_quickened_model_gives_what_it_gave(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    race(monkeypatch, "transposed", "onednn")
    model = tiny_model(kind)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])} | ({"decoder_input_ids": torch.tensor([[0, 9]])} if kind == "t5" else {})
    with torch.inference_mode():
        before = model(**inputs).logits
        quicken(model)
        torch.testing.assert_close(model(**inputs).logits, before, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


def test_what_is_no_plain_layer_on_a_cpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    race(monkeypatch, "transposed", "onednn")

    class Special(nn.Linear):
        pass

    for layer in (Special(4, 4), nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4, device="meta")):
        assert quicken(layer) == "torch"
        assert "forward" not in vars(layer)


def test_a_product_that_is_not_clearly_faster_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "seconds", lambda name, *_: 1.0 if name == "torch" else 0.95)
    layer = nn.Linear(8, 8)
    assert quicken(layer) == "torch, torch"
    assert "forward" not in vars(layer)


def test_the_clock_runs_over_all_weights_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.randn(8, 8), torch.randn(4, 8)]
    seen: list[tuple[int, int]] = []

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append((x.shape[0], weight.shape[0]))
        return x

    monkeypatch.setitem(PRODUCTS, "torch", product)
    assert linear.seconds("torch", (1, 5), weights, weights) > 0
    assert set(seen) == {(rows, out) for rows in (1, 5) for out in (8, 4)}
