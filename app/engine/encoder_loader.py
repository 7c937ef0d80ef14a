"""Owns getting an embedding model from disk or hub onto its device and its engine running. Knows no requests and no text."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from app.config import ModelSettings
from app.engine.compiling import compile_model
from app.engine.cpus import limit_threads
from app.engine.encoder import EncoderRunner
from app.engine.linear import quicken
from app.engine.loaded import LoadedEncoder
from app.engine.loader import FALLBACK_CONTEXT_LENGTH, choose_device, from_pretrained, position_limit
from app.engine.pooling import PoolingThread
from app.engine.pooling_head import PoolingHead
from app.engine.progress import ProgressHook
from app.engine.sentence_files import SentenceFiles, read_sentence_files
from app.errors import ConfigError

logger = logging.getLogger("tfoai.engine")


def load_encoder(
    name: str, source: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]
) -> LoadedEncoder:
    """Load `source` (a path or hub id) for the served name; raise ConfigError naming the place under `path`."""
    device = choose_device(settings, path)
    limit_threads()
    start = time.monotonic()
    transformers_logging.set_verbosity_error()
    files = read_sentence_files(source, settings.model_config, path)
    with ProgressHook(name, on_progress):
        model = from_pretrained(source, settings, path, device, subfolder=files.folder)
    model.eval()
    context_length = _context_length(model, settings, files, path)
    linear = quicken(model)
    compile_seconds = compile_model(model, path) if settings.compile else None
    try:
        runner = EncoderRunner(model, PoolingHead(files, path), include_prompt=files.include_prompt)
    except ConfigError:
        raise
    except Exception as error:  # a model without hidden states, a head of another size, ...
        text = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{path}.TYPE",
            f'"{settings.type}" for a model that makes no vectors ({type(error).__name__}: {text})',
            "another TYPE",
        ) from error
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)  # the runner has asked it for vectors
    dtype = str(model.dtype).removeprefix("torch.")
    logger.info(
        "model.loaded",
        extra={
            "model": name,
            "source": settings.name,
            "device": str(model.device),
            "dtype": dtype,
            "parameters": model.num_parameters(),
            "runner": runner.name,
            "pads": runner.can_pad,
            "pooling": "+".join(files.pooling),
            "sentence_transformers_files": files.exist,
            "dimensions": runner.num_dimensions,
            "linear": linear,
            "compile_seconds": None if compile_seconds is None else round(compile_seconds, 1),
            "seconds": round(time.monotonic() - start, 2),
        },
    )
    return LoadedEncoder(
        engine=PoolingThread(runner, max_num_seqs=settings.max_num_seqs, name=f"engine-{name}"),
        context_length=context_length,
        vocab_size=embeddings.num_embeddings,
        runner=runner.name,
        device=str(model.device),
        dtype=dtype,
        num_dimensions=runner.num_dimensions,
        files=replace(files, dimensions=min(files.dimensions or runner.num_dimensions, runner.num_dimensions)),
    )


def _context_length(model: PreTrainedModel, settings: ModelSettings, files: SentenceFiles, path: str) -> int:
    """Return the longest input in tokens: MAX_MODEL_LEN, or what the model was trained with, within what it can do."""
    own = position_limit(model)
    if own is not None:
        own -= _first_position(model)
    wanted = settings.max_model_len
    if wanted is not None and own is not None and wanted > own:
        raise ConfigError(f"{path}.MAX_MODEL_LEN", str(wanted), f"at most {own}, the model's own limit")
    if wanted is not None:
        return wanted
    return min((limit for limit in (files.max_seq_length, own) if limit is not None), default=FALLBACK_CONTEXT_LENGTH)


def _first_position(model: PreTrainedModel) -> int:
    """RoBERTa and its kin count positions from behind the padding's id, and so have that many fewer of them."""
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return padding + 1
    return 0
