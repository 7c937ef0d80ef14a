"""Owns how the hidden states of a text's tokens become its vector: pooling, dense layers, normalization. Knows no model.

The arithmetic is that of sentence-transformers' modules, in float32 whatever the model computes in.
"""

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from app.engine.sentence_files import HeadModule, SentenceFiles
from app.errors import ConfigError

_TINY = 1e-9


class PoolingHead(nn.Module):
    """[rows, tokens, hidden] and a mask -> [rows, dimensions]. `is_normalized`: vectors have length 1."""

    def __init__(self, files: SentenceFiles, path: str) -> None:
        super().__init__()
        self._modes = files.pooling
        self._layers = nn.ModuleList(_layer(module, path) for module in files.head)
        self.is_normalized = bool(files.head) and files.head[-1].kind == "Normalize"

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """`mask` [rows, tokens] is True for the tokens that count."""
        hidden = hidden.float()
        vectors = torch.cat([pool(hidden, mask, mode) for mode in self._modes], dim=-1)
        for layer in self._layers:
            vectors = layer(vectors)
        return vectors


def pool(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Return one vector per row. With `weightedmean` the n-th token of a row weighs n, tokens that do not count included."""
    rows = torch.arange(len(hidden), device=hidden.device)
    if mode == "cls":
        return hidden[rows, mask.int().argmax(dim=1)]
    if mode == "lasttoken":
        positions = torch.arange(mask.shape[1], device=mask.device)
        return hidden[rows, (mask * positions).argmax(dim=1)]
    if mode == "max":
        return hidden.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(dim=1)
    weights = mask.float()
    if mode == "weightedmean":
        weights = weights * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    # Padding may hold anything: it is set to zero, since nothing times NaN is not nothing.
    total = (hidden.masked_fill(~mask.unsqueeze(-1), 0.0) * weights.unsqueeze(-1)).sum(dim=1)
    count = weights.sum(dim=1, keepdim=True).clamp(min=_TINY)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


class _Normalize(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=-1)


class _Dense(nn.Module):
    """A linear layer, its activation, and with `use_residual` what came in added to what goes out."""

    def __init__(self, settings: dict[str, object], place: str) -> None:
        super().__init__()
        num_in, num_out = int(str(settings["in_features"])), int(str(settings["out_features"]))
        self.linear = nn.Linear(num_in, num_out, bias=bool(settings.get("bias", True)))
        self.activation = _activation(str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")), place)
        self.use_residual = bool(settings.get("use_residual"))
        self.residual = nn.Linear(num_in, num_out, bias=False) if self.use_residual and num_in != num_out else None

    def forward(self, vectors: Tensor) -> Tensor:
        result: Tensor = self.activation(self.linear(vectors))
        if not self.use_residual:
            return result
        return result + (vectors if self.residual is None else self.residual(vectors))


def _activation(name: str, place: str) -> nn.Module:
    """Only torch's own layers: any other name would run the repository's code."""
    found = getattr(nn, name.rpartition(".")[2], None)
    if not name.startswith("torch.nn.") or not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(place, f"a Dense layer with the activation {name[:100]!r}", "a layer of torch.nn")
    return found()


def _layer(module: HeadModule, path: str) -> nn.Module:
    place = f"{path}.NAME"
    if module.kind == "Normalize":
        return _Normalize()
    try:
        if module.kind == "Dense":
            layer: nn.Module = _Dense(dict(module.settings), place)
        else:
            layer = nn.ModuleDict({"norm": nn.LayerNorm(int(module.settings["dimension"]))})
        assert module.weights is not None  # the reader has seen to it
        if module.weights.suffix == ".safetensors":
            weights = load_file(module.weights)
        else:
            weights = torch.load(module.weights, map_location="cpu", weights_only=True)
        layer.load_state_dict(weights)
    except ConfigError:
        raise
    except Exception as error:  # whatever the libraries underneath raise for broken files
        text = " ".join(str(error).split())[:300]
        raise ConfigError(place, f"a {module.kind} layer that can not be loaded ({text})", "intact files") from error
    return layer["norm"] if isinstance(layer, nn.ModuleDict) else layer
