"""Owns how the products of few rows with a weight matrix run on a CPU. Knows no model: it is told which layers there are.

A decode step of few sequences multiplies one to eight rows with every weight. In float32 the matrix library takes a path for
that which leaves most of the memory bandwidth unused: `x @ W.T` needs 11 ms for the 29 M parameters of a small model where
`(W @ x.T).T`, the same sums, needs 5 (2 cores of an AMD EPYC, torch 2.13 with MKL; docs/benchmarks.md). Which one is faster is
measured on the machine, when the model is loaded.
"""

import time
from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor, nn

# Numbers of rows that are tried; from one to the next the faster way of the upper one holds.
ROWS = (1, 2, 4, 8)
_REPEATS = 7
# Measured on this many bytes of weights at most: more than a cache holds, so that memory is what counts.
_SAMPLE_BYTES = 256 * 2**20


def quicken(model: nn.Module) -> int:
    """Let the model's linear layers on a CPU take the faster product for few rows; return the most rows it is used for.

    Weights and modelling code stay as they are: only `forward` of the layers that are exactly torch's nn.Linear is wrapped.
    """
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and "forward" not in vars(module)
    ]
    most_rows = measure([layer.weight for layer in layers]) if layers else 0
    if most_rows:
        for layer in layers:
            layer.forward = MethodType(_forward(most_rows), layer)  # type: ignore[method-assign]
    return most_rows


@torch.inference_mode()
def measure(weights: list[Tensor]) -> int:
    """Return up to how many rows the transposed product beats torch's own by a tenth or more; 0 if it never does."""
    sample: list[Tensor] = []
    for weight in sorted(weights, key=lambda weight: weight.nbytes, reverse=True):
        if sample and sum(chosen.nbytes for chosen in sample) + weight.nbytes > _SAMPLE_BYTES:
            break
        sample.append(weight)
    best = 0
    for rows in ROWS:
        inputs = {weight.shape[1]: torch.ones(rows, weight.shape[1]) for weight in sample}
        plain = _seconds(lambda x, weight: nn.functional.linear(x, weight), inputs, sample)
        if _seconds(transposed_product, inputs, sample) > 0.9 * plain:
            break
        best = rows
    return best


def transposed_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return `x @ weight.T` for `x` [rows, in] and `weight` [out, in], as the transpose of `weight @ x.T`.

    One row is computed as two: for a single column the library falls back to a matrix-vector product, which is as slow.
    """
    if x.shape[0] == 1:
        return torch.mm(weight, torch.cat((x, x)).t()).select(1, 0).contiguous().unsqueeze(0)
    # Contiguous, as torch's own: attention kernels ask for that, and so does the next product to be fast.
    return torch.mm(weight, x.t()).t().contiguous()


def _forward(most_rows: int) -> Callable[[nn.Linear, Tensor], Tensor]:
    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        size = x.shape[-1]
        if not 0 < x.numel() <= most_rows * size:
            return nn.functional.linear(x, self.weight, self.bias)
        output = transposed_product(x.reshape(-1, size), self.weight)
        if self.bias is not None:
            output = output + self.bias
        return output.reshape(*x.shape[:-1], self.weight.shape[0])

    return forward


def _seconds(product: Callable[[Tensor, Tensor], Tensor], inputs: dict[int, Tensor], weights: list[Tensor]) -> float:
    """Return the shortest of a few runs over all weights."""
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        for weight in weights:
            product(inputs[weight.shape[1]], weight)
        best = min(best, time.perf_counter() - start)
    return best
