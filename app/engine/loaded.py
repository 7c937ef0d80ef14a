"""Owns the description of a model with its engine running. Plain data: knows no torch, so that everyone can hold it."""

from dataclasses import dataclass

from app.engine.defaults import GenerationDefaults
from app.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """`context_length` is in tokens; `runner` names how it computes ("paged", "sequential"); `dtype` is torch's name for it."""

    engine: Engine
    defaults: GenerationDefaults
    is_encoder_decoder: bool
    num_decoder_start_tokens: int
    context_length: int
    vocab_size: int
    runner: str
    device: str
    dtype: str
