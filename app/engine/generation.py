"""Owns the reading of transformers' generation options: which become our defaults, which run as transformers' own logits
processors, which are refused by name. Knows no requests."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

from app.engine.defaults import GenerationDefaults
from app.engine.ngrams import NgramBlocker
from app.engine.sequence import SamplingParams, Sequence
from app.errors import ConfigError

# Options that the engine itself honours.
_OURS = frozenset(
    {
        "bos_token_id", "decoder_start_token_id", "do_sample", "early_stopping", "eos_token_id", "length_penalty", "max_length",
        "max_new_tokens", "min_new_tokens", "min_p", "num_beams", "pad_token_id", "repetition_penalty", "temperature", "top_k",
        "top_p",
    }
)  # fmt: skip
# Options that run through transformers' logits processors, per sequence, with the values at which they do nothing.
_PROCESSORS: dict[str, tuple[Any, ...]] = {
    "min_length": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "bad_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": (),
    "renormalize_logits": (False,),
}
# Options that would change the answer and that the engine does not have, with the values at which they do nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_h": (),
    "guidance_scale": (1.0,),
    "watermarking_config": (),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "stop_strings": (),
    "max_time": (),
    "token_healing": (False,),
    "num_return_sequences": (1,),
    "use_mtp": (False,),
}

# Options of `SamplingParams` that say what the configuration's say.
_OWN_OPTIONS = ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "forced_bos_token_id", "forced_eos_token_id")

Processors = list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]


def merged_generation_config(model: PreTrainedModel, generate_config: Mapping[str, Any], path: str) -> GenerationConfig:
    """Return the model's generation config with GENERATE_CONFIG over it; raise ConfigError for what can not be honoured.

    `path` is the JSON path of GENERATE_CONFIG. Options that only steer how generate() itself computes (`use_cache`,
    `output_scores`, ...) are left alone in the model's own file and refused in ours, where somebody meant something by them.
    """
    supported = sorted({*_OURS, *_PROCESSORS})
    for name in generate_config:
        if name not in _OURS and name not in _PROCESSORS and name not in _REFUSED:
            raise ConfigError(f"{path}.{name}", "an option that tfoai does not have", f"one of {', '.join(supported)}")
    merged = copy.deepcopy(model.generation_config)
    try:
        merged.update(**generate_config)
    except ValueError as error:
        raise ConfigError(path, f"a combination that transformers refuses ({error})", "valid generation options") from error
    # How generate() would hold its own cache is no business of a server that has its own.
    merged.cache_implementation = None
    merged.use_cache = True
    if merged.do_sample and (merged.num_beams or 1) > 1:
        raise ConfigError(path, "do_sample with num_beams above 1", "one of the two (tfoai has no beam sampling)")
    for name, neutral in _REFUSED.items():
        if _is_set(merged, name, neutral):
            value = getattr(merged, name)
            place = f"{path}.{name}" if name in generate_config else path
            origin = "" if name in generate_config else f" {name} from the model's generation_config.json:"
            expected = f"{name} {neutral[0]!r}" if neutral else f"{name} null"
            raise ConfigError(place, f"{origin} {value!r}, which tfoai can not honour", f"{expected} (tfoai has no {name})")
    return merged


def _is_set(config: GenerationConfig, name: str, neutral: tuple[Any, ...]) -> bool:
    value = getattr(config, name, None)
    return value is not None and value not in neutral


def generation_defaults(config: GenerationConfig, *, is_encoder_decoder: bool = False) -> GenerationDefaults:
    def value(name: str, default: Any) -> Any:
        found = getattr(config, name, None)
        return default if found is None else found

    eos = value("eos_token_id", [])
    return GenerationDefaults(
        eos_token_ids=frozenset([eos] if isinstance(eos, int) else eos),
        do_sample=value("do_sample", False),
        # A temperature of 0 in a config file means greedy decoding, whatever do_sample says.
        temperature=value("temperature", 1.0),
        top_p=value("top_p", 1.0),
        top_k=value("top_k", 0),
        min_p=value("min_p", 0.0),
        repetition_penalty=value("repetition_penalty", 1.0),
        max_new_tokens=config.max_new_tokens,
        max_length=config.max_length,
        min_new_tokens=value("min_new_tokens", 0),
        num_beams=value("num_beams", 1),
        length_penalty=value("length_penalty", 1.0),
        early_stopping=value("early_stopping", False),
        # transformers forces it on a decoder that has seen one token only.
        num_forced_tokens=int(is_encoder_decoder and config.forced_bos_token_id is not None),
    )


def decoder_start_ids(model: PreTrainedModel, config: GenerationConfig, path: str) -> list[int] | None:
    """Return what an encoder-decoder model's decoder starts from; None for a causal model."""
    if not model.config.is_encoder_decoder:
        return None
    start = config.decoder_start_token_id if config.decoder_start_token_id is not None else config.bos_token_id
    if start is None:
        raise ConfigError(path, "a Seq2Seq model without decoder_start_token_id", "decoder_start_token_id in GENERATE_CONFIG")
    return [start] if isinstance(start, int) else list(start)


class ProcessorFactory:
    """Makes transformers' own logits processors for one sequence, exactly those that `generate` would use.

    `needed` is False when the model's options ask for none: then only beam search calls it, and sequences with their own.
    """

    def __init__(self, model: PreTrainedModel, config: GenerationConfig) -> None:
        # Any, because the helpers that generate() is made of have no annotations to check against.
        self._model = cast(Any, model)
        self._config = config
        self.needed = any(_is_set(config, name, neutral) for name, neutral in _PROCESSORS.items())

    def check(self, vocab_size: int, start_ids: list[int] | None, path: str) -> None:
        """Run every processor once, so that a wrong value stops the start and not each request; raise ConfigError."""
        try:
            seq = Sequence(0, [0], SamplingParams(max_tokens=4), decoder_start_ids=start_ids)
            scores = torch.zeros(1, vocab_size, device=self._model.device)
            for processor in self(seq):
                scores = processor(torch.tensor([seq.token_ids], device=scores.device), scores)
        except Exception as error:
            raise ConfigError(path, f"options that do not work ({type(error).__name__}: {error})", "values that do") from error

    def __call__(self, seq: Sequence) -> Processors:
        config = copy.copy(self._config)
        # The warpers (temperature, top_k, ...) are the sampler's; so are the penalties, except under beam search.
        config.do_sample = False
        config.max_length = seq.num_decoder_prompt_tokens + seq.params.max_tokens
        config.max_new_tokens = None
        for name in _OWN_OPTIONS:
            if getattr(seq.params, name) is not None:
                setattr(config, name, getattr(seq.params, name))
        beams = seq.is_beam_search
        config.repetition_penalty = seq.params.repetition_penalty if beams else None
        config.min_new_tokens = seq.params.min_tokens if beams else None
        if not beams and not self.needed and not seq.params.has_own_options:
            return []
        is_held = seq.params.grammar is not None or seq.params.allowed_token_ids is not None
        if is_held and seq.params.forced_eos_token_id is None:
            config.forced_eos_token_id = None  # it would end a text that is not complete, or is not allowed
        device = self._model.device
        self._model._prepare_special_tokens(config, device=device, batch_size=1)
        encoder_input_ids = torch.tensor([seq.prompt_ids], device=device)
        processors = self._model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=seq.num_decoder_prompt_tokens,
            encoder_input_ids=encoder_input_ids,
            device=str(device),
            model_kwargs={},
        )
        if beams:
            return list(processors)
        return [
            NgramBlocker(seq, one.ngram_size) if isinstance(one, NoRepeatNGramLogitsProcessor) else one for one in processors
        ]
