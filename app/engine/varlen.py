"""Owns attention over blocks with torch's flash kernels on CUDA, which read the blocks where they are. Knows no model.

`torch.nn.attention.varlen` (torch 2.13): packed queries, block tables, half precision only; no soft-capping and no sinks.
What a build of it takes as block size depends on the kernels in it (FlashAttention 2: multiples of 256), so that is tried.
"""

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from app.engine.attention import AttentionOptions, Part

BLOCK_SIZES = (16, 64, 256)
_DTYPES = (torch.float16, torch.bfloat16)


class VarlenBatch:
    """A PagedBatch for the flash kernels: blocks are [block size, KV heads, size], and nothing behind a sequence's end is read.

    All tensors are on the device, int32 except `slots` [tokens], the place of each new token: block x block size + offset.
    `cu_seq_q` [sequences + 1]: where each sequence's new tokens begin; `lengths` [sequences]: its context, the new tokens
    included; `block_table` [sequences, blocks]; `max_new` and `max_length`: the largest numbers of them, on the host.
    """

    def __init__(
        self,
        slots: Tensor,
        cu_seq_q: Tensor,
        lengths: Tensor,
        block_table: Tensor,
        *,
        max_new: int,
        max_length: int,
        block_size: int,
    ) -> None:
        self._slots = slots
        self._cu_seq_q = cu_seq_q
        self._lengths = lengths
        # With a block table only its shape is looked at; the kernel takes the lengths from `seqused_k`.
        self._cu_seq_k = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        self._block_table = block_table
        self._max_new = max_new
        self._max_length = max_length
        self._block_size = block_size

    def block_shape(self, heads: int, size: int) -> tuple[int, int, int]:
        return self._block_size, heads, size

    def write(self, memory: Tensor, new: Tensor) -> None:
        memory.flatten(0, 1).index_copy_(0, self._slots, new)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
        if options.softcap is not None or options.sinks is not None:
            raise NotImplementedError("the flash kernels know neither soft-capping nor sinks")
        # transformers counts the token itself in its window, the kernels only those to its left.
        left = -1 if options.sliding_window is None else options.sliding_window - 1
        output = varlen_attn(
            query.contiguous(),
            keys,
            values,
            self._cu_seq_q,
            self._cu_seq_k,
            self._max_new,
            self._max_length,
            scale=options.scaling,
            window_size=(left, 0),
            enable_gqa=query.shape[1] != keys.shape[2],
            seqused_k=self._lengths,
            block_table=self._block_table,
        )
        assert isinstance(output, Tensor)  # a pair only where log-sum-exp was asked for
        return output


class VarlenAttention:
    """Attention by the flash kernels, for a block size that they take."""

    name = "varlen"

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size

    def batch(self, parts: SequenceOf[Part], device: torch.device) -> VarlenBatch:
        def tensor(values: list[int] | list[list[int]], dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.tensor(values, dtype=dtype).pin_memory().to(device, non_blocking=True)

        starts, slots = [0], []
        for part in parts:
            starts.append(starts[-1] + part.num_new)
            slots += part.slots(self.block_size)
        width = max(len(part.block_table) for part in parts)
        return VarlenBatch(
            tensor(slots, torch.int64),
            tensor(starts),
            tensor([part.length for part in parts]),
            tensor([part.block_table + [0] * (width - len(part.block_table)) for part in parts]),
            max_new=max(part.num_new for part in parts),
            max_length=max(part.length for part in parts),
            block_size=self.block_size,
        )


def varlen_attention(device: torch.device, dtype: torch.dtype) -> VarlenAttention | None:
    """Return the flash kernels with the smallest block size that works on this device; None if none does."""
    if device.type != "cuda" or dtype not in _DTYPES:
        return None
    for block_size in BLOCK_SIZES:
        attention = VarlenAttention(block_size)
        try:
            if _works(attention, device, dtype):
                return attention
        except (RuntimeError, NotImplementedError, ValueError):
            continue  # the kernels say no to this block size
    return None


@torch.inference_mode()
def _works(attention: VarlenAttention, device: torch.device, dtype: torch.dtype) -> bool:
    """Compare one sequence in scattered blocks with torch's plain attention."""
    heads, kv_heads, size, num_computed, num_new = 4, 2, 64, 2 * attention.block_size + 3, 5
    length = num_computed + num_new
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    blocks = [4, 1, 3]
    query = random(num_new, heads, size)
    keys, values = random(5, attention.block_size, kv_heads, size), random(5, attention.block_size, kv_heads, size)
    output = attention.batch([Part(blocks, num_computed, num_new)], device).attend(query, keys, values, AttentionOptions())
    key, value = (memory[blocks].flatten(0, 1)[:length].transpose(0, 1).unsqueeze(0).float() for memory in (keys, values))
    position = torch.arange(length, device=device)
    expected = scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0).float(), key, value,
        attn_mask=position <= position[num_computed:, None], enable_gqa=True,
    )  # fmt: skip
    return bool(torch.allclose(output.float(), expected[0].transpose(0, 1), atol=2e-2, rtol=2e-2))
