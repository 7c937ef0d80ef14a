"""One sequence's text, tokens and counts, however the engine's outputs are put together."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.sequence import FinishReason, StepOutput, TokenLogprobs
from app.text.output import OutputOptions, OutputProcessor, TextDelta
from app.text.tokenizer import Tokenizer
from tests.support.tiny import EOS, byte_tokenizer

TOKENIZER = Tokenizer(byte_tokenizer())


def process(
    ids: list[int], sizes: list[int], stop: tuple[str, ...], finish: FinishReason
) -> tuple[list[TextDelta], OutputProcessor]:
    processor = OutputProcessor(TOKENIZER, options=OutputOptions(stop=stop), stop_token_ids=frozenset({EOS}))
    deltas: list[TextDelta] = []
    position = 0
    while not processor.is_done:
        size = sizes[len(deltas) % len(sizes)] if sizes else 1
        part = ids[position : position + size]
        position += size
        last = position >= len(ids)
        logprobs = [TokenLogprobs(token_id, -0.5, ((token_id, -0.5),)) for token_id in part]
        deltas.append(processor.process(StepOutput(0, part, finish if last else None, logprobs)))
    return deltas, processor


@settings(max_examples=1000, deadline=None)
@given(
    st.text(alphabet="ab日🎉#", max_size=20),
    st.lists(st.integers(1, 7), max_size=5),
    st.sampled_from([(), ("#",), ("ab", "日#"), ("🎉🎉",)]),
    st.booleans(),
)
def test_chunks_do_not_matter(text: str, sizes: list[int], stop: tuple[str, ...], ends: bool) -> None:
    ids = TOKENIZER.encode(text) + ([EOS] if ends else [])
    reason = FinishReason.STOP if ends else FinishReason.LENGTH
    one, processor_one = process(ids, [1], stop, reason)
    many, processor_many = process(ids, sizes, stop, reason)
    text_one, text_many = "".join(delta.text for delta in one), "".join(delta.text for delta in many)
    found = [text.find(item) for item in stop if item in text]
    assert text_one == text_many == (text[: min(found)] if found else text)
    assert processor_one.num_tokens == processor_many.num_tokens
    tokens_one = [token for delta in one for token in delta.tokens]
    assert tokens_one == [token for delta in many for token in delta.tokens]
    assert one[-1].finish_reason == many[-1].finish_reason == (FinishReason.STOP if found else reason)
    if not found:
        assert [token.token_id for token in tokens_one] == ids
        assert b"".join(token.data for token in tokens_one if token.token_id != EOS).decode() == text


def test_offsets_point_to_where_a_token_starts() -> None:
    deltas, _ = process(TOKENIZER.encode("aé🎉b"), [3], (), FinishReason.LENGTH)
    tokens = [token for delta in deltas for token in delta.tokens]
    assert [token.offset for token in tokens] == [0, 1, 1, 2, 2, 2, 2, 3]
    assert tokens[1].text == "bytes:\\xc3"


def test_a_stop_token_is_counted_and_not_shown() -> None:
    deltas, processor = process([*TOKENIZER.encode("ok"), EOS], [1], (), FinishReason.STOP)
    assert "".join(delta.text for delta in deltas) == "ok"
    assert processor.num_tokens == 3


def test_special_tokens_are_shown_on_request() -> None:
    for skip, shown in ((True, "ab"), (False, "a<s>b")):
        processor = OutputProcessor(TOKENIZER, options=OutputOptions(skip_special_tokens=skip))
        ids = [*TOKENIZER.encode("a"), 1, *TOKENIZER.encode("b")]
        assert processor.process(StepOutput(0, ids, FinishReason.LENGTH)).text == shown
