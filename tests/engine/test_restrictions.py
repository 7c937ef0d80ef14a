"""Which tokens a request forbids, row by row: nothing else of a batch changes."""

import pytest
import torch

from app.engine.sampler import BatchSampler
from app.engine.sequence import NothingAllowedError, SamplingParams, Sequence


def sequence(generated: list[int] | None = None, **params: object) -> Sequence:
    seq = Sequence(0, [7, 8, 9], SamplingParams(max_tokens=100, **params))
    seq.token_ids += generated or []
    return seq


def sampled(logits: torch.Tensor, *sequences: Sequence) -> list[int]:
    results = BatchSampler().sample(logits.expand(len(sequences), -1), list(sequences))
    assert not any(isinstance(result, Exception) for result in results), results
    return [result.token_ids[0] for result in results]  # type: ignore[union-attr]  # seen above


LOGITS = torch.arange(20.0)


def test_only_allowed_tokens_come_and_neighbours_are_left_alone() -> None:
    allowed, plain = sequence(allowed_token_ids=(3, 5)), sequence()
    assert sampled(LOGITS, allowed, plain, allowed) == [5, 19, 5]
    warm = sequence(allowed_token_ids=(3, 5), temperature=50.0)
    assert {sampled(LOGITS, warm)[0] for _ in range(40)} == {3, 5}


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        ([], 18),  # 19 is a word by itself
        ([4], 18),
        ([3, 4], 17),  # 18 would complete a word
        ([4, 3], 18),
        ([3, 4, 0], 18),
    ],
)
def test_bad_words_are_not_completed(generated: list[int], expected: int) -> None:
    assert sampled(LOGITS, sequence(generated, bad_words_ids=((19,), (3, 4, 18)))) == [expected]


def test_the_prompt_is_no_part_of_a_bad_word() -> None:
    assert sampled(LOGITS, sequence(bad_words_ids=((9, 19),))) == [19]
    assert sampled(LOGITS, sequence([9], bad_words_ids=((9, 19),))) == [18]


def test_nothing_left_is_an_error_of_this_row_only() -> None:
    results = BatchSampler().sample(LOGITS.expand(2, -1), [sequence(allowed_token_ids=(4,), bad_words_ids=((4,),)), sequence()])
    assert isinstance(results[0], NothingAllowedError)
    assert not isinstance(results[1], Exception) and results[1].token_ids == [19]


def test_what_the_configuration_dictates_comes_first() -> None:
    assert sampled(LOGITS, sequence(allowed_token_ids=(3,), num_forced_tokens=1)) == [19]
    assert sampled(LOGITS, sequence([1], allowed_token_ids=(3,), num_forced_tokens=1)) == [3]
