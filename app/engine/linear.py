"""Owns how linear layers are computed on a CPU. Knows no model: it is told which layers there are.

torch gives float32 products to MKL, which uses a fraction of what an AMD processor can do; oneDNN, which torch ships too, uses
its vector instructions whoever made it, and keeps weights in the order in which they are read. For the layers of a model of
29 M parameters that is 5 ms instead of 15 for 8 rows, 11 instead of 27 for 32, 140 instead of 190 for 512 (docs/benchmarks.md).
Which one is faster is measured on the machine, when a model is loaded. The operators are those that torch's own compiler
emits for frozen weights; where a build of torch has none, nothing changes.
"""

import time
from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor, nn

from app.engine.memory import free_memory

# Numbers of rows that are compared: one stream, some, many.
ROWS = (1, 8, 32)
# The faster product must be faster by this factor, all of ROWS together, to be worth it.
GAIN = 1.1
_REPEATS = 5
# Packed weights are a copy: no more than this share of the free memory may go into them.
_PACKED_SHARE = 0.25
# Measured on this many bytes of weights at most: more than a cache holds, so that memory is what counts.
_SAMPLE_BYTES = 256 * 2**20

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def quicken(model: nn.Module) -> str:
    """Let the model's linear layers on a CPU take the faster product; return which: "onednn-packed", "onednn" or "torch".

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
    if not weights or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "torch"
    sample = _sample(list(weights.values()))
    fits = sum(weight.nbytes for weight in weights.values()) <= _PACKED_SHARE * free_memory(torch.device("cpu"))
    ready = [packed(weight) if fits else weight for weight in sample]
    if seconds(onednn_product, sample, ready) * GAIN > seconds(nn.functional.linear, sample, sample):
        return "torch"
    if fits:
        weights = {key: packed(weight) for key, weight in weights.items()}
    for layer in layers:
        layer.forward = MethodType(_forward(weights[id(layer.weight)]), layer)  # type: ignore[method-assign]
    return "onednn-packed" if fits else "onednn"


@torch.inference_mode()
def packed(weight: Tensor) -> Tensor:
    """Return a copy of a layer's weight [out, in] in oneDNN's own order, which only its product can read."""
    copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS[-1])
    return copy


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias` for `x` [..., in] and `weight` [out, in], packed or not."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


@torch.inference_mode()
def seconds(product: Product, shapes: list[Tensor], weights: list[Tensor]) -> float:
    """Return how long the product takes over all weights, for all of ROWS; the shortest of a few runs each.

    `shapes` are weights whose shape and dtype can be read, in the order of `weights`, which may be packed.
    """
    total = 0.0
    for rows in ROWS:
        inputs = [torch.ones(rows, shape.shape[1], dtype=shape.dtype) for shape in shapes]
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


def _forward(weight: Tensor) -> Callable[[nn.Linear, Tensor], Tensor]:
    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        if x.numel() == 0 or x.dtype != self.weight.dtype:
            return nn.functional.linear(x, self.weight, self.bias)
        return onednn_product(x, weight, self.bias)

    return forward
