"""Owns the descriptions of models with their engines running. Plain data: knows no torch, so that everyone can hold it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.engine.defaults import GenerationDefaults
from app.engine.engine import Engine
from app.engine.pooling_job import PoolingEngine

if TYPE_CHECKING:
    from app.engine.sentence_files import SentenceFiles


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEncoder:
    """A model that makes vectors of `num_dimensions`; `context_length` is the longest input in tokens."""

    engine: PoolingEngine
    context_length: int
    vocab_size: int
    runner: str
    device: str
    dtype: str
    num_dimensions: int
    files: "SentenceFiles"
