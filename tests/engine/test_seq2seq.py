"""Encoder-decoder models in batches: whatever runs beside a sequence, its text is `generate`'s."""

import asyncio
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from app.engine.engine import EngineThread
from app.engine.generation import decoder_start_ids, merged_generation_config
from app.engine.hybrid import HybridRunner
from app.engine.paged import UnsuitableModelError
from app.engine.sampler import BatchSampler
from app.engine.scheduler import ScheduledSequence, Scheduler
from app.engine.seq2seq import MAX_ENCODER_TOKENS, Seq2SeqRunner, _groups, verify_seq2seq
from app.engine.sequence import FinishReason, SamplingParams, Sequence
from app.engine.sequential import SequentialRunner
from tests.support.tiny import EOS, VOCAB_SIZE, tiny_model

KINDS = ["t5", "mt5", "bart", "mbart", "marian", "pegasus", "m2m_100", "blenderbot", "blenderbot_small"]
MAX_TOKENS = 24


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (1, 5, 17, 60, 18, 4)]


def verified(model: PreTrainedModel) -> tuple[Seq2SeqRunner, SequentialRunner, list[int]]:
    config = merged_generation_config(model, {}, "GENERATE_CONFIG")
    start_ids = decoder_start_ids(model, config, "GENERATE_CONFIG")
    assert start_ids is not None
    return verify_seq2seq(model, config, start_ids), SequentialRunner(model, config), start_ids


class Served:
    def __init__(self, kind: str, max_num_seqs: int = 8) -> None:
        # Another seed where the text would be the same whatever is read.
        self.model = tiny_model(kind, seed=int(kind == "blenderbot_small"))
        self.runner, sequential, self.start_ids = verified(self.model)
        self.engine = EngineThread(
            HybridRunner(self.runner, sequential),
            BatchSampler(),
            Scheduler(max_num_seqs=max_num_seqs, max_num_batched_tokens=64, chunked_prefill=False),
            decoder_start_ids=self.start_ids,
        )

    async def run(self, prompt: list[int], **params: Any) -> list[int]:
        wanted = {"max_tokens": MAX_TOKENS, "stop_token_ids": frozenset({EOS}), **params}
        token_ids: list[int] = []
        async for output in self.engine.submit(tuple(prompt), SamplingParams(**wanted)):
            assert output.finish_reason is not FinishReason.ERROR, output.error
            token_ids += output.token_ids
        return token_ids

    def expected(self, prompt: list[int], max_tokens: int = MAX_TOKENS) -> list[int]:
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            options = {"max_new_tokens": max_tokens, "do_sample": False, "forced_eos_token_id": None}
            output = self.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return output[0, len(self.start_ids) :].tolist()

    async def idle(self) -> None:
        for _ in range(200):
            if not self.runner._states:
                break
            await asyncio.sleep(0.01)
        assert self.runner._states == {} and self.runner._rows.num_rows == 0 and self.runner._rows._own == []
        self.engine.stop()


@pytest.mark.parametrize("kind", KINDS)
async def test_greedy_equals_generate_with_all_requests_at_once(kind: str) -> None:
    """More requests than rows, of different lengths, and neighbours that leave in between."""
    served = Served(kind, max_num_seqs=4)
    kept = [asyncio.ensure_future(served.run(prompt)) for prompt in prompts() * 2]
    for turn in range(4):
        stream = served.engine.submit(tuple(prompts()[turn]), SamplingParams(max_tokens=400))
        if turn % 2:
            await anext(stream)
        stream.close()
    outputs = await asyncio.gather(*kept)
    assert outputs == [served.expected(prompt) for prompt in prompts()] * 2
    assert len({tuple(ids) for ids in outputs}) > 1, "the prompts must matter"
    await served.idle()


async def test_rows_share_one_forward_of_the_decoder() -> None:
    served = Served("t5")
    counts: list[int] = []
    decode = served.runner._decode
    served.runner._decode = lambda sequences: (counts.append(len(sequences)), decode(sequences))[1]  # type: ignore[func-returns-value]
    outputs = await asyncio.gather(*(served.run(prompt, stop_token_ids=frozenset()) for prompt in prompts()))
    assert all(len(ids) == MAX_TOKENS for ids in outputs)
    assert max(counts) == len(prompts()) and len(counts) <= MAX_TOKENS + len(prompts())
    await served.idle()


async def test_seeded_rows_repeat_alone_and_among_neighbours() -> None:
    served = Served("bart")
    alone = await served.run(prompts()[2], temperature=1.0, seed=5)
    outputs = await asyncio.gather(
        *(served.run(prompts()[index % 4], temperature=1.2, seed=index, top_p=0.9) for index in range(7)),
        served.run(prompts()[2], temperature=1.0, seed=5),
    )
    assert outputs[-1] == alone
    await served.idle()


async def test_beams_run_beside() -> None:
    served = Served("bart")
    beams, *others = await asyncio.gather(
        served.run(prompts()[1], num_beams=3), *(served.run(prompt) for prompt in prompts()[2:5])
    )
    assert others == [served.expected(prompt) for prompt in prompts()[2:5]]
    ids = torch.tensor([prompts()[1]])
    options = {"max_new_tokens": MAX_TOKENS, "num_beams": 3, "do_sample": False, "forced_eos_token_id": None}
    assert beams == served.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, 1:].tolist()
    await served.idle()


@pytest.fixture(scope="module", params=["t5", "bart", "m2m_100"])
def pair(request: pytest.FixtureRequest) -> tuple[Seq2SeqRunner, SequentialRunner, list[int]]:
    return verified(tiny_model(request.param))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_order_of_coming_and_going(pair: tuple[Seq2SeqRunner, SequentialRunner, list[int]], data: st.DataObject) -> None:
    """At each step some run, some wait, one may leave, one may have lost what was computed; the logits are always its own."""
    runner, alone, start_ids = pair
    sequences: dict[int, Sequence] = {}
    number = 0
    try:
        for _ in range(data.draw(st.integers(1, 12))):
            for length in data.draw(st.lists(st.integers(1, 40), max_size=2)):
                ids = [(7 * number + index) % VOCAB_SIZE for index in range(length)]
                sequences[number] = Sequence(number, ids, SamplingParams(max_tokens=64), decoder_start_ids=start_ids)
                number += 1
            chosen = [seq for seq in sequences.values() if data.draw(st.booleans())]
            if chosen:
                batch = [ScheduledSequence(seq, seq.num_new_tokens) for seq in data.draw(st.permutations(chosen))]
                logits = runner.forward(batch).logits
                torch.testing.assert_close(logits, alone.forward(batch).logits, rtol=1e-3, atol=1e-3)
                assert torch.equal(runner.forward(batch).logits, logits), "a step may be repeated"
                for scheduled in batch:
                    scheduled.seq.num_computed_tokens = scheduled.seq.num_tokens
                    scheduled.seq.token_ids.append(data.draw(st.integers(3, VOCAB_SIZE - 1)))
            for seq_id in list(sequences):
                if data.draw(st.integers(0, 5)) == 0:
                    for one in (runner, alone):
                        one.release(seq_id)
                    if data.draw(st.booleans()):  # it goes on, and is computed anew
                        sequences[seq_id].num_computed_tokens = 0
                    else:
                        del sequences[seq_id]
            assert {state.row for state in runner._states.values()} == set(range(runner._rows.num_rows))
    finally:
        for seq_id in range(number):
            for one in (runner, alone):
                one.release(seq_id)
    assert runner._rows.num_rows == 0


def test_columns_that_nobody_needs_are_dropped() -> None:
    """A sequence that always comes in while another one runs must not make rows longer and longer."""
    runner, _, start_ids = verified(tiny_model("t5"))
    running: list[Sequence] = []
    for number in range(60):
        running.append(Sequence(number, [5, 6, 7], SamplingParams(max_tokens=64), decoder_start_ids=start_ids))
        if len(running) > 4:
            runner.release(running.pop(0).seq_id)
        runner.forward([ScheduledSequence(seq, seq.num_new_tokens) for seq in running])
        for seq in running:
            seq.num_computed_tokens = seq.num_tokens
            seq.token_ids.append(9)
        assert runner._rows.num_columns <= 1.5 * max(runner._rows.lengths) + 16
    assert runner._rows._own[0][0].shape[2] <= 64


def test_what_is_not_finite_stays_in_its_row() -> None:
    runner, alone, start_ids = verified(tiny_model("bart"))
    broken, other = (Sequence(n, [5, 6, 7, 8 + n], SamplingParams(max_tokens=9), decoder_start_ids=start_ids) for n in (0, 1))
    runner.forward([ScheduledSequence(seq, seq.num_new_tokens) for seq in (broken, other)])
    with torch.inference_mode():
        for pair in (*runner._rows._own, *runner._rows._cross):
            for tensor in pair:
                tensor[runner._states[0].row] = torch.nan
    for seq in (broken, other):
        seq.num_computed_tokens = 1
        seq.token_ids.append(9)
    batch = [ScheduledSequence(broken, 1), ScheduledSequence(other, 1)]
    logits = runner.forward(batch).logits
    assert not logits[0].isfinite().any()
    alone.forward([ScheduledSequence(other, 2)])
    expected = alone.forward([ScheduledSequence(other, 1)]).logits
    torch.testing.assert_close(logits[1:], expected, rtol=1e-3, atol=1e-4)
    # Whoever gets the row next finds nothing in it.
    runner.release(0)
    again = Sequence(2, [5, 6, 7, 8], SamplingParams(max_tokens=9), decoder_start_ids=start_ids)
    assert runner.forward([ScheduledSequence(again, 1)]).logits.isfinite().all()
    again.num_computed_tokens = 1
    again.token_ids.append(9)
    assert runner.forward([ScheduledSequence(again, 1)]).logits.isfinite().all()


def test_texts_are_read_together_if_that_pads_little() -> None:
    def sequences(*lengths: int) -> list[Sequence]:
        return [
            Sequence(number, [5] * length, SamplingParams(max_tokens=9), decoder_start_ids=[0])
            for number, length in enumerate(lengths)
        ]

    groups = [[len(seq.encoder_ids or ()) for seq in group] for group in _groups(sequences(400, 10, 12, 11, 500))]
    assert groups == [[10, 11, 12], [400, 500]]
    assert [len(group) for group in _groups(sequences(*[MAX_ENCODER_TOKENS] * 2))] == [1, 1]
    long = sequences(10, 10)
    long[0].token_ids.append(7)
    assert [len(group) for group in _groups(long)] == [1, 1]


def test_a_model_that_a_batch_would_change_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("bart")
    original = model.model.decoder.layers[0].forward

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return original(hidden * (1.1 if hidden.shape[0] > 1 else 1.0), *args, **kwargs)

    monkeypatch.setattr(model.model.decoder.layers[0], "forward", forward)
    with pytest.raises(UnsuitableModelError, match="differ"):
        verified(model)
