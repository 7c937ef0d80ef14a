"""The faster product of few rows: the same numbers, only where it is faster, and nothing of the model changed."""

import pytest
import torch
from torch import nn

from app.engine import linear
from app.engine.linear import quicken, transposed_product
from tests.support.tiny import tiny_model


@pytest.mark.parametrize("rows", range(1, 12))
def test_the_transposed_product_is_the_product(rows: int) -> None:
    x, weight = torch.randn(rows, 48), torch.randn(80, 48)
    output = transposed_product(x, weight)
    assert output.is_contiguous()
    torch.testing.assert_close(output, nn.functional.linear(x, weight), rtol=1e-5, atol=1e-5)


def always(monkeypatch: pytest.MonkeyPatch, most_rows: int) -> None:
    monkeypatch.setattr(linear, "measure", lambda weights: most_rows)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 16), (4, 16), (5, 16), (1, 1, 16), (2, 2, 16), (2, 3, 16), (16,), (0, 16)])
def test_a_quickened_layer_gives_what_it_gave(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bias: bool) -> None:
    always(monkeypatch, 4)
    layer = nn.Linear(16, 24, bias=bias)
    x = torch.randn(shape)
    before = layer(x)
    assert quicken(layer) == 4
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
    assert layer(x).shape == before.shape


@pytest.mark.parametrize("kind", ["qwen3", "t5", "gpt2"])
def test_a_quickened_model_gives_what_it_gave(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    always(monkeypatch, 8)
    model = tiny_model(kind)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])} | ({"decoder_input_ids": torch.tensor([[0, 9]])} if kind == "t5" else {})
    with torch.inference_mode():
        before = model(**inputs).logits
        quicken(model)
        torch.testing.assert_close(model(**inputs).logits, before, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


def test_what_is_no_plain_float32_layer_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch, 8)

    class Special(nn.Linear):
        pass

    for layer in (Special(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16), nn.Linear(4, 4, device="meta")):
        quicken(layer)
        assert "forward" not in vars(layer)


def test_only_a_product_that_is_faster_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"linear": 1.0, "few": 0.5, "many": 0.95}

    def timed(product: object, inputs: dict[int, torch.Tensor], weights: list[torch.Tensor]) -> float:
        rows = next(iter(inputs.values())).shape[0]
        return seconds["linear"] if product is not transposed_product else seconds["few" if rows <= 2 else "many"]

    monkeypatch.setattr(linear, "_seconds", timed)
    assert quicken(nn.Linear(8, 8)) == 2
    seconds["few"] = 0.95
    layer = nn.Linear(8, 8)
    assert quicken(layer) == 0
    assert "forward" not in vars(layer)
