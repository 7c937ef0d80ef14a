"""Owns running the largest step there can be, to see how much device memory it takes beside weights and KV memory."""

import torch
from transformers import PreTrainedModel

from app.engine.paged import PagedRunner
from app.engine.sampler import BatchSampler
from app.engine.scheduler import ScheduledSequence
from app.engine.sequence import SamplingParams, Sequence


def largest_step_bytes(
    model: PreTrainedModel, verified: PagedRunner, *, max_num_batched_tokens: int, max_num_seqs: int, vocab_size: int
) -> int:
    """Return the most bytes that a step needs on a CUDA device; 0 on others, whose memory is the whole machine's.

    `verified` tells the way to attend and what a layer stores; KV memory for the one step is made and dropped here.
    """
    if model.device.type != "cuda":
        return 0
    block_size = verified.attention.block_size
    sequences = _sequences(max_num_batched_tokens, max_num_seqs, vocab_size, block_size)
    num_blocks = sum(len(seq.block_table) for seq in sequences)
    runner = PagedRunner(model, verified.attention, num_blocks, verified.memory)
    batch = [ScheduledSequence(seq, seq.num_tokens) for seq in sequences]
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    output = runner.forward(batch)
    BatchSampler().sample(output.logits, sequences)
    torch.cuda.synchronize(model.device)
    return torch.cuda.max_memory_allocated(model.device) - before


def _sequences(num_tokens: int, num_seqs: int, vocab_size: int, block_size: int) -> list[Sequence]:
    """Return sequences of `num_tokens` tokens in all, which sample in the way that takes most memory."""
    num_seqs = min(num_seqs, num_tokens)
    params = SamplingParams(max_tokens=1, temperature=1.0, top_p=0.999, seed=0, logprobs=20)
    sequences: list[Sequence] = []
    blocks = 0
    for index in range(num_seqs):
        length = num_tokens // num_seqs + (index < num_tokens % num_seqs)
        seq = Sequence(index, [(index + place) % vocab_size for place in range(length)], params)
        width = -(-length // block_size)
        seq.block_table = list(range(blocks, blocks + width))
        blocks += width
        sequences.append(seq)
    return sequences
