"""Owns how linear layers are computed on a CPU. Knows no model: it is told which layers there are.

torch gives float32 products to MKL, which uses a fraction of what an AMD processor can do. Two other ways give the same sums:

    onednn      the library that torch ships too: uses the vector instructions whoever made the processor, and keeps weights
                packed in the order in which they are read. A third of MKL's time for 8 rows, half of it for 32
    transposed  `(W @ x.T).T`, for one row: half of MKL's time, because it reads the weights at the speed of the memory

Which one is fastest is measured on the machine, when a model is loaded (figures: docs/benchmarks.md). oneDNN's operators are
those that torch's own compiler emits for frozen weights; in a build of torch without them the others compete.
"""

import functools
import time
import warnings
from collections.abc import Callable
from types import MethodType
from typing import cast

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing

from app.engine.memory import free_memory

# Numbers of rows that stand for all but one.
MANY = (8, 32)
# Another product than torch's must be faster by this factor to be taken.
GAIN = 1.1
_REPEATS = 5
# Packed weights are a copy: no more than this share of the free memory may go into them.
_PACKED_SHARE = 0.25
_PACKED = "packed_weight"
# Measured on this many bytes of weights at most: more than a cache holds, so that memory is what counts.
_SAMPLE_BYTES = 256 * 2**20

# x [rows, in], weight [out, in] in the product's own order, bias [out] -> [rows, out]
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def quicken(model: nn.Module) -> str:
    """Let the model's linear layers on a CPU take the fastest product; return the names of those for one row and for many.

    Weights and modelling code stay as they are: only `forward` of the layers that are exactly torch's nn.Linear is wrapped.
    """
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and module.weight.device.type == "cpu"
        and module.weight.dtype in (torch.float32, torch.bfloat16)
        and "forward" not in vars(module)
    ]
    weights = {id(layer.weight): layer.weight.detach() for layer in layers}
    if not weights:
        return "torch"
    packs = sum(weight.nbytes for weight in weights.values()) <= _PACKED_SHARE * free_memory(torch.device("cpu"))
    sample = _sample(list(weights.values()))
    single, many = (
        fastest(("torch", "onednn", "transposed"), (1,), sample, packs),
        fastest(("torch", "onednn"), MANY, sample, packs),
    )
    if (single, many) != ("torch", "torch"):
        packed = (
            {key: prepared("onednn", weight, packs) for key, weight in weights.items()} if "onednn" in (single, many) else {}
        )
        for layer in layers:
            if packed:
                # A buffer, so that a recorded step finds it as a part of the model (recorded.py).
                layer.register_buffer(_PACKED, packed[id(layer.weight)], persistent=False)
            ways = [(PRODUCTS[name], _PACKED if name == "onednn" else "weight") for name in (single, many)]
            layer.forward = MethodType(_forward(*ways), layer)  # type: ignore[method-assign]
    return f"{single}, {many}"


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`; the weight may be packed."""
    way = _scripted() if is_tracing() else _linear_pointwise  # type: ignore[no-untyped-call]
    return way(x, weight, bias)


def _linear_pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    nothing: list[int | float | complex | None] = []
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", nothing, "")
    return product


@functools.cache
def _scripted() -> Product:
    """Return the product in a form that a trace can hold, which by itself knows nothing of lists of scalars, empty as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return cast(Product, torch.jit.script(_linear_pointwise))


def transposed_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias` for one row, computed as two: for a single column MKL's way is as slow as ever."""
    product = torch.mm(weight, torch.cat((x, x)).t()).select(1, 0).contiguous().unsqueeze(0)
    return product if bias is None else product.add_(bias)


PRODUCTS: dict[str, Product] = {"torch": nn.functional.linear, "onednn": onednn_product, "transposed": transposed_product}


@torch.inference_mode()
def prepared(name: str, weight: Tensor, packs: bool = True) -> Tensor:
    """Return a weight [out, in] as the product wants it: oneDNN packed, in an order that only it can read, if `packs`."""
    if name != "onednn" or not packs:
        return weight
    copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, MANY[-1])
    return copy


@torch.inference_mode()
def fastest(names: tuple[str, ...], rows: tuple[int, ...], weights: list[Tensor], packs: bool) -> str:
    """Return the product that is fastest for these numbers of rows; the first one, unless another is clearly faster."""
    best, best_seconds = names[0], float("inf")
    for name in names:
        if name == "onednn" and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            continue
        ready = [prepared(name, weight, packs) for weight in weights]
        taken = seconds(name, rows, weights, ready) * (1 if name == names[0] else GAIN)
        if taken < best_seconds:
            best, best_seconds = name, taken
    return best


def seconds(name: str, rows: tuple[int, ...], shapes: list[Tensor], weights: list[Tensor]) -> float:
    """Return how long a product takes over all `weights`, for all of `rows`; the shortest of a few runs each.

    `shapes` are the same weights, whose shape and dtype can be read even if `weights` are packed.
    """
    product, total = PRODUCTS[name], 0.0
    for number in rows:
        inputs = [torch.ones(number, shape.shape[1], dtype=shape.dtype) for shape in shapes]
        best = float("inf")
        for _ in range(_REPEATS):
            start = time.perf_counter()
            for x, weight in zip(inputs, weights, strict=True):
                product(x, weight, None)
            best = min(best, time.perf_counter() - start)
        total += best
    return total


def _sample(weights: list[Tensor]) -> list[Tensor]:
    """Return the largest weights, as many as are enough to measure on."""
    sample: list[Tensor] = []
    for weight in sorted(weights, key=lambda weight: weight.nbytes, reverse=True):
        if sample and sum(chosen.nbytes for chosen in sample) + weight.nbytes > _SAMPLE_BYTES:
            break
        sample.append(weight)
    return sample


def _forward(single: tuple[Product, str], many: tuple[Product, str]) -> Callable[[nn.Linear, Tensor], Tensor]:
    """Return a forward that takes, for one row and for more, a product and the attribute that holds its weight."""

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        if x.dtype != self.weight.dtype or x.numel() == 0:
            return nn.functional.linear(x, self.weight, self.bias)
        product, weight = single if x.numel() == x.shape[-1] else many
        rows = product(x.reshape(-1, x.shape[-1]), getattr(self, weight), self.bias)
        return rows.view(*x.shape[:-1], self.weight.shape[0])

    return forward
