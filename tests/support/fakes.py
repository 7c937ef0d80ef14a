"""A deterministic runner that fails on demand, and a loader that serves it."""

import functools
import struct
import threading
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig

from app.config import ModelSettings, ModelType
from app.engine.defaults import GenerationDefaults
from app.engine.engine import EngineThread
from app.engine.generation import ProcessorFactory
from app.engine.kv_cache import BlockLedger
from app.engine.pooling import PoolingThread
from app.engine.pooling_job import PoolingInput
from app.engine.runner import ForwardOutput
from app.engine.sampler import BatchSampler
from app.engine.scheduler import ScheduledSequence, Scheduler
from app.engine.sentence_files import SentenceFiles
from app.engine.sequence import Sequence
from app.loading import Loaded, LoadedEmbedder
from app.text.chat import ChatTemplate
from app.text.decisions import DecisionPrompts
from app.text.grammar import GrammarCompiler
from app.text.infill import find_infill
from app.text.sentences import SentenceEncoder
from app.text.tokenizer import Tokenizer
from tests.support.tiny import EOS, VOCAB_SIZE, byte_tokenizer, tiny_model


def ids_of(text: str) -> list[int]:
    return byte_tokenizer().encode(text)


@dataclass
class FakeRunner:
    """Says `answer` (a text, then EOS) for every sequence; with `answer` None it counts: token = 3 + length % 200, for ever.

    `raises` maps a predicate on the sequence to an error that `forward` then raises for the whole batch; `nan_for` gives the
    sequences whose logits are NaN; `gate`, when set to an unset Event, blocks every step until it is set. `num_steps`,
    `batch_sizes` and `released` record what happened.
    """

    answer: str | None = None
    raises: Callable[[Sequence], Exception | None] = lambda seq: None
    nan_for: Callable[[Sequence], bool] = lambda seq: False
    gate: threading.Event | None = None
    supports_chunked_prefill: bool = True
    vocab_size: int = VOCAB_SIZE
    name: str = "fake"
    num_steps: int = 0
    batch_sizes: list[int] = field(default_factory=list)
    released: list[int] = field(default_factory=list)

    def forward(self, batch: SequenceOf[ScheduledSequence]) -> ForwardOutput:
        if self.gate is not None:
            self.gate.wait(timeout=30)
        self.num_steps += 1
        self.batch_sizes.append(len(batch))
        for scheduled in batch:
            error = self.raises(scheduled.seq)
            if error is not None:
                raise error
        rows = []
        prompt_logits = {}
        for scheduled in batch:
            seq = scheduled.seq
            end = seq.num_computed_tokens + scheduled.num_new_tokens
            if seq.params.prompt_logprobs is not None and seq.num_generation_tokens == 0:
                prompt_logits[seq.seq_id] = torch.stack(
                    [self._logits(seq, position + 1) for position in range(seq.num_computed_tokens, end)]
                )
            if scheduled.completes:
                rows += [self._logits(seq, end)] * seq.num_rows
        logits = torch.stack(rows) if rows else torch.empty(0, self.vocab_size)
        return ForwardOutput(logits, prompt_logits)

    def release(self, seq_id: int) -> None:
        self.released.append(seq_id)

    def next_token(self, seq: Sequence, length: int) -> int:
        if self.answer is None:
            return 3 + length % 200
        ids = [*ids_of(self.answer), EOS]
        return ids[min(max(length - seq.num_decoder_prompt_tokens, 0), len(ids) - 1)]

    def _logits(self, seq: Sequence, length: int) -> torch.Tensor:
        if self.nan_for(seq):
            return torch.full((self.vocab_size,), torch.nan)
        logits = torch.linspace(-1.0, 0.0, self.vocab_size)
        logits[self.next_token(seq, length)] = 12.0
        return logits


class SteppedRunner(FakeRunner):
    """Makes a step only when the test allows one with `permits.release()`."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = threading.Semaphore(0)

    def forward(self, batch: SequenceOf[ScheduledSequence]) -> ForwardOutput:
        assert self.permits.acquire(timeout=30), "the test allows no more steps"
        return super().forward(batch)


def fake_engine(
    runner: FakeRunner, *, max_num_seqs: int = 8, max_num_batched_tokens: int = 256, ledger: BlockLedger | None = None
) -> EngineThread:
    """Return an engine; with a `ledger`, sequences take blocks as in a paged one, which the fake runner does not look at."""
    scheduler = Scheduler(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        chunked_prefill=runner.supports_chunked_prefill,
        ledger=ledger,
    )
    return EngineThread(runner, BatchSampler(_processors(), for_all=False), scheduler)


@functools.cache
def _processors() -> ProcessorFactory:
    """What makes transformers' logits processors for the sequences that ask for them; they look at no weights."""
    return ProcessorFactory(tiny_model("gpt2"), GenerationConfig())


@dataclass
class FakeLoader:
    """A loader for the registry: serves `runner` under every name; `gate` blocks loading until it is set; `error` fails it."""

    runner: FakeRunner = field(default_factory=FakeRunner)
    gate: threading.Event | None = None
    error: Exception | None = None
    context_length: int = 512
    response_template: dict[str, object] | None = None
    chat_template: str | None = None
    chats: bool = True
    fim_template: str | None = None
    append_eos: bool = False
    defaults: GenerationDefaults = field(default_factory=lambda: GenerationDefaults(eos_token_ids=frozenset({EOS})))
    ledger: BlockLedger | None = None
    engines: list[EngineThread] = field(default_factory=list)

    def __call__(self, name: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]) -> Loaded:
        on_progress(0.25)
        if self.gate is not None:
            self.gate.wait(timeout=30)
        if self.error is not None:
            raise self.error
        hf = byte_tokenizer(append_eos=self.append_eos)
        hf.response_template = self.response_template
        hf.chat_template = (self.chat_template or hf.chat_template) if self.chats else None
        tokenizer = Tokenizer(hf)
        engine = fake_engine(self.runner, max_num_seqs=settings.max_num_seqs, ledger=self.ledger)
        self.engines.append(engine)
        is_seq2seq = settings.type is ModelType.SEQ2SEQ
        chat = ChatTemplate(tokenizer, tool_format=settings.tool_format, reasoning_format=settings.reasoning_format)
        return Loaded(
            engine=engine,
            tokenizer=tokenizer,
            chat=chat,
            decisions=DecisionPrompts(tokenizer, chat, is_encoder_decoder=is_seq2seq),
            grammars=GrammarCompiler(tokenizer, VOCAB_SIZE, self.defaults.eos_token_ids, starts_text=is_seq2seq),
            infill=find_infill(tokenizer, self.fim_template, is_encoder_decoder=is_seq2seq, path="MODELS.fake"),
            defaults=self.defaults,
            is_encoder_decoder=is_seq2seq,
            num_decoder_start_tokens=int(is_seq2seq),
            context_length=self.context_length,
            vocab_size=VOCAB_SIZE,
            runner=self.runner.name,
            device="cpu",
            dtype="float32",
        )


def vector_of(one: PoolingInput) -> bytes:
    """Three numbers that tell inputs apart: length, first id, and where the model's prompt ends."""
    numbers = (len(one.ids), one.ids[0], one.num_prompt_tokens + 0.1)[: one.dimensions]
    return struct.pack(f"<{len(numbers)}f", *numbers)


@dataclass
class FakePoolingRunner:
    """Gives `vector_of` every input; `raises`, `nan_for` and `gate` are those of FakeRunner."""

    raises: Callable[[PoolingInput], Exception | None] = lambda one: None
    nan_for: Callable[[PoolingInput], bool] = lambda one: False
    gate: threading.Event | None = None
    can_pad: bool = True
    name: str = "fake"
    num_calls: int = 0
    batches: list[list[PoolingInput]] = field(default_factory=list)

    def forward(self, batch: SequenceOf[PoolingInput]) -> list[bytes | None]:
        self.num_calls += 1
        self.batches.append(list(batch))
        if self.gate is not None:
            self.gate.wait(timeout=30)
        for one in batch:
            error = self.raises(one)
            if error is not None:
                raise error
        return [None if self.nan_for(one) else vector_of(one) for one in batch]


@dataclass
class FakeEmbeddingLoader:
    """Serves `runner` under every name, as an embedding model with three dimensions."""

    runner: FakePoolingRunner = field(default_factory=FakePoolingRunner)
    gate: threading.Event | None = None
    context_length: int = 64
    files: SentenceFiles = field(default_factory=lambda: SentenceFiles(dimensions=3))
    append_eos: bool = False

    def __call__(self, name: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]) -> LoadedEmbedder:
        if self.gate is not None:
            self.gate.wait(timeout=30)
        tokenizer = Tokenizer(byte_tokenizer(append_eos=self.append_eos))
        return LoadedEmbedder(
            engine=PoolingThread(self.runner, max_num_seqs=settings.max_num_seqs),
            tokenizer=tokenizer,
            chat=ChatTemplate(tokenizer),
            sentences=SentenceEncoder(
                tokenizer=tokenizer,
                do_lower_case=self.files.do_lower_case,
                prompts=self.files.prompts,
                default_prompt_name=self.files.default_prompt_name,
            ),
            context_length=self.context_length,
            vocab_size=VOCAB_SIZE,
            runner=self.runner.name,
            device="cpu",
            dtype="float32",
            num_dimensions=3,
            files=self.files,
        )
