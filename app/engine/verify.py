"""Owns trying out, when a model is loaded, whether paged batches give what plain forwards give. Knows no requests."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.engine.attention import Attention
from app.engine.gather import GatherAttention
from app.engine.paged import PagedRunner, UnsuitableModelError, check_suitable
from app.engine.scheduler import ScheduledSequence
from app.engine.sequence import SamplingParams, Sequence
from app.engine.varlen import varlen_attention

# Largest difference of logits, as a share of the largest logit, that rounding can explain.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 8e-2}
_LENGTHS = (3, 19, 40)
# What is computed in each step of each sequence: chunks of a prompt beside single tokens, in every mixture.
_STEPS = ((1, 10, 17), (1, 1, 20), (1, 8, 1), (0, 0, 2))


def verify(model: PreTrainedModel) -> PagedRunner:
    """Return a runner with a small memory and the fastest attention whose logits equal plain forwards.

    Raise UnsuitableModelError, with the model as it was, if there is none.
    """
    check_suitable(model)
    before = model.config._attn_implementation
    texts = _texts(model)
    try:
        with torch.inference_mode():
            plain = [model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0] for ids in texts]
    except Exception as error:
        raise UnsuitableModelError(f"its forward fails without a cache ({type(error).__name__}: {error})") from error
    ways: list[Attention] = [GatherAttention()]
    fast = varlen_attention(model.device, model.dtype)
    if fast is not None:
        ways.insert(0, fast)
    reasons: list[str] = []
    for way in ways:
        try:
            return _verified(model, way, texts, plain)
        except UnsuitableModelError as error:
            reasons.append(str(error))
        except Exception as error:
            reasons.append(f"its forward fails in a paged batch ({type(error).__name__}: {error})")
        model.set_attn_implementation(before)
    raise UnsuitableModelError(reasons[-1])


def _texts(model: PreTrainedModel) -> list[list[int]]:
    embeddings: Any = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(embeddings.weight.shape[0], (length,), generator=generator).tolist() for length in _LENGTHS]


def _verified(model: PreTrainedModel, way: Attention, texts: list[list[int]], plain: list[Tensor]) -> PagedRunner:
    """Prefill the texts in uneven chunks beside each other's decode steps and compare all logits."""
    blocks_of = [-(-len(ids) // way.block_size) for ids in texts]
    runner = PagedRunner(model, way, sum(blocks_of) + 2)
    sequences = [Sequence(index, ids, SamplingParams(max_tokens=1, prompt_logprobs=0)) for index, ids in enumerate(texts)]
    # From the end to the beginning, so that the blocks of a sequence are not in order.
    blocks = iter(range(runner.num_blocks - 1, -1, -1))
    for seq, count in zip(sequences, blocks_of, strict=True):
        seq.block_table = [next(blocks) for _ in range(count)]
    for sizes in _STEPS:
        batch = [ScheduledSequence(seq, size) for seq, size in zip(sequences, sizes, strict=True) if size]
        output = runner.forward(batch)
        for scheduled in batch:
            _compare(scheduled, output.prompt_logits[scheduled.seq.seq_id], plain[scheduled.seq.seq_id])
            scheduled.seq.num_computed_tokens += scheduled.num_new_tokens
    return runner


def _compare(scheduled: ScheduledSequence, got: Tensor, plain: Tensor) -> None:
    start = scheduled.seq.num_computed_tokens
    expected = plain[start : start + scheduled.num_new_tokens].float()
    difference = (got.float() - expected).abs().max() / expected.abs().max()
    tolerance = TOLERANCE.get(plain.dtype, 1e-1)
    if not difference <= tolerance:
        raise UnsuitableModelError(f"its logits differ by {difference:.2%} from a plain forward")
