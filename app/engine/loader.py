"""Owns getting a model from disk or hub onto its device, with readable errors. Knows no requests and no text."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from app.config import ModelSettings, ModelType
from app.engine.compiling import compile_model
from app.engine.cpus import helpful_threads, limit_threads
from app.engine.engine import EngineThread
from app.engine.generation import (
    ProcessorFactory,
    decoder_start_ids,
    generation_defaults,
    merged_generation_config,
)
from app.engine.hybrid import HybridRunner, attending
from app.engine.kv_cache import BlockLedger
from app.engine.linear import quicken
from app.engine.loaded import LoadedModel
from app.engine.memory import kv_cache_blocks
from app.engine.paged import PagedRunner, UnsuitableModelError
from app.engine.progress import ProgressHook
from app.engine.sampler import BatchSampler
from app.engine.scheduler import Scheduler
from app.engine.seq2seq import verify_seq2seq
from app.engine.sequential import SequentialRunner
from app.engine.verify import verify
from app.engine.warmup import largest_step_bytes
from app.errors import ConfigError

logger = logging.getLogger("tfoai.engine")

# For models that name no limit of their own (T5, recurrent models): MAX_MODEL_LEN overrides it.
FALLBACK_CONTEXT_LENGTH = 4096
# A step computes at most this many tokens, so a long prompt is the last thing a batch starts.
MAX_NUM_BATCHED_TOKENS = 2048

_CONTEXT_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length")


def load(name: str, source: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]) -> LoadedModel:
    """Load `source` (a path or hub id) for the served name; raise ConfigError naming the place under `path`."""
    device = choose_device(settings, path)
    limit_threads()
    start = time.monotonic()
    transformers_logging.set_verbosity_error()
    with ProgressHook(name, on_progress):
        model = from_pretrained(source, settings, path, device)
    model.eval()
    embeddings: Any = model.get_input_embeddings()
    generation_config = merged_generation_config(model, settings.generate_config, f"{path}.GENERATE_CONFIG")
    defaults = generation_defaults(generation_config, is_encoder_decoder=bool(model.config.is_encoder_decoder))
    start_ids = decoder_start_ids(model, generation_config, f"{path}.GENERATE_CONFIG")
    context_length = _context_length(model, settings.max_model_len, path)
    vocab_size = embeddings.weight.shape[0]
    processors = ProcessorFactory(model, generation_config)
    processors.check(vocab_size, start_ids, f"{path}.GENERATE_CONFIG")
    threads = helpful_threads(model.get_memory_footprint()) if model.device.type == "cpu" else None
    linear = quicken(model)
    compile_seconds = compile_model(model, path) if settings.compile else None
    runner, ledger = _runner(model, generation_config, settings, context_length, name, start_ids)
    if ledger is not None:
        context_length = min(context_length, ledger.num_blocks * ledger.block_size)
    engine = EngineThread(
        runner,
        BatchSampler(processors, for_all=processors.needed),
        Scheduler(
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
            chunked_prefill=runner.supports_chunked_prefill,
            ledger=ledger,
        ),
        decoder_start_ids=start_ids,
        # The number is the thread's own: a small model's engine does not slow a large one's.
        on_start=None if threads is None else partial(torch.set_num_threads, threads),
        name=f"engine-{name}",
    )
    seconds = time.monotonic() - start
    logger.info(
        "model.loaded",
        extra={
            "model": name,
            "source": settings.name,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "parameters": model.num_parameters(),
            "runner": runner.name,
            "linear": linear,
            "threads": threads,
            "compile_seconds": None if compile_seconds is None else round(compile_seconds, 1),
            "seconds": round(seconds, 2),
        },
    )
    return LoadedModel(
        engine=engine,
        defaults=defaults,
        is_encoder_decoder=start_ids is not None,
        num_decoder_start_tokens=len(start_ids or []),
        context_length=context_length,
        vocab_size=vocab_size,
        runner=runner.name,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _runner(
    model: PreTrainedModel,
    generation_config: GenerationConfig,
    settings: ModelSettings,
    context_length: int,
    name: str,
    start_ids: list[int] | None,
) -> tuple[SequentialRunner | HybridRunner, BlockLedger | None]:
    """Return the runner of batches, with the ledger of its blocks if it has some, if the model runs faithfully in batches.

    Else the sequential one.
    """
    attention = model.config._attn_implementation or "eager"
    try:
        if (generation_config.num_beams or 1) > 1:
            raise UnsuitableModelError("it decodes with beam search")
        if start_ids is not None:
            seq2seq = verify_seq2seq(model, generation_config, start_ids)
            return HybridRunner(seq2seq, SequentialRunner(model, generation_config)), None
        verified = verify(model)
    except UnsuitableModelError as reason:
        logger.info("model.sequential", extra={"model": name, "reason": f"one sequence at a time, because {reason}"})
        return SequentialRunner(model, generation_config), None
    block_size, embeddings = verified.attention.block_size, cast(Any, model.get_input_embeddings())
    num_blocks = kv_cache_blocks(
        model.device,
        verified.memory.bytes_per_block,
        max_num_seqs=settings.max_num_seqs,
        blocks_per_seq=-(-context_length // block_size),
        fraction=settings.kv_cache_memory_fraction,
        step_bytes=largest_step_bytes(
            model,
            verified,
            max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
            max_num_seqs=settings.max_num_seqs,
            vocab_size=embeddings.weight.shape[0],
        ),
    )
    runner = PagedRunner(model, verified.attention, num_blocks, verified.memory)
    runner.record_decode_steps(settings.max_num_seqs, context_length)
    # Requests may ask for beams of a model that has none by itself.
    hybrid = HybridRunner(runner, SequentialRunner(model, generation_config), partial(attending, model, attention))
    return hybrid, BlockLedger(num_blocks, block_size, prefix_cache=settings.prefix_cache)


def choose_device(settings: ModelSettings, path: str) -> str | None:
    """Return the device to move the model to; None leaves placement to accelerate's device_map."""
    wanted = settings.model_device
    if wanted is None:
        return None
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = wanted.partition(":")
    available = {
        "cpu": lambda: 1,
        "cuda": torch.cuda.device_count,
        "xpu": lambda: torch.xpu.device_count() if hasattr(torch, "xpu") else 0,
        "mps": lambda: int(torch.backends.mps.is_available()),
    }[kind]()
    if available == 0:
        raise ConfigError(
            f"{path}.MODEL_DEVICE",
            f'"{wanted}" on a machine where torch {torch.__version__} sees no {kind.upper()} device',
            'a device that is there: set MODEL_DEVICE to "cpu", or to "auto" for a GPU where there is one',
        )
    if index and int(index) >= available:
        raise ConfigError(f"{path}.MODEL_DEVICE", f'"{wanted}" on a machine with {available} {kind} device(s)', "a lower index")
    return wanted


def from_pretrained(
    source: str, settings: ModelSettings, path: str, device: str | None, *, subfolder: str = ""
) -> PreTrainedModel:
    """Return the model on its device; raise ConfigError, worded for who wrote the configuration."""
    arguments = _model_arguments(settings.model_config)
    if subfolder:
        arguments["subfolder"] = subfolder
    try:
        model: Any = _auto_class(source, settings, arguments).from_pretrained(source, **arguments)
        _check_type(model, settings, path)
        placed: PreTrainedModel = model if device is None else model.to(device)
        return placed
    except ConfigError:
        raise
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{path}.MODEL_DEVICE",
            f"too little memory on {device} ({error})",
            "a smaller model, a smaller dtype or more devices",
        ) from error
    except Exception as error:  # whatever the libraries underneath raise for a broken checkpoint
        raise _load_error(source, settings, path, error) from error


def _auto_class(source: str, settings: ModelSettings, arguments: Mapping[str, Any]) -> Any:
    if settings.type is ModelType.SEQ2SEQ:
        return AutoModelForSeq2SeqLM
    if settings.type is ModelType.CAUSAL_LM:
        return AutoModelForCausalLM
    names = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "subfolder", "code_revision")
    config = AutoConfig.from_pretrained(source, **{name: arguments[name] for name in names if name in arguments})
    # Of an encoder-decoder model, the encoder alone.
    return AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel


def _model_arguments(model_config: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(model_config)
    dtype = arguments.pop("torch_dtype", None) or arguments.pop("dtype", None)
    arguments.pop("dtype", None)
    if dtype is not None:
        arguments["dtype"] = dtype if dtype == "auto" else getattr(torch, dtype.removeprefix("torch."))
    # Pickled weights run code when they are read: only who writes `use_safetensors: false` gets them.
    arguments.setdefault("use_safetensors", True)
    if arguments.get("trust_remote_code"):
        logger.warning("model.remote_code", extra={"detail": "trust_remote_code runs the model repository's Python code"})
    return arguments


def _check_type(model: PreTrainedModel, settings: ModelSettings, path: str) -> None:
    if settings.type is ModelType.EMBEDDING:
        return
    if model.config.is_encoder_decoder != (settings.type is ModelType.SEQ2SEQ):
        right = ModelType.SEQ2SEQ if model.config.is_encoder_decoder else ModelType.CAUSAL_LM
        raise ConfigError(f"{path}.TYPE", f'"{settings.type}" for a {model.config.model_type} model', f'"{right}"')


def _load_error(source: str, settings: ModelSettings, path: str, error: Exception) -> ConfigError:
    text = " ".join(str(error).split())
    short = text if len(text) <= 300 else text[:300] + "..."
    if "Unrecognized configuration class" in text and settings.type is ModelType.EMBEDDING:
        return ConfigError(f"{path}.TYPE", f'"{settings.type}" for "{settings.name}", which has no encoder', "another TYPE")
    if "Unrecognized configuration class" in text:
        kind = "encoder-decoder" if settings.type is ModelType.SEQ2SEQ else "decoder-only"
        return ConfigError(
            f"{path}.TYPE", f'"{settings.type}" for "{settings.name}", which is no {kind} model', "the other TYPE"
        )
    if "safetensors" in text and "use_safetensors" not in settings.model_config:
        return ConfigError(
            f"{path}.NAME",
            f'"{settings.name}" without safetensors weights ({short})',
            "safetensors weights, or MODEL_CONFIG.use_safetensors false to read pickled ones",
        )
    if isinstance(error, TypeError) and "unexpected keyword argument" in text:
        return ConfigError(
            f"{path}.MODEL_CONFIG", f"an argument that the model refuses ({short})", "arguments of from_pretrained"
        )
    return ConfigError(
        f"{path}.NAME",
        f'"{settings.name}", which can not be loaded ({type(error).__name__}: {short})',
        f"a model directory, or a hub id that transformers {transformers.__version__} can reach and load",
    )


def _context_length(model: PreTrainedModel, wanted: int | None, path: str) -> int:
    own = position_limit(model)
    if wanted is not None and own is not None and wanted > own:
        raise ConfigError(f"{path}.MAX_MODEL_LEN", str(wanted), f"at most {own}, the model's own limit")
    return wanted or own or FALLBACK_CONTEXT_LENGTH


def position_limit(model: PreTrainedModel) -> int | None:
    """Return how many positions the model has, None if its configuration sets no limit."""
    text_config = model.config.get_text_config(decoder=True)
    # MPNet has such buckets too, besides embeddings of absolute positions; T5's n_positions only tells of its training.
    if hasattr(text_config, "relative_attention_num_buckets") and not hasattr(text_config, "max_position_embeddings"):
        return None
    values = (getattr(text_config, name, None) for name in _CONTEXT_LENGTH_NAMES)
    return next((value for value in values if isinstance(value, int) and value > 0), None)
