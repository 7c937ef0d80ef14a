"""The sampler against transformers' own logits warpers and against arithmetic."""

import collections

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from app.engine import draw
from app.engine.draw import TOP_K_WITHOUT_SORT
from app.engine.sampler import PROMPT_LOGPROBS_SLICE, BatchSampler, NotFiniteError
from app.engine.sequence import SamplingParams, Sequence


def sequence(prompt: list[int] | None = None, generated: list[int] | None = None, **params: object) -> Sequence:
    seq = Sequence(0, prompt or [1, 2, 3], SamplingParams(max_tokens=100, **params))
    seq.token_ids += generated or []
    return seq


def sample_one(logits: torch.Tensor, seq: Sequence) -> int:
    (result,) = BatchSampler().sample(logits.unsqueeze(0), [seq])
    assert not isinstance(result, Exception)
    return result.token_ids[0]


def support(logits: torch.Tensor, seq: Sequence, draws: int = 400) -> collections.Counter[int]:
    return collections.Counter(sample_one(logits, seq) for _ in range(draws))


def test_temperature_zero_is_the_best_token_whatever_else_is_set() -> None:
    logits = torch.randn(50)
    seq = sequence(temperature=0.0, top_p=0.1, top_k=3, seed=1)
    assert {sample_one(logits, seq) for _ in range(20)} == {int(logits.argmax())}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.floats(0.3, 2.0),
    st.sampled_from([0, 1, 2, 5, 40, TOP_K_WITHOUT_SORT + 1]),
    st.sampled_from([1.0, 0.95, 0.5, 0.1]),
    st.sampled_from([0.0, 0.05, 0.3]),
)
def test_filters_keep_what_transformers_keeps(seed: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.randn(1, 400, generator=torch.Generator().manual_seed(seed)) * 3
    warped = TemperatureLogitsWarper(temperature)(torch.tensor([[1]]), logits.clone())
    if top_k:
        warped = TopKLogitsWarper(top_k)(torch.tensor([[1]]), warped)
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(torch.tensor([[1]]), warped)
    if min_p:
        warped = MinPLogitsWarper(min_p)(torch.tensor([[1]]), warped)
    allowed = {index for index, value in enumerate(warped[0].tolist()) if value > -float("inf")}
    seq = sequence(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    drawn = {sample_one(logits[0], seq) for _ in range(30)}
    assert drawn <= allowed


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    counts = support(logits, sequence(temperature=1.0, seed=3), draws=8000)
    assert [counts[token] / 8000 for token in range(4)] == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.02)


def test_a_small_top_k_is_drawn_in_the_same_proportions_as_with_a_sort() -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    short = support(logits, sequence(temperature=1.0, top_k=5, seed=1), draws=3000)
    kept = logits.topk(5)
    expected = kept.values.softmax(-1)
    for token, share in zip(kept.indices.tolist(), expected.tolist(), strict=True):
        assert short[token] / 3000 == pytest.approx(share, abs=0.04)
    assert len(short) == 5


@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
@pytest.mark.parametrize(
    "params",
    [{"top_p": 0.9}, {"top_p": 0.2}, {"min_p": 0.1}, {"top_p": 0.7, "min_p": 0.02}, {"top_k": 500, "top_p": 0.8}],
    ids=str,
)
def test_a_list_of_the_best_tokens_gives_what_a_sort_gives(
    monkeypatch: pytest.MonkeyPatch, spread: float, params: dict[str, float]
) -> None:
    logits = torch.randn(8, 3_000, generator=torch.Generator().manual_seed(4)) * spread

    def drawn() -> list[list[int]]:
        rows = [sequence(temperature=1.0, seed=seed, **params) for seed in range(8)]
        return [result.token_ids for _ in range(25) for result in BatchSampler().sample(logits, rows)]

    with_list = drawn()
    monkeypatch.setattr(draw, "_holds_all", lambda best, *_: torch.zeros(best.shape[0], dtype=torch.bool))
    assert drawn() == with_list


def test_a_vocabulary_is_sorted_only_for_rows_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = torch.Tensor.sort
    monkeypatch.setattr(
        torch.Tensor, "sort", lambda tensor, **options: (sizes.append(len(tensor)), original(tensor, **options))[1]
    )
    sharp, flat = torch.randn(3_000) * 8, torch.randn(3_000) * 0.01
    rows = [sequence(temperature=1.0, top_p=0.9, seed=seed) for seed in range(5)]
    BatchSampler().sample(torch.stack([sharp, sharp, sharp, sharp, sharp]), rows)
    assert sizes == []
    BatchSampler().sample(torch.stack([sharp, flat, sharp, flat, sharp]), rows)
    assert sizes == [2]


def test_rows_of_one_batch_keep_their_own_parameters_and_random_numbers() -> None:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(2))

    def rows() -> list[Sequence]:
        return [
            sequence(temperature=1.0, seed=1),
            sequence(temperature=0.0),
            sequence(temperature=0.7, top_k=4, seed=2),
            sequence(temperature=1.5, top_p=0.5, min_p=0.01, seed=3),
        ]

    together = [result.token_ids for result in BatchSampler().sample(logits, rows())]
    alone = [[sample_one(logits[index], seq)] for index, seq in enumerate(rows())]
    assert together == alone


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_is_transformers(penalty: float) -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(1))
    seq = sequence([1, 2, 3], [4, 5, 4], repetition_penalty=penalty)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seq.token_ids]), logits.clone().unsqueeze(0))
    assert sample_one(logits, seq) == int(expected.argmax())
    scores = logits.clone().unsqueeze(0)
    BatchSampler()._process(scores, 0, seq)
    assert torch.allclose(scores, expected)


@pytest.mark.parametrize("temperature", [0.0, 1e-4, 1.0])
@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e-30])
def test_the_least_repetition_penalty_stays_finite(penalty: float, temperature: float) -> None:
    """The best of the tokens seen wins by far; a division that leaves float32 would look like a broken model."""
    logits = torch.tensor([5.0, 4.0, 0.0, -torch.inf, -3.0])
    assert sample_one(logits, sequence([1, 2, 3, 4], repetition_penalty=penalty, temperature=temperature)) == 1


def test_frequency_and_presence_penalty_count_generation_tokens_only() -> None:
    seq = sequence([7, 7, 7], [4, 5, 4], frequency_penalty=0.5, presence_penalty=0.25)
    scores = torch.zeros(1, 10)
    BatchSampler()._process(scores, 0, seq)
    assert scores[0].tolist() == [0, 0, 0, 0, -1.25, -0.75, 0, 0, 0, 0]


def test_a_tiny_temperature_is_greedy() -> None:
    logits = torch.tensor([1.0, 9.0, 3.0])
    assert {sample_one(logits, sequence(temperature=temperature)) for temperature in (1e-40, 1e-6, 1e-4)} == {1}


def test_a_forced_end_wins_over_min_tokens() -> None:
    def factory(seq: Sequence) -> list[object]:
        return [lambda input_ids, scores: torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([3]), 0.0)]

    seq = sequence(min_tokens=5, stop_token_ids=frozenset({3}))
    (result,) = BatchSampler(factory).sample(torch.randn(1, 10), [seq])
    assert result.token_ids == [3]


def test_long_prompts_are_scored_in_slices() -> None:
    logits = torch.randn(PROMPT_LOGPROBS_SLICE * 2 + 3, 20)
    seq = Sequence(0, [5] * len(logits), SamplingParams(max_tokens=1, prompt_logprobs=0))
    entries = BatchSampler().prompt_logprobs(seq, logits)
    expected = logits.log_softmax(-1)[:-1, 5].tolist()
    assert entries[0] is None
    assert [entry.logprob for entry in entries[1:]] == pytest.approx(expected)


def test_penalties_see_each_new_token() -> None:
    seq = sequence([1], frequency_penalty=2.0)
    logits = torch.tensor([0.0, 1.0, 0.9, 0.8])
    drawn = []
    for _ in range(6):
        drawn.append(sample_one(logits, seq))
        seq.token_ids.append(drawn[-1])
    assert drawn[:4] == [1, 2, 3, 0]
    assert sorted(drawn[4:]) == [1, 2]


def test_logit_bias_and_min_tokens() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert sample_one(logits, sequence(logit_bias={0: 100.0})) == 0
    assert sample_one(logits, sequence(logit_bias={3: -100.0})) == 2
    assert sample_one(logits, sequence(min_tokens=1, stop_token_ids=frozenset({3}))) == 2
    assert sample_one(logits, sequence(None, [0], min_tokens=1, stop_token_ids=frozenset({3}))) == 3


def test_a_row_without_finite_logits_fails_alone() -> None:
    logits = torch.randn(3, 20)
    logits[1] = torch.nan
    results = BatchSampler().sample(logits, [sequence(temperature=1.0), sequence(), sequence()])
    assert isinstance(results[1], NotFiniteError)
    assert not isinstance(results[0], Exception)
    assert not isinstance(results[2], Exception)
    assert results[2].token_ids == [int(logits[2].argmax())]


def test_a_processor_that_raises_fails_its_row_alone() -> None:
    def factory(seq: Sequence) -> list[object]:
        def processor(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if seq.params.top_k == 9:
                raise ValueError("no")
            return scores

        return [processor]

    logits = torch.randn(2, 20)
    results = BatchSampler(factory).sample(logits, [sequence(top_k=9), sequence()])
    assert isinstance(results[0], ValueError)
    assert results[1].token_ids == [int(logits[1].argmax())]


def test_logprobs_come_from_the_raw_logits() -> None:
    logits = torch.randn(20)
    seq = sequence(temperature=0.0, logit_bias={4: 100.0}, logprobs=2)
    (result,) = BatchSampler().sample(logits.unsqueeze(0), [seq])
    expected = logits.log_softmax(-1)
    (entry,) = result.logprobs
    assert entry.token_id == 4
    assert entry.logprob == pytest.approx(expected[4].item())
    assert [token for token, _ in entry.top] == logits.topk(2).indices.tolist()


def test_half_precision_logits_are_sampled_in_float32() -> None:
    logits = torch.randn(1, 20).to(torch.bfloat16)
    (result,) = BatchSampler().sample(logits, [sequence(logprobs=0)])
    assert result.logprobs[0].logprob == pytest.approx(logits.float().log_softmax(-1).max().item())
