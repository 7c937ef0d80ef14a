"""The faster product of linear layers: the same numbers, only where it is faster, and nothing of the model changed."""

import pytest
import torch
from torch import nn

from app.engine import linear
from app.engine.linear import onednn_product, packed, quicken
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says, oneDNN is faster."""
    monkeypatch.setattr(linear, "seconds", lambda product, *_: 1.0 if product is onednn_product else 9.0)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 33, 200])
@pytest.mark.parametrize("is_packed", [True, False])
def test_the_product_is_the_product(rows: int, is_packed: bool) -> None:
    x, weight, bias = torch.randn(rows, 48), torch.randn(80, 48), torch.randn(80)
    output = onednn_product(x, packed(weight) if is_packed else weight, bias)
    torch.testing.assert_close(output, nn.functional.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 16), (5, 16), (1, 1, 16), (2, 3, 16), (16,), (0, 16), (1, 0, 16)])
@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.usefixtures("always")
def test_a_quickened_layer_gives_what_it_gave(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bias: bool, share: float
) -> None:
    monkeypatch.setattr(linear, "_PACKED_SHARE", share)
    layer = nn.Linear(16, 24, bias=bias)
    x = torch.randn(shape)
    with torch.inference_mode():
        before = layer(x)
        assert quicken(layer) == ("onednn-packed" if share else "onednn")
        assert layer(x).shape == before.shape
        torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
        turned = torch.randn(16, 3).t()
        torch.testing.assert_close(layer(turned), nn.functional.linear(turned, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3", "t5", "gpt2"])
@pytest.mark.usefixtures("always")
def test_a_quickened_model_gives_what_it_gave(kind: str) -> None:
    model = tiny_model(kind)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])} | ({"decoder_input_ids": torch.tensor([[0, 9]])} if kind == "t5" else {})
    with torch.inference_mode():
        before = model(**inputs).logits
        quicken(model)
        torch.testing.assert_close(model(**inputs).logits, before, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.usefixtures("always")
def test_what_is_no_plain_layer_on_a_cpu_is_left_alone() -> None:
    class Special(nn.Linear):
        pass

    for layer in (Special(4, 4), nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4, device="meta")):
        assert quicken(layer) == "torch"
        assert "forward" not in vars(layer)


def test_a_product_that_is_not_faster_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "seconds", lambda product, *_: 0.95 if product is onednn_product else 1.0)
    layer = nn.Linear(8, 8)
    assert quicken(layer) == "torch"
    assert "forward" not in vars(layer)


def test_the_clock_runs_over_all_rows() -> None:
    weights = [torch.randn(8, 8), torch.randn(4, 8)]
    seen: list[tuple[int, int]] = []

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append((x.shape[0], weight.shape[0]))
        return x

    assert linear.seconds(product, weights, weights) > 0
    assert set(seen) == {(rows, out) for rows in linear.ROWS for out in (8, 4)}
