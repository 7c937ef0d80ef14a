"""Owns the block ledger: which blocks of KV memory belong to whom, and what they hold. Plain ints: knows no tensors.

A block is in exactly one of three places:

    free      nothing of value in it
    cached    full, its content is named by a hash, nobody uses it; the least recently used goes first when blocks run out
    owned     in the block table of one or more sequences (shared prompts)

The hash of a block chains its tokens to the hash of the block before it and, at the start, to the sequence's salt, so that
two sequences share a block only if everything up to its end is equal and they may know of each other.
"""

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable

from app.engine.sequence import Sequence


class IntegrityError(Exception):
    """The ledger's books are wrong: a bug, never a user's doing."""


class BlockLedger:
    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError("num_blocks and block_size must be at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_cache = prefix_cache
        self._free = deque(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._num_owners = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that can be given out now."""
        return len(self._free) + len(self._cached)

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences own, 0 to 1."""
        return 1 - self.num_available / self.num_blocks

    def match_prefix(self, seq: Sequence) -> int:
        """Give a sequence without blocks those that hold the beginning of its tokens already; return the number of tokens.

        At least one token is left to compute, because its logits are needed.
        """
        if not self._prefix_cache or seq.params.prompt_logprobs is not None:
            return 0
        for index in range((seq.num_tokens - 1) // self.block_size):
            block = self._block_of.get(self._hash(seq, index))
            if block is None:
                break
            self._own(block)
            seq.block_table.append(block)
        return len(seq.block_table) * self.block_size

    def num_missing(self, seq: Sequence, num_tokens: int) -> int:
        """Return how many blocks a sequence lacks to hold `num_tokens` tokens."""
        return max(0, -(-num_tokens // self.block_size) - len(seq.block_table))

    def allocate(self, seq: Sequence, num_tokens: int) -> bool:
        """Extend a sequence's block table to hold `num_tokens` tokens; False, and nothing changed, if blocks run out."""
        missing = self.num_missing(seq, num_tokens)
        if missing > self.num_available:
            return False
        for _ in range(missing):
            if self._free:
                block = self._free.popleft()
            else:
                block, _ = self._cached.popitem(last=False)
                del self._block_of[self._hash_of.pop(block)]
            self._num_owners[block] = 1
            seq.block_table.append(block)
        return True

    def commit(self, seq: Sequence) -> None:
        """Name the blocks that the sequence's computed tokens have filled, so that others can share them."""
        if not self._prefix_cache:
            return
        for index in range(seq.num_named_blocks, seq.num_computed_tokens // self.block_size):
            name = self._hash(seq, index)
            block = seq.block_table[index]
            if name not in self._block_of and block not in self._hash_of:
                self._block_of[name] = block
                self._hash_of[block] = name
            seq.num_named_blocks = index + 1

    def release(self, seq: Sequence) -> None:
        """Take a sequence's blocks back; the last ones first, so that the beginning of a prompt stays cached longest."""
        for block in reversed(seq.block_table):
            self._num_owners[block] -= 1
            if self._num_owners[block] == 0:
                if block in self._hash_of:
                    self._cached[block] = None
                else:
                    self._free.append(block)
        seq.block_table = []
        seq.num_named_blocks = 0

    def check_integrity(self, owners: Iterable[Sequence] = ()) -> None:
        """Raise IntegrityError unless free + cached + owned = total and every count is right."""
        counted = [0] * self.num_blocks
        for seq in owners:
            for block in seq.block_table:
                counted[block] += 1
        owned = sum(1 for count in counted if count)
        if counted != self._num_owners:
            raise IntegrityError("the owners of a block are miscounted")
        if len(self._free) + len(self._cached) + owned != self.num_blocks:
            raise IntegrityError(
                f"{len(self._free)} free + {len(self._cached)} cached + {owned} owned is not {self.num_blocks}"
            )
        if any(counted[block] for block in [*self._free, *self._cached]) or set(self._free) & set(self._cached):
            raise IntegrityError("a block is in two places")
        if {block: name for name, block in self._block_of.items()} != self._hash_of:
            raise IntegrityError("the names of blocks do not match")

    def _own(self, block: int) -> None:
        if self._num_owners[block] == 0:
            del self._cached[block]
        self._num_owners[block] += 1

    def _hash(self, seq: Sequence, index: int) -> bytes:
        """Return the name of a sequence's block number `index`; the sequence keeps the chain, so each is computed once.

        A cryptographic hash, because whoever could make two prompts collide would be answered from somebody else's prompt.
        """
        chain = seq.block_hashes
        while len(chain) <= index:
            start = len(chain) * self.block_size
            parent = chain[-1] if chain else hashlib.blake2b(seq.salt.encode(), digest_size=16).digest()
            tokens = array("q", seq.token_ids[start : start + self.block_size]).tobytes()
            chain.append(hashlib.blake2b(parent + tokens, digest_size=16).digest())
        return chain[index]
