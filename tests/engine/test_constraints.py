"""Owns the tests of what the engine does with grammars: masks, commits, ends. The grammars are plain Python."""

from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.grammar import GrammarError
from app.engine.kv_cache import BlockLedger
from app.engine.sampler import BatchSampler
from app.engine.scheduler import Scheduler
from app.engine.sequence import FinishReason, SamplingParams, Sequence, StepOutput
from app.engine.step import SequenceFailedError, Stepper
from tests.support.fakes import FakeRunner
from tests.support.tiny import EOS, VOCAB_SIZE

WORDS = (VOCAB_SIZE + 31) // 32


class ListGrammar:
    """Allows the texts of a list, as token ids. It counts what is asked of it."""

    mask_words = WORDS

    def __init__(self, *texts: SequenceOf[int], fails_at: int | None = None) -> None:
        self.texts = [tuple(text) for text in texts]
        self.fails_at = fails_at
        self.num_filled = 0
        self.num_accepted = 0

    def start(self) -> "ListMatcher":
        return ListMatcher(self)

    def fill(self, matchers: SequenceOf[Any], masks: np.ndarray) -> list[Exception | None]:
        assert masks.shape == (len(matchers), WORDS) and masks.dtype == np.int32
        self.num_filled += 1
        masks[:] = -1  # what was there before must not matter
        errors: list[Exception | None] = []
        for row, matcher in enumerate(matchers):
            bits = np.zeros(32 * WORDS, np.uint8)
            bits[list(matcher.next_ids())] = 1
            masks[row] = np.packbits(bits, bitorder="little").view(np.int32)
            failing = matcher.grammar.fails_at == len(matcher.seen)
            errors.append(GrammarError("too complex") if failing else None)
        return errors


class ListMatcher:
    def __init__(self, grammar: ListGrammar) -> None:
        self.grammar = grammar
        self.seen: tuple[int, ...] = ()

    def next_ids(self) -> set[int]:
        end = len(self.seen)
        return {text[end] for text in self.grammar.texts if text[:end] == self.seen and len(text) > end}

    def accept(self, token_id: int) -> None:
        if token_id not in self.next_ids():
            raise GrammarError(f"{token_id} is not allowed")
        self.grammar.num_accepted += 1
        self.seen += (token_id,)

    @property
    def is_accepting(self) -> bool:
        return self.seen in self.grammar.texts

    @property
    def is_complete(self) -> bool:
        return self.is_accepting and not self.next_ids()


def sequence(seq_id: int = 0, **params: Any) -> Sequence:
    defaults = {"max_tokens": 20, "stop_token_ids": frozenset({EOS})}
    return Sequence(seq_id, [5, 6, 7], SamplingParams(**defaults | params))


def sample(logits: torch.Tensor, *sequences: Sequence) -> list[Any]:
    return BatchSampler().sample(logits, sequences)


class TestMasks:
    def test_only_what_is_allowed_is_sampled(self) -> None:
        logits = torch.zeros(1, VOCAB_SIZE)
        grammar = ListGrammar([10], [20], [255], [258])
        drawn = {sample(logits, sequence(grammar=grammar, temperature=1.0, seed=seed))[0].token_ids[0] for seed in range(60)}
        assert drawn == {10, 20, 255, 258}

    @pytest.mark.parametrize(
        "params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}, {"temperature": 2.0, "top_p": 0.5}]
    )
    def test_the_mask_comes_before_the_filters(self, params: dict[str, Any]) -> None:
        """The best tokens are forbidden, so a filter that came first would leave nothing."""
        logits = torch.arange(VOCAB_SIZE, dtype=torch.float32).unsqueeze(0)
        assert sample(logits, sequence(grammar=ListGrammar([3]), **params))[0].token_ids == [3]

    def test_rows_of_one_batch_keep_their_own(self) -> None:
        logits = torch.randn(4, VOCAB_SIZE)
        rows = [
            sequence(grammar=ListGrammar([9])),
            sequence(),
            sequence(grammar=ListGrammar([11])),
            sequence(temperature=1.0, seed=1),
        ]
        before = logits.clone()
        tokens = [result.token_ids for result in sample(logits, *rows)]
        assert tokens[0] == [9] and tokens[2] == [11]
        alone = [
            sample(before[index : index + 1], row)[0].token_ids
            for index, row in ((1, sequence()), (3, sequence(temperature=1.0, seed=1)))
        ]
        assert [tokens[1], tokens[3]] == alone
        assert torch.equal(logits, before)

    def test_logprobs_stay_raw(self) -> None:
        logits = torch.randn(1, VOCAB_SIZE)
        (result,) = sample(logits, sequence(grammar=ListGrammar([9]), logprobs=2))
        raw = logits.log_softmax(-1)[0]
        assert result.logprobs[0].logprob == pytest.approx(raw[9].item())
        assert [token for token, _ in result.logprobs[0].top] == raw.topk(2).indices.tolist()

    def test_a_bias_can_not_reach_what_is_forbidden(self) -> None:
        logits = torch.randn(1, VOCAB_SIZE)
        seq = sequence(grammar=ListGrammar([9], [10]), logit_bias={50: 100.0, 9: -100.0, 10: -100.0})
        assert sample(logits, seq)[0].token_ids[0] in (9, 10)

    def test_what_ends_a_sequence_is_possible_where_the_text_is_complete_only(self) -> None:
        grammar = ListGrammar([9, 10], [9])
        logits = torch.zeros(1, VOCAB_SIZE)
        logits[0, EOS], logits[0, 77] = 20, 30
        seq = sequence(grammar=grammar, stop_token_ids=frozenset({EOS, 77}))
        assert sample(logits, seq)[0].token_ids == [9]
        seq.matcher.accept(9)
        assert sample(logits, seq)[0].token_ids == [77]

    def test_a_mask_narrower_than_the_logits_forbids_the_rest(self) -> None:
        logits = torch.arange(VOCAB_SIZE + 100, dtype=torch.float32).unsqueeze(0)
        assert sample(logits, sequence(grammar=ListGrammar([9], [30])))[0].token_ids == [30]

    def test_the_grammar_wins_over_what_the_models_own_settings_suppress(self) -> None:
        def factory(seq: Sequence) -> list[Any]:
            return [lambda ids, scores: scores.index_fill(1, torch.tensor([9, 10]), -torch.inf)]

        logits = torch.zeros(2, VOCAB_SIZE)
        logits[:, 10] = 1
        rows = [sequence(grammar=ListGrammar([9], [10])), sequence(grammar=ListGrammar([9], [30]))]
        results = BatchSampler(factory).sample(logits, rows)
        assert [result.token_ids for result in results] == [[10], [30]]

    def test_one_that_fails_costs_its_neighbours_nothing(self) -> None:
        logits = torch.randn(3, VOCAB_SIZE)
        rows = [
            sequence(grammar=ListGrammar([9])),
            sequence(grammar=ListGrammar([9], fails_at=0)),
            sequence(grammar=ListGrammar()),
        ]
        first, second, third = sample(logits, *rows)
        assert first.token_ids == [9]
        assert isinstance(second, GrammarError) and isinstance(third, GrammarError)

    def test_nan_is_not_hidden(self) -> None:
        (result,) = sample(torch.full((1, VOCAB_SIZE), torch.nan), sequence(grammar=ListGrammar([9])))
        assert isinstance(result, Exception)


def run(stepper: Stepper, scheduler: Scheduler, *sequences: Sequence, steps: int = 200) -> dict[int, list[StepOutput]]:
    outputs: dict[int, list[StepOutput]] = {seq.seq_id: [] for seq in sequences}
    for seq in sequences:
        scheduler.add(seq)
    for _ in range(steps):
        if not scheduler.has_work:
            break
        for output in stepper.step():
            outputs[output.seq_id].append(output)
    assert not scheduler.has_work
    return outputs


def stepper_of(runner: FakeRunner, ledger: BlockLedger | None = None) -> tuple[Stepper, Scheduler]:
    scheduler = Scheduler(max_num_seqs=8, max_num_batched_tokens=64, chunked_prefill=True, ledger=ledger)
    return Stepper(runner, BatchSampler(), scheduler), scheduler


class TestSteps:
    def test_a_complete_text_ends_the_sequence_without_a_further_token(self) -> None:
        stepper, scheduler = stepper_of(FakeRunner())
        outputs = run(stepper, scheduler, sequence(grammar=ListGrammar([9, 10, 11])))[0]
        assert [token for output in outputs for token in output.token_ids] == [9, 10, 11]
        assert outputs[-1].finish_reason is FinishReason.STOP

    def test_a_text_that_may_go_on_ends_with_a_stop_token(self) -> None:
        stepper, scheduler = stepper_of(FakeRunner(answer=""))  # the model wants to end at once
        outputs = run(stepper, scheduler, sequence(grammar=ListGrammar([9], [9, 10])))[0]
        assert [token for output in outputs for token in output.token_ids] == [9, EOS]
        assert outputs[-1].finish_reason is FinishReason.STOP

    def test_max_tokens_in_the_middle_is_length_and_at_the_end_stop(self) -> None:
        stepper, scheduler = stepper_of(FakeRunner())
        text = [9, 10, 11]
        short, exact = (
            sequence(0, grammar=ListGrammar(text), max_tokens=2),
            sequence(1, grammar=ListGrammar(text), max_tokens=3),
        )
        outputs = run(stepper, scheduler, short, exact)
        assert outputs[0][-1].finish_reason is FinishReason.LENGTH
        assert outputs[1][-1].finish_reason is FinishReason.STOP

    def test_tokens_that_the_configuration_dictates_are_not_the_grammars(self) -> None:
        stepper, scheduler = stepper_of(FakeRunner())
        seq = sequence(grammar=ListGrammar([9]), num_forced_tokens=1)
        outputs = run(stepper, scheduler, seq)[0]
        tokens = [token for output in outputs for token in output.token_ids]
        assert len(tokens) == 2 and tokens[1] == 9

    def test_a_step_that_is_repeated_moves_no_matcher(self) -> None:
        failures = iter([None, RuntimeError("once"), None, None, RuntimeError("twice"), RuntimeError("twice")])
        runner = FakeRunner(raises=lambda seq: next(failures, None))
        stepper, scheduler = stepper_of(runner)
        grammar = ListGrammar([9, 10, 11, 12])
        outputs = run(stepper, scheduler, sequence(0, grammar=grammar), sequence(1, grammar=grammar))
        for result in outputs.values():
            assert [token for output in result for token in output.token_ids] == [9, 10, 11, 12]
        assert grammar.num_accepted == 8

    def test_sampling_that_is_repeated_moves_no_matcher(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = BatchSampler.sample
        calls = []

        def flaky(self: BatchSampler, logits: torch.Tensor, sequences: SequenceOf[Sequence], best: Any = None) -> Any:
            results = original(self, logits, sequences, best)
            calls.append(len(sequences))
            if len(sequences) > 1:
                raise RuntimeError("after the masks were made")
            return results

        monkeypatch.setattr(BatchSampler, "sample", flaky)
        stepper, scheduler = stepper_of(FakeRunner())
        outputs = run(stepper, scheduler, *(sequence(index, grammar=ListGrammar([9, 10, 11])) for index in range(3)))
        assert 3 in calls
        for result in outputs.values():
            assert [token for output in result for token in output.token_ids] == [9, 10, 11]

    def test_preemption_leaves_the_matcher_where_it_was(self) -> None:
        stepper, scheduler = stepper_of(FakeRunner(), BlockLedger(6, 4, prefix_cache=False))
        texts = [[20 * index + position for position in range(5, 15)] for index in range(4)]
        outputs = run(stepper, scheduler, *(sequence(index, grammar=ListGrammar(text)) for index, text in enumerate(texts)))
        assert scheduler.num_preemptions > 0
        for index, text in enumerate(texts):
            assert [token for output in outputs[index] for token in output.token_ids] == text

    def test_a_matcher_that_fails_ends_its_sequence_only(self) -> None:
        stepper, scheduler = stepper_of(FakeRunner())
        bad, good = sequence(0, grammar=ListGrammar([9, 10, 11], fails_at=1)), sequence(1, grammar=ListGrammar([9, 10, 11]))
        outputs = run(stepper, scheduler, bad, good)
        assert outputs[0][-1].finish_reason is FinishReason.ERROR
        assert isinstance(outputs[0][-1].error, GrammarError) and str(outputs[0][-1].error) == "too complex"
        assert outputs[1][-1].finish_reason is FinishReason.STOP

    def test_a_matcher_that_raises_ends_its_sequence_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(self: ListMatcher, token_id: int) -> None:
            raise ZeroDivisionError

        stepper, scheduler = stepper_of(FakeRunner())
        bad, good = sequence(0, grammar=ListGrammar([9, 10])), sequence(1)
        monkeypatch.setattr(ListMatcher, "accept", broken)
        outputs = run(stepper, scheduler, bad, good)
        assert isinstance(outputs[0][-1].error, SequenceFailedError)
        assert outputs[1][-1].finish_reason is FinishReason.LENGTH

    @settings(max_examples=40, deadline=None)
    @given(
        texts=st.lists(st.lists(st.integers(3, 40), min_size=1, max_size=6), min_size=1, max_size=6),
        seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=5),
        blocks=st.integers(4, 12),
    )
    def test_every_text_is_one_of_the_grammars(self, texts: list[list[int]], seeds: list[int], blocks: int) -> None:
        stepper, scheduler = stepper_of(FakeRunner(), BlockLedger(blocks, 4, prefix_cache=True))
        sequences = [
            sequence(index, grammar=ListGrammar(*texts), temperature=1.0, seed=seed) for index, seed in enumerate(seeds)
        ]
        for result in run(stepper, scheduler, *sequences).values():
            tokens = [token for output in result for token in output.token_ids if token != EOS]
            assert tokens in texts
            assert result[-1].finish_reason is FinishReason.STOP


def test_a_batch_without_grammars_does_nothing_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = BatchSampler()
    monkeypatch.setattr(sampler, "_constraints", None)
    logits = torch.randn(2, VOCAB_SIZE)
    assert [len(result.token_ids) for result in sampler.sample(logits, [sequence(), sequence(temperature=1.0)])] == [1, 1]
