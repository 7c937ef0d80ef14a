"""Owns the tests of /v1/completions and its legacy path: prompts, answers, streams, and what is refused."""

import json
import math
import time
from typing import Any

import pytest

from app.config import ModelType
from app.engine.defaults import GenerationDefaults
from app.engine.sequence import Sequence
from tests.api.conftest import ANSWER, Serve
from tests.support.fakes import FakeLoader, FakeRunner, ids_of
from tests.support.live import MODEL, LiveServer, SlowRunner, assert_error, events_of, eventually
from tests.support.tiny import EOS, VOCAB_SIZE

# "🙂" takes four tokens; the model's EOS is counted too.
NUM_ANSWER_TOKENS = len(ids_of(ANSWER)) + 1


def completion(server: LiveServer, prompt: Any = "hello", **body: Any) -> dict[str, Any]:
    response = server.complete(prompt, **body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def texts(body: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in body["choices"]]


def streamed(server: LiveServer, prompt: Any = "hello", **body: Any) -> list[dict[str, Any]]:
    return events_of(server.complete(prompt, stream=True, **body))


def joined(chunks: list[dict[str, Any]]) -> dict[int, str]:
    result: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            result[choice["index"]] = result.get(choice["index"], "") + choice["text"]
    return result


class TestAnswer:
    def test_has_every_field_and_no_other(self, saying: LiveServer) -> None:
        before = int(time.time())
        body = completion(saying, max_tokens=50)
        assert set(body) == {"id", "object", "created", "model", "choices", "system_fingerprint", "usage"}
        assert body["id"].startswith("cmpl-") and len(body["id"]) > 20
        assert body["object"] == "text_completion"
        assert before <= body["created"] <= time.time()
        assert body["model"] == MODEL
        assert body["system_fingerprint"].startswith("fp_")
        assert body["choices"] == [{"index": 0, "text": ANSWER, "logprobs": None, "finish_reason": "stop"}]
        assert body["usage"] == {
            "prompt_tokens": 5,
            "completion_tokens": NUM_ANSWER_TOKENS,
            "total_tokens": 5 + NUM_ANSWER_TOKENS,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def test_ids_differ_and_the_fingerprint_stays(self, saying: LiveServer) -> None:
        first, second = completion(saying), completion(saying)
        assert first["id"] != second["id"]
        assert first["system_fingerprint"] == second["system_fingerprint"]

    def test_sixteen_tokens_unless_asked_otherwise(self, counting: LiveServer) -> None:
        body = completion(counting)
        assert body["usage"]["completion_tokens"] == 16
        assert body["choices"][0]["finish_reason"] == "length"

    def test_the_default_is_cut_to_what_fits(self, serve: Serve) -> None:
        body = completion(serve(FakeLoader(context_length=10)), "1234567")
        assert body["usage"]["completion_tokens"] == 3

    @pytest.mark.parametrize("max_tokens", [1, 2, 40])
    def test_max_tokens(self, counting: LiveServer, max_tokens: int) -> None:
        body = completion(counting, max_tokens=max_tokens)
        assert body["usage"]["completion_tokens"] == max_tokens
        assert body["choices"][0]["finish_reason"] == "length"

    def test_max_tokens_0_gives_an_empty_text(self, counting: LiveServer) -> None:
        body = completion(counting, max_tokens=0)
        assert body["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]
        assert body["usage"]["completion_tokens"] == 0


class TestPrompt:
    def test_the_four_forms_of_one_prompt_are_one(self, counting: LiveServer) -> None:
        ids = ids_of("hello")
        bodies = [completion(counting, prompt) for prompt in ("hello", ["hello"], ids, [ids])]
        assert len({texts(body)[0] for body in bodies}) == 1
        assert [body["usage"]["prompt_tokens"] for body in bodies] == [5] * 4

    @pytest.mark.parametrize("as_ids", [False, True])
    def test_several_prompts_keep_their_order(self, counting: LiveServer, as_ids: bool) -> None:
        prompts = ["a", "abc", "ab"]
        body = completion(counting, [ids_of(text) for text in prompts] if as_ids else prompts, echo=True, max_tokens=4)
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        alone = [texts(completion(counting, text, echo=True, max_tokens=4))[0] for text in prompts]
        assert texts(body) == alone
        assert body["usage"]["prompt_tokens"] == 6 and body["usage"]["completion_tokens"] == 12

    def test_choices_are_numbered_prompt_by_prompt(self, counting: LiveServer) -> None:
        body = completion(counting, ["one", "three"], n=3, echo=True, max_tokens=2, temperature=0)
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3, 4, 5]
        assert [text.startswith("one") for text in texts(body)] == [True] * 3 + [False] * 3
        assert [text.startswith("three") for text in texts(body)] == [False] * 3 + [True] * 3
        # Each prompt is counted once, each choice for itself.
        assert body["usage"]["prompt_tokens"] == 8 and body["usage"]["completion_tokens"] == 12

    def test_an_equal_prompt_is_another_prompt(self, counting: LiveServer) -> None:
        assert completion(counting, ["same", "same"])["usage"]["prompt_tokens"] == 8

    @pytest.mark.parametrize("prompt", ["", None])
    def test_an_empty_one_begins_a_new_document(self, counting: LiveServer, prompt: str | None) -> None:
        body = completion(counting, prompt, max_tokens=2, echo=True)
        assert body["usage"] == {
            "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "prompt_tokens_details": {"cached_tokens": 0}
        }  # fmt: skip
        # The token that stands for the beginning is no part of the text.
        assert len(texts(body)[0]) == 2

    def test_an_absent_one_is_empty(self, counting: LiveServer) -> None:
        response = counting.http.post("/v1/completions", json={"model": MODEL, "max_tokens": 1})
        assert response.json()["usage"]["prompt_tokens"] == 1

    def test_unicode_round_trips(self, counting: LiveServer) -> None:
        prompt = "zwölf 🙂 \x00 \u2028 ﷽"
        assert texts(completion(counting, prompt, echo=True, max_tokens=0)) == [prompt]

    @pytest.mark.parametrize(
        "prompt",
        [
            [],
            [[]],
            [[1], []],
            ["a", 1],
            [1, "a"],
            [1, [1]],
            ["a", ["b"]],
            [["a"]],
            [[["a"]]],
            5,
            {},
            True,
            [True],
            [None],
            [1.5],
        ],
        ids=repr,
    )
    def test_anything_else_is_refused(self, counting: LiveServer, prompt: Any) -> None:
        error = assert_error(counting.complete(prompt), 400)
        assert error["param"].startswith("prompt")

    @pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, 2**31, 2**62])
    def test_ids_must_be_the_models(self, counting: LiveServer, token_id: int) -> None:
        error = assert_error(counting.complete([5, token_id]), 400, param="prompt")
        assert str(token_id) in error["message"]
        assert_error(counting.complete([[5], [token_id]]), 400, param="prompt.[1]")
        assert completion(counting, [VOCAB_SIZE - 1, 0], max_tokens=1)["usage"]["prompt_tokens"] == 2

    def test_too_many_prompts_are_refused(self, counting: LiveServer) -> None:
        assert_error(counting.complete(["a"] * 65), 400, param="prompt")


class TestEchoAndLogprobs:
    def test_echo_puts_the_prompt_first(self, saying: LiveServer) -> None:
        assert texts(completion(saying, echo=True, max_tokens=50)) == ["hello" + ANSWER]
        assert texts(completion(saying, ids_of("hello"), echo=True, max_tokens=50)) == ["hello" + ANSWER]

    @pytest.mark.parametrize("num", [0, 1, 5])
    def test_logprobs_are_parallel_lists(self, saying: LiveServer, num: int) -> None:
        (choice,) = completion(saying, max_tokens=50, logprobs=num)["choices"]
        logprobs = choice["logprobs"]
        assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
        assert {len(entries) for entries in logprobs.values()} == {NUM_ANSWER_TOKENS}
        assert logprobs["tokens"][:5] == list("Hello") and logprobs["tokens"][-1] == "</s>"
        for token, own, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
            # The fake's favourite has a logit of 12 against less than 0 for each of the others.
            assert math.isclose(own, 12 - math.log(math.exp(12) + 258 * 0.63), abs_tol=1e-3)
            assert top[token] == own == max(top.values())
            assert len(top) == max(num, 1)

    def test_without_it_there_are_none(self, saying: LiveServer) -> None:
        assert completion(saying)["choices"][0]["logprobs"] is None

    def test_a_token_outside_the_top_is_there_as_well(self, counting: LiveServer) -> None:
        # The bias decides what is generated, and is no part of the logprobs.
        (choice,) = completion(counting, max_tokens=1, logprobs=1, logit_bias={str(ids_of("z")[0]): 100})["choices"]
        logprobs = choice["logprobs"]
        assert logprobs["tokens"] == ["z"]
        (top,) = logprobs["top_logprobs"]
        assert len(top) == 2 and top["z"] == logprobs["token_logprobs"][0] < max(top.values())

    def test_offsets_point_into_the_text(self, saying: LiveServer) -> None:
        (choice,) = completion(saying, "wör", max_tokens=50, logprobs=0, echo=True)["choices"]
        tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
        assert offsets == sorted(offsets)
        for token, offset in zip(tokens[:-1], offsets[:-1], strict=True):
            # A part of a character points to the character.
            assert choice["text"][offset] == (token if len(token) == 1 else choice["text"][offset]), (token, offset)
            if token.startswith("bytes:"):
                assert choice["text"][offset] in "ö🙂"
        assert offsets[-1] == len(choice["text"])

    def test_echo_has_an_entry_for_every_token(self, counting: LiveServer) -> None:
        (choice,) = completion(counting, max_tokens=3, echo=True, logprobs=2)["choices"]
        logprobs = choice["logprobs"]
        assert {len(entries) for entries in logprobs.values()} == {5 + 3}
        assert logprobs["tokens"][:5] == list("hello")
        assert "".join(logprobs["tokens"]) == choice["text"]
        assert logprobs["text_offset"] == list(range(8))
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        for token, own, top in list(zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))[
            1:
        ]:
            assert top[token] == own

    def test_prompt_logprobs_are_those_of_the_prompt(self, counting: LiveServer) -> None:
        """The fake counts: after one token it expects token 4, and nothing else."""
        (choice,) = completion(counting, [3 + 50, 4, 5, 3 + 60], max_tokens=0, echo=True, logprobs=0)["choices"]
        first, *rest = choice["logprobs"]["token_logprobs"]
        assert first is None
        assert [logprob > -0.1 for logprob in rest] == [True, True, False]

    def test_scoring(self, counting: LiveServer) -> None:
        """What old clients of lm-evaluation-harness send."""
        body = completion(counting, max_tokens=0, echo=True, logprobs=1, temperature=0)
        (choice,) = body["choices"]
        assert choice["text"] == "hello" and choice["finish_reason"] == "length"
        assert {len(entries) for entries in choice["logprobs"].values()} == {5}
        assert body["usage"]["completion_tokens"] == 0

    def test_scoring_several_prompts_longer_than_a_batch(self, counting: LiveServer) -> None:
        """300 tokens are more than one step computes, so the prompt logprobs come in pieces."""
        prompts = [ids_of("a" * 300), ids_of("bc")]
        body = completion(counting, prompts, max_tokens=1, echo=True, logprobs=1, temperature=0, seed=1234)
        assert [len(choice["logprobs"]["tokens"]) for choice in body["choices"]] == [301, 3]
        chunks = streamed(counting, prompts, max_tokens=1, echo=True, logprobs=1)
        for choice in body["choices"]:
            mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
            streamed_logprobs = [entry for part in mine for entry in part["logprobs"]["token_logprobs"]]
            assert streamed_logprobs == choice["logprobs"]["token_logprobs"]

    def test_a_last_token_that_is_eos_has_its_entry(self, serve: Serve) -> None:
        (choice,) = completion(serve(runner=FakeRunner(answer="")), max_tokens=1, echo=True, logprobs=1)["choices"]
        assert choice["logprobs"]["tokens"] == [*"hello", "</s>"]
        assert choice["text"] == "hello" and choice["finish_reason"] == "stop"

    def test_an_encoder_decoder_model_can_not_score_its_prompt(self, serve: Serve) -> None:
        server = serve(type=ModelType.SEQ2SEQ)
        assert_error(server.complete(echo=True, logprobs=1), 400, param="echo", code="unsupported_parameter")
        assert texts(completion(server, echo=True, max_tokens=1))[0].startswith("hello")


class TestChoices:
    def test_n(self, counting: LiveServer) -> None:
        body = completion(counting, n=4, temperature=0, max_tokens=5)
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
        assert len(set(texts(body))) == 1
        assert body["usage"]["completion_tokens"] == 20

    def test_choices_of_one_seed_differ_and_repeat(self, counting: LiveServer) -> None:
        first, second = (texts(completion(counting, n=3, temperature=2, seed=7, max_tokens=20)) for _ in range(2))
        assert first == second
        assert len(set(first)) == 3

    def test_best_of_returns_the_likeliest(self, counting: LiveServer) -> None:
        sampling = {"temperature": 2, "seed": 7, "max_tokens": 8, "logprobs": 0}
        everything = completion(counting, ["one", "three"], n=5, **sampling)
        best = completion(counting, ["one", "three"], n=2, best_of=5, **sampling)
        expected = []
        for start in (0, 5):
            ranked = sorted(everything["choices"][start : start + 5], key=_mean_logprob, reverse=True)
            # Otherwise this test could not tell the best from the first.
            assert ranked[:2] != everything["choices"][start : start + 2]
            expected += [choice["text"] for choice in ranked[:2]]
        assert texts(best) == expected
        assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
        assert best["usage"] == everything["usage"]
        del sampling["logprobs"]
        without = completion(counting, ["one", "three"], n=2, best_of=5, **sampling)
        assert texts(without) == expected
        assert without["choices"][0]["logprobs"] is None

    def test_best_of_less_than_n_is_refused(self, counting: LiveServer) -> None:
        assert_error(counting.complete(n=3, best_of=2), 400, param="best_of")

    def test_beam_search_can_not_rank_candidates(self, serve: Serve) -> None:
        server = serve(FakeLoader(defaults=GenerationDefaults(eos_token_ids=frozenset({EOS}), num_beams=2)))
        assert_error(server.complete(best_of=2, temperature=0), 400, code="unsupported_parameter", param="best_of")

    def test_best_of_can_not_be_streamed(self, counting: LiveServer) -> None:
        assert_error(counting.complete(n=1, best_of=2, stream=True), 400, param="best_of")
        assert joined(streamed(counting, n=2, best_of=2, max_tokens=2, temperature=0)).keys() == {0, 1}


def _mean_logprob(choice: dict[str, Any]) -> float:
    logprobs = choice["logprobs"]["token_logprobs"]
    return sum(logprobs) / len(logprobs)


class TestSuffix:
    @pytest.fixture
    def filling(self, serve: Serve) -> LiveServer:
        """A server whose model repeats its prompt: what it was given is what is seen."""

        class Repeating(FakeRunner):
            def next_token(self, seq: Sequence, length: int) -> int:
                ids = [*seq.prompt_ids, EOS]
                return ids[min(length - seq.num_decoder_prompt_tokens, len(ids) - 1)]

        return serve(FakeLoader(runner=Repeating(), fim_template="[P]{prefix}[S]{suffix}[M]"))

    @pytest.mark.parametrize("prompt", ["def f(", ["def f("], ids_of("def f("), [ids_of("def f(")]], ids=repr)
    def test_every_form_of_prompt(self, filling: LiveServer, prompt: Any) -> None:
        assert texts(completion(filling, prompt, suffix="): ö", max_tokens=50)) == ["[P]def f([S]): ö[M]"]

    def test_each_prompt_gets_it(self, filling: LiveServer) -> None:
        body = completion(filling, ["a", "b"], suffix="z", n=2, temperature=0, max_tokens=50)
        assert texts(body) == ["[P]a[S]z[M]"] * 2 + ["[P]b[S]z[M]"] * 2
        assert body["usage"]["prompt_tokens"] == 22

    def test_echo_gives_back_the_prompt_as_it_was_sent(self, filling: LiveServer) -> None:
        assert texts(completion(filling, "a", suffix="z", echo=True, max_tokens=3)) == ["a[P]"]
        assert joined(streamed(filling, "a", suffix="z", echo=True, max_tokens=3)) == {0: "a[P]"}
        (choice,) = completion(filling, "a", suffix="z", logprobs=0, max_tokens=3)["choices"]
        assert choice["logprobs"]["text_offset"] == [0, 1, 2]
        # The tokens that the model reads are not those of the prompt, and not in its order.
        assert_error(filling.complete("a", suffix="z", echo=True, logprobs=0), 400, param="echo")

    def test_a_token_that_ends_the_middle_ends_the_text(self, serve: Serve) -> None:
        server = serve(FakeLoader(runner=FakeRunner(answer="x_y"), fim_template="<s>{prefix}<pad>{suffix}_"))
        (choice,) = completion(server, "a", suffix="b", max_tokens=50)["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("x", "stop")
        assert texts(completion(server, "a", suffix="b", max_tokens=3, ignore_eos=True)) == ["x_y"]
        assert texts(completion(server, "a", max_tokens=50)) == ["x_y"]

    def test_an_empty_one_is_none(self, counting: LiveServer) -> None:
        assert texts(completion(counting, suffix="")) == texts(completion(counting))

    def test_a_model_without_the_tokens_refuses_it(self, counting: LiveServer) -> None:
        error = assert_error(counting.complete(suffix="end"), 400, code="unsupported_parameter", param="suffix")
        assert "FIM_TEMPLATE" in error["message"]
        eventually(counting.is_idle)

    def test_it_counts_for_the_context(self, serve: Serve) -> None:
        server = serve(FakeLoader(context_length=20, fim_template="[P]{prefix}[S]{suffix}[M]"))
        assert server.complete("a", suffix="b", max_tokens=9).status_code == 200
        assert_error(server.complete("a", suffix="b", max_tokens=10), 400, code="context_length_exceeded")


class TestEnd:
    @pytest.mark.parametrize(
        ("stop", "text"),
        [
            ("wör", "Hello, "),
            (["wör"], "Hello, "),
            (["xyz", "!", "o"], "Hell"),
            (["lo, w", "ello"], "H"),
            ("H", ""),
            ("🙂", "Hello, wörld! "),
            ([], ANSWER),
            (None, ANSWER),
            ("hello", ANSWER),  # only the prompt has it
            ("🙂!", ANSWER),  # a beginning only: it is text after all
        ],
    )
    def test_stop_cuts_before_the_first_match(self, saying: LiveServer, stop: Any, text: str) -> None:
        body = completion(saying, stop=stop, max_tokens=50)
        assert body["choices"][0] == {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
        chunks = streamed(saying, stop=stop, max_tokens=50)
        assert joined(chunks) == {0: text}
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"

    def test_logprobs_end_where_the_text_ends(self, saying: LiveServer) -> None:
        (choice,) = completion(saying, stop="wör", max_tokens=50, logprobs=0)["choices"]
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"] == "Hello, "

    def test_stop_does_not_generate_on(self, saying: LiveServer) -> None:
        body = completion(saying, stop="Hel", max_tokens=50)
        assert body["usage"]["completion_tokens"] == 3

    def test_stop_token_ids(self, saying: LiveServer) -> None:
        body = completion(saying, stop_token_ids=ids_of(","), max_tokens=50)
        assert body["choices"][0]["text"] == "Hello" and body["choices"][0]["finish_reason"] == "stop"
        assert body["usage"]["completion_tokens"] == 6
        assert_error(saying.complete(stop_token_ids=[VOCAB_SIZE]), 400, param="stop_token_ids")

    def test_ignore_eos(self, saying: LiveServer) -> None:
        body = completion(saying, ignore_eos=True, max_tokens=NUM_ANSWER_TOKENS + 3)
        assert body["choices"][0]["text"] == ANSWER  # EOS is a special token, so it has no text
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == NUM_ANSWER_TOKENS + 3

    def test_min_tokens_keeps_eos_away(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(answer="ab"))
        assert completion(server, min_tokens=3)["usage"]["completion_tokens"] == 4
        assert completion(server)["usage"]["completion_tokens"] == 3

    def test_eos_is_counted_and_not_shown(self, serve: Serve) -> None:
        body = completion(serve(runner=FakeRunner(answer="ab")), max_tokens=3)
        assert texts(body) == ["ab"]
        assert body["usage"]["completion_tokens"] == 3
        assert body["choices"][0]["finish_reason"] == "stop"


class TestSampling:
    def test_temperature_0_is_greedy(self, counting: LiveServer) -> None:
        greedy = texts(completion(counting, temperature=0, max_tokens=30))
        assert greedy == texts(completion(counting, temperature=0, max_tokens=30, seed=5))
        assert greedy == texts(completion(counting, max_tokens=30))
        assert greedy != texts(completion(counting, temperature=2, max_tokens=30))

    def test_a_seed_repeats(self, counting: LiveServer) -> None:
        def sample(**body: Any) -> str:
            return texts(completion(counting, temperature=2, max_tokens=30, **body))[0]

        assert sample(seed=1) == sample(seed=1) != sample(seed=2)
        assert sample(seed=-(2**63)) == sample(seed=-(2**63)) != sample(seed=2**63 - 1)
        assert sample() != sample()

    @pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}], ids=repr)
    def test_filters_leave_the_favourite(self, counting: LiveServer, filters: dict[str, Any]) -> None:
        greedy = texts(completion(counting, temperature=0, max_tokens=30))
        assert texts(completion(counting, temperature=2, max_tokens=30, **filters)) == greedy

    def test_logit_bias(self, counting: LiveServer) -> None:
        assert texts(completion(counting, max_tokens=3, logit_bias={str(ids_of("z")[0]): 100})) == ["zzz"]
        banned = texts(completion(counting, max_tokens=1, logit_bias={str(3 + 5): -100}))
        assert banned != texts(completion(counting, max_tokens=1))
        assert_error(counting.complete(logit_bias={str(VOCAB_SIZE): 1}), 400, param="logit_bias")

    def test_penalties(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(answer="aaaaaaaa"))
        # 2 off for each "a" so far: the logit of 12 against 0 or less holds for six.
        assert texts(completion(server, max_tokens=8, frequency_penalty=2))[0].startswith("aaaaaa")
        assert texts(completion(server, max_tokens=8, frequency_penalty=2)) != ["aaaaaaaa"]
        assert texts(completion(server, max_tokens=8, presence_penalty=2)) == ["aaaaaaaa"]


class TestStream:
    @pytest.mark.parametrize(
        "more",
        [
            {},
            {"echo": True},
            {"n": 2, "temperature": 0},
            {"logprobs": 2},
            {"echo": True, "logprobs": 1},
            {"max_tokens": 0},
            {"max_tokens": 17},
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("prompt", ["hello", ["a", "b🙂"], [3 + 60, 70]], ids=repr)
    def test_is_the_whole_answer_in_pieces(self, saying: LiveServer, prompt: Any, more: dict[str, Any]) -> None:
        more = {"max_tokens": 50} | more
        whole = completion(saying, prompt, **more)
        chunks = streamed(saying, prompt, **more, stream_options={"include_usage": True})
        assert joined(chunks) == dict(enumerate(texts(whole)))
        assert chunks[-1]["usage"] == whole["usage"]
        for choice in whole["choices"]:
            mine = [one for chunk in chunks for one in chunk["choices"] if one["index"] == choice["index"]]
            assert [one["finish_reason"] for one in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
            if choice["logprobs"] is None:
                assert all(one["logprobs"] is None for one in mine)
            else:
                for key, entries in choice["logprobs"].items():
                    assert [entry for one in mine for entry in one["logprobs"][key]] == entries

    def test_chunks_have_every_field_and_no_other(self, saying: LiveServer) -> None:
        chunks = streamed(saying, max_tokens=50)
        for chunk in chunks:
            assert set(chunk) == {"id", "object", "created", "model", "choices", "system_fingerprint"}
            assert chunk["object"] == "text_completion" and chunk["model"] == MODEL
            (choice,) = chunk["choices"]
            assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
        assert chunks[0]["id"].startswith("cmpl-")
        assert len({(chunk["id"], chunk["created"], chunk["system_fingerprint"]) for chunk in chunks}) == 1

    def test_usage_only_when_asked_for(self, saying: LiveServer) -> None:
        *chunks, last = streamed(saying, max_tokens=50, stream_options={"include_usage": True})
        assert chunks and all(chunk["choices"] and chunk["usage"] is None for chunk in chunks)
        assert last["choices"] == [] and last["usage"]["completion_tokens"] == NUM_ANSWER_TOKENS
        for options in (None, {}, {"include_usage": False}, {"include_usage": None, "include_obfuscation": True}):
            chunks = streamed(saying, max_tokens=50, stream_options=options)
            assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)

    def test_choices_come_interleaved(self, serve: Serve) -> None:
        """No choice waits for another one's end."""
        chunks = streamed(serve(runner=SlowRunner()), ["a", "b"], max_tokens=10)
        order = [chunk["choices"][0]["index"] for chunk in chunks]
        assert order.index(1) < len(order) - 1 - order[::-1].index(0)
        assert order.index(0) < len(order) - 1 - order[::-1].index(1)

    def test_tokens_are_sent_as_they_come(self, serve: Serve) -> None:
        """The first event arrives while the model is still at work."""
        server = serve(FakeLoader(context_length=100_000))
        request = {"model": MODEL, "prompt": "a", "stream": True, "max_tokens": 90_000}
        with server.http.stream("POST", "/v1/completions", json=request) as response:
            assert response.headers["cache-control"] == "no-cache"
            assert response.headers["x-accel-buffering"] == "no"
            lines = response.iter_lines()  # kept, because the stream ends with its iterator
            assert next(lines).startswith('data: {"id":"cmpl-')
            assert server.snapshot.num_running == 1

    def test_a_refused_one_is_no_stream(self, counting: LiveServer) -> None:
        """Until the first token there is a status left to say it with."""
        response = counting.complete("a" * 600, stream=True)
        assert_error(response, 400, code="context_length_exceeded")


class TestLegacyPath:
    def test_the_path_names_the_model(self, serve: Serve) -> None:
        server = serve(names=("plain",))
        answer = server.http.post("/v1/engines/plain/completions", json={"prompt": "hello", "max_tokens": 3})
        assert answer.status_code == 200
        assert answer.json()["model"] == "plain"
        assert answer.json()["choices"] == completion(server, max_tokens=3)["choices"]
        same = server.http.post("/v1/engines/plain/completions", json={"model": "plain", "prompt": "hello", "stream": True})
        assert joined(events_of(same)) == {0: texts(completion(server))[0]}

    def test_a_contradiction_is_refused(self, serve: Serve) -> None:
        server = serve(names=("plain", "other"))
        response = server.http.post("/v1/engines/plain/completions", json={"model": "other", "prompt": "hello"})
        assert_error(response, 400, param="model")

    def test_unknown(self, counting: LiveServer) -> None:
        response = counting.http.post("/v1/engines/nope/completions", json={"prompt": "hello"})
        assert_error(response, 404, param="model", code="model_not_found")


OPTIONAL = (
    *("n", "temperature", "top_p", "frequency_penalty", "presence_penalty", "logit_bias", "seed", "stop", "stream"),
    *(
        "stream_options",
        "user",
        "top_k",
        "min_p",
        "repetition_penalty",
        "min_tokens",
        "ignore_eos",
        "stop_token_ids",
        "priority",
    ),
    *("prompt", "best_of", "echo", "logprobs", "max_tokens", "suffix"),
)


class TestParameters:
    @pytest.mark.parametrize("name", OPTIONAL)
    def test_null_is_as_good_as_absent(self, counting: LiveServer, name: str) -> None:
        prompt = {} if name == "prompt" else {"prompt": "hello"}
        body = {"model": MODEL, **prompt, name: None}
        response = counting.http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        del body[name]
        assert response.json()["choices"] == counting.http.post("/v1/completions", json=body).json()["choices"]

    @pytest.mark.parametrize(
        "body",
        [
            {"user": "someone"},
            {"n": 16, "temperature": 0},
            {"temperature": 2, "top_p": 1},
            {"top_k": -1},
            {"top_k": 2**31 - 1},
            {"repetition_penalty": 10},
            {"frequency_penalty": -2, "presence_penalty": -2},
            {"stop": ["a" * 256] * 4},
            {"logit_bias": {}},
            {"logit_bias": {str(id): 0 for id in range(VOCAB_SIZE)}},
            {"stop_token_ids": []},
            {"stream": False},
            {"logprobs": 5},
        ],
        ids=repr,
    )
    def test_limits_are_legal(self, counting: LiveServer, body: dict[str, Any]) -> None:
        completion(counting, max_tokens=2, **body)

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("model", [None, 5, "", "m" * 513, ["fake"], True]),
            ("n", [0, -1, 17, 1.5, "1", True, [1]]),
            ("best_of", [-1, 17, "2", True]),
            ("temperature", [-0.1, 2.1, "1", True, [], 1e999]),
            ("top_p", [0, -1, 1.1, "1"]),
            ("frequency_penalty", [-2.1, 2.1, "0", True]),
            ("presence_penalty", [-2.1, 2.1, {}]),
            ("logit_bias", [[], "x", {"a": 1}, {"-1": 1}, {"5": 101}, {"5": -101}, {"5": "1"}, {"5": None}, {"1.0": 1}]),
            ("seed", [1.5, "1", True, 2**63, -(2**63) - 1]),
            ("stop", [5, True, "", [""], ["a"] * 5, [5], [None], "a" * 257, ["a" * 257], {}]),
            ("stream", ["true", 1, 0, []]),
            ("user", [5, "u" * 4097]),
            ("top_k", [-2, 1.5, "1", 2**31]),
            ("min_p", [-0.1, 1.1]),
            ("repetition_penalty", [0, -1, 10.1]),
            ("min_tokens", [-1, 1.5, "1", 2**31]),
            ("max_tokens", [-1, 1.5, "1", True, 2**31, 2**70, -(2**70)]),
            ("ignore_eos", [1, "true"]),
            ("priority", [1.5, "1", True, -1001, 1001]),
            ("stop_token_ids", [5, ["a"], [-1], [1] * 65, [None], [True]]),
            ("echo", [1, "true", []]),
            ("logprobs", [-1, 6, True, "1"]),
        ],
    )
    def test_wrong_types_and_ranges_are_refused(self, counting: LiveServer, name: str, values: list[Any]) -> None:
        for value in values:
            # httpx does not write infinity; a JSON number may still be too large for a float.
            raw = _json(value)
            body = f'{{"model": "{MODEL}", "prompt": "hello", "{name}": {raw}}}'
            response = counting.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
            error = assert_error(response, 400, type="invalid_request_error")
            if value == 1e999:  # no JSON number at all for the decoder, which does not say where it was
                continue
            assert error["param"] is not None, (value, error)
            assert error["param"] == name or error["param"].startswith(f"{name}."), (value, error)

    @pytest.mark.parametrize("options", [5, [], "x", {"include_usage": 1}], ids=repr)
    def test_stream_options_of_a_wrong_type(self, counting: LiveServer, options: Any) -> None:
        error = assert_error(counting.complete(stream=True, stream_options=options), 400)
        assert error["param"].startswith("stream_options")

    def test_usage_in_every_chunk(self, counting: LiveServer) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        for chunks in (
            streamed(counting, max_tokens=4, stream_options=options),
            events_of(counting.chat(max_tokens=4, stream=True, stream_options=options)),
        ):
            used = [chunk["usage"]["completion_tokens"] for chunk in chunks]
            assert used == sorted(used) and used[-1] == 4
        error = assert_error(counting.complete(stream=True, stream_options={"continuous_usage_stats": True}), 400)
        assert error["param"] == "stream_options.continuous_usage_stats"

    def test_stream_options_without_stream(self, counting: LiveServer) -> None:
        assert_error(counting.complete(stream_options={}), 400, param="stream_options")

    def test_an_unknown_one_in_an_object(self, counting: LiveServer) -> None:
        response = counting.complete(stream=True, stream_options={"nonsense": True})
        assert_error(response, 400, code="unknown_parameter", param="stream_options.nonsense")

    @pytest.mark.parametrize("name", ["nonsense", "Temperature", "messages", "a.b", "a`b", "", "x" * 1000])
    def test_an_unknown_one_is_named(self, counting: LiveServer, name: str) -> None:
        error = assert_error(counting.complete(**{name: 1}), 400, code="unknown_parameter")
        assert error["param"] == name[:100]
        assert len(error["message"]) < 300

    def test_an_unknown_one_is_refused_even_as_null(self, counting: LiveServer) -> None:
        assert_error(counting.complete(nonsense=None), 400, code="unknown_parameter", param="nonsense")

    def test_model_is_required(self, counting: LiveServer) -> None:
        response = counting.http.post("/v1/completions", json={"prompt": "hello"})
        assert_error(response, 400, param="model", code="missing_required_parameter")

    def test_an_unknown_model(self, counting: LiveServer) -> None:
        response = counting.http.post("/v1/completions", json={"model": "nope", "prompt": "hello"})
        error = assert_error(response, 404, param="model", code="model_not_found")
        assert error["message"] == "The model `nope` does not exist."


def _json(value: Any) -> str:
    return "1e999" if value == 1e999 else json.dumps(value)


class TestBody:
    @pytest.mark.parametrize(
        "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", None]
    )
    def test_must_be_declared_as_json(self, counting: LiveServer, content_type: str | None) -> None:
        headers = {} if content_type is None else {"content-type": content_type}
        response = counting.http.post("/v1/completions", content=b'{"model": "m"}', headers=headers)
        assert_error(response, 415, type="invalid_request_error")

    @pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;x=y"])
    def test_parameters_of_the_type_do_not_matter(self, counting: LiveServer, content_type: str) -> None:
        body = f'{{"model": "{MODEL}", "max_tokens": 1}}'
        response = counting.http.post("/v1/completions", content=body, headers={"content-type": content_type})
        assert response.status_code == 200, response.text

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"{]", b'{"a": NaN}', b"\xff", b'{"prompt": "\xff"}', b'{"a": 1} x', b"[" * 100_000, b'{"a":' * 5000],
    )
    def test_must_be_valid_json(self, counting: LiveServer, body: bytes) -> None:
        response = counting.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        error = assert_error(response, 400, type="invalid_request_error")
        assert "JSON" in error["message"] and len(error["message"]) < 400

    @pytest.mark.parametrize("body", [b"[]", b'"x"', b"5", b"null", b"true"])
    def test_must_be_an_object(self, counting: LiveServer, body: bytes) -> None:
        response = counting.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert_error(response, 400, type="invalid_request_error")

    @pytest.mark.parametrize("chunked", [False, True])
    def test_must_not_be_too_large(self, serve: Serve, chunked: bool) -> None:
        server = serve(max_body_bytes=2000)
        good = f'{{"model": "{MODEL}", "max_tokens": 1, "user": "%s"}}'.encode()
        for size, status in ((2000, 200), (2001, 413)):
            body = good.replace(b"%s", b"x" * (size - len(good) + 2))
            assert len(body) == size
            content: Any = (body[start : start + 500] for start in range(0, size, 500)) if chunked else body
            response = server.http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
            assert response.status_code == status, response.text
        error = assert_error(response, 413, type="invalid_request_error", code="request_too_large")
        assert "2000" in error["message"] and ("more than" if chunked else "2001") in error["message"]


class TestContextLength:
    @pytest.mark.parametrize("stream", [False, True])
    def test_exactly_full_is_fine_one_more_is_not(self, serve: Serve, stream: bool) -> None:
        server = serve(FakeLoader(context_length=20))
        assert server.complete("a" * 15, max_tokens=5, stream=stream).status_code == 200
        error = assert_error(server.complete("a" * 15, max_tokens=6, stream=stream), 400, param="prompt")
        assert error["code"] == "context_length_exceeded"
        assert error["message"] == (
            "This model's maximum context length is 20 tokens. However, you requested 21 tokens (15 in the prompt, 6 in the "
            "completion). Please reduce the length of the prompt or completion."
        )

    def test_an_encoder_decoder_model_has_two(self, serve: Serve) -> None:
        server = serve(FakeLoader(context_length=20), type=ModelType.SEQ2SEQ)
        # One place of the decoder's is its start token.
        assert server.complete("a" * 20, max_tokens=19).status_code == 200
        for length, max_tokens in ((21, 1), (1, 20)):
            assert_error(server.complete("a" * length, max_tokens=max_tokens), 400, code="context_length_exceeded")

    def test_of_every_prompt(self, serve: Serve) -> None:
        server = serve(FakeLoader(context_length=20))
        assert_error(server.complete(["a", "a" * 16], max_tokens=5), 400, code="context_length_exceeded")
        # The first prompt was already under way.
        eventually(server.is_idle)

    def test_a_full_prompt_without_max_tokens(self, serve: Serve) -> None:
        server = serve(FakeLoader(context_length=20))
        assert_error(server.complete("a" * 20), 400, code="context_length_exceeded")
        assert server.complete("a" * 20, max_tokens=0).status_code == 200


def test_the_eos_of_a_prompt_does_not_end_it(counting: LiveServer) -> None:
    assert completion(counting, [EOS, EOS], max_tokens=3)["usage"]["completion_tokens"] == 3
