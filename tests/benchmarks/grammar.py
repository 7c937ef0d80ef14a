"""What grammars cost: compiling, masks, a step of 32 streams with and without. `python -m tests.benchmarks.grammar`.

A vocabulary of the size of Qwen3's, made on the spot; medians. No model runs: steps are the sampler's part on random logits.
"""

import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import psutil
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from app.engine.sampler import BatchSampler
from app.engine.sequence import SamplingParams, Sequence
from app.text.constraint import Constraint
from app.text.grammar import GrammarCompiler
from app.text.tokenizer import Tokenizer
from tests.support.schemas import SCHEMAS

VOCAB_SIZE = 151_936
ROWS = 32
ROUNDS = 30


def large_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rng = random.Random(0)
    letters = "etaoinshrdlu0123456789ETA" + '"{}[],:' + "\u0120"
    tokens = dict.fromkeys(["</s>", *alphabet])
    while len(tokens) < VOCAB_SIZE:
        tokens["".join(rng.choices(letters, k=rng.randint(2, 8)))] = None
    backend = Backend(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


def milliseconds(function: Callable[[], object], rounds: int = ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> None:
    tokenizer = large_tokenizer()
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE, frozenset({0}))
    memory = psutil.Process().memory_info().rss
    print(f"table of tokens, once: {milliseconds(lambda: compiler.marker('x'), 1):.0f} ms, ", end="")
    print(f"{(psutil.Process().memory_info().rss - memory) / 2**20:.0f} MB")

    memory = psutil.Process().memory_info().rss
    times, grammars = [], []
    for schema in SCHEMAS:
        start = time.perf_counter()
        grammars.append(compiler.compile_here(Constraint("json_schema", schema, "p")))
        times.append((time.perf_counter() - start) * 1e3)
    grown = (psutil.Process().memory_info().rss - memory) / len(grammars) / 1000
    print(
        f"compile {len(times)} schemas: median {statistics.median(times):.1f} ms"
        f", slowest {max(times):.1f} ms, {grown:.0f} kB each"
    )

    grammar = compiler.compile_here(Constraint("json_object", None, "p"))
    print(f"start of a matcher: {milliseconds(grammar.start):.3f} ms")
    matchers = [grammar.start() for _ in range(ROWS)]
    rng = random.Random(1)
    masks = np.zeros((ROWS, grammar.mask_words), np.int32)
    fills, accepts = [], []
    for _ in range(60):
        start = time.perf_counter()
        grammar.fill(matchers, masks)
        fills.append((time.perf_counter() - start) * 1e3)
        bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
        chosen = [int(rng.choice(np.flatnonzero(row))) for row in bits]
        start = time.perf_counter()
        for index, (matcher, token) in enumerate(zip(matchers, chosen, strict=True)):
            if token == 0 or matcher.is_complete:
                matchers[index] = grammar.start()
            else:
                matcher.accept(token)
        accepts.append((time.perf_counter() - start) * 1e3)
    print(f"masks of {ROWS} rows: median {statistics.median(fills):.2f} ms, slowest {max(fills):.2f} ms; ", end="")
    print(f"accepting {ROWS} tokens: {statistics.median(accepts):.2f} ms")

    logits = torch.randn(ROWS, VOCAB_SIZE)
    for temperature in (0.0, 1.0):
        plain = [Sequence(i, [5], SamplingParams(max_tokens=9, temperature=temperature)) for i in range(ROWS)]
        held = [Sequence(i, [5], SamplingParams(max_tokens=9, temperature=temperature, grammar=grammar)) for i in range(ROWS)]
        sampler = BatchSampler()
        without = milliseconds(partial(sampler.sample, logits, plain))
        with_grammar = milliseconds(partial(sampler.sample, logits, held))
        print(
            f"sampling {ROWS} rows at temperature {temperature}: {without:.1f} ms without, {with_grammar:.1f} ms with a grammar"
        )


if __name__ == "__main__":
    main()
