"""Owns torch.compile as an option. Knows no runner: it prepares a model before one is chosen."""

import time
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from app.engine import attention
from app.errors import ConfigError


def compile_model(model: PreTrainedModel, path: str) -> float:
    """Compile a model's forward for shapes of any size, and run it once; return the seconds that took.

    Raise ConfigError under the JSON path `path` if this machine or this model can not: torch.compile needs a C++ compiler on a
    CPU, Triton on a GPU, and modelling code that it can read.
    """
    # Attention looks up the batch that is under way, which no compiler can see through: it stays as it is, between the parts.
    opaque: Any = torch.compiler.disable(attention.paged_attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(attention.NAME, opaque)
    start = time.monotonic()
    model.compile(dynamic=True)
    try:
        _run_once(model)
    except Exception as error:  # compilers fail in every way there is
        text = " ".join(str(error).split())
        short = text if len(text) <= 300 else text[:300] + "..."
        raise ConfigError(
            f"{path}.COMPILE",
            f"true, which fails for this model on this machine ({type(error).__name__}: {short})",
            "false, or what torch.compile needs: a C++ compiler on a CPU, Triton on a GPU",
        ) from error
    return time.monotonic() - start


@torch.inference_mode()
def _run_once(model: PreTrainedModel) -> None:
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    inputs: dict[str, Any] = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    model(**inputs, use_cache=False)
