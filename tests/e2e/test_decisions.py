"""Decisions of real models: probabilities as of a plain forward and of transformers' own pipeline, from one prefill."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.decision import DecisionConfig
from transformers.pipelines import DecisionPipeline

from app.config import Config, ModelSettings, ModelType
from app.loading import Loaded, load_model
from tests.support.fakes import FakeLoader
from tests.support.live import LiveServer, eventually
from tests.support.tiny import byte_tokenizer, save_tiny

STATE = "The parcel came late, and its screen is broken. I want my money back, please. " * 3
LONG = STATE + STATE[:160]
QUESTIONS: dict[str, dict[str, Any]] = {
    "refund": {"type": "noul", "instructions": "Is a refund requested?"},
    "described": {"type": "noul", "instructions": "Spam?", "criteria": {"true": "Unsolicited", "false": "A customer"}},
    "team": {"type": "choice", "instructions": "Who helps?", "criteria": {"billing": "Money", "tech": None, "sales": "New"}},
    "mood": {"type": "score", "instructions": "How angry?", "criteria": ["calm", "annoyed", "furious"]},
}


class RealLoader(FakeLoader):
    """Loads what the configuration names."""

    def __call__(self, name: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]) -> Loaded:
        loaded = load_model(name, settings, path, on_progress)
        assert isinstance(loaded, Loaded)
        return loaded


@contextmanager
def serving(path: Path, kind: ModelType, **settings: Any) -> Iterator[LiveServer]:
    model = ModelSettings(name=str(path), type=kind, model_device="cpu", max_num_seqs=4, **settings)
    server = LiveServer(Config(models={"m": model}), RealLoader())
    server.start(wait_ready=False)
    eventually(lambda: server.registry.is_ready or bool(server.load_errors), timeout=60)
    assert not server.load_errors
    try:
        yield server
    finally:
        server.stop()
        server.join()


def ask(server: LiveServer, state: Any = STATE, questions: Any = None) -> dict[str, Any]:
    response = server.http.post("/v1/systemone", json={"model": "m", "state": state, "questions": questions or QUESTIONS})
    assert response.status_code == 200, response.text
    eventually(server.is_idle)
    body: dict[str, Any] = response.json()
    return body


def close(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(close(ours[key], theirs[key]) for key in theirs)
    return math.isclose(ours, theirs, abs_tol=1e-4) if isinstance(theirs, float) else bool(ours == theirs)


@pytest.mark.parametrize("kind", ["llama", "falcon"])  # paged and sequential
def test_answers_are_those_of_the_pipeline_of_transformers(kind: str, tmp_path: Path) -> None:
    path = save_tiny(kind, tmp_path / kind)
    with serving(path, ModelType.CAUSAL_LM) as server:
        answers = ask(server, {"message": STATE, "more": ["Grüße", 1, None]})["answers"]
        assert server.model.loaded.runner == ("paged" if kind == "llama" else "sequential")
    # "Yes" is three tokens here, so the labels are shorter ones.
    pipeline = DecisionPipeline(
        model=AutoModelForCausalLM.from_pretrained(path),
        tokenizer=byte_tokenizer(),
        decision_config=DecisionConfig(labels={"noul": ["Y", "N"]}),
    )
    theirs = pipeline({"state": {"message": STATE, "more": ["Grüße", 1, None]}, "questions": QUESTIONS})
    assert close(answers, theirs), (answers, theirs)
    assert len({answer["noul"] for answer in answers.values() if "noul" in answer}) == 2


def test_the_input_is_computed_once(tmp_path: Path) -> None:
    questions = {f"q{number}": {"type": "noul", "instructions": f"Number {number}?"} for number in range(9)}
    with serving(save_tiny("llama", tmp_path / "m"), ModelType.CAUSAL_LM) as server:
        body = ask(server, LONG, questions)
        engine = server.snapshot
        alone = ask(server, LONG.upper(), {"q": questions["q0"]})["usage"]["input_tokens"]
    computed = body["usage"]["input_tokens"] - engine.num_prompt_tokens_cached
    assert body["usage"]["input_tokens"] > 9 * len(LONG)
    # All of the first prompt, and of the others what is behind the input: a question, a block that is cut, and no more.
    tail = alone - len(LONG) + 16
    assert computed <= alone + 8 * tail < 9 * alone / 3, (computed, alone)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_model_decides_with_its_first_token(kind: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(append_eos=True)
    tokenizer.chat_template = None
    path = save_tiny(kind, tmp_path / kind, tokenizer=tokenizer)
    with serving(path, ModelType.SEQ2SEQ, generate_config={"num_beams": 2}) as server:
        answers = ask(server)["answers"]
        text = server.model.loaded.decisions.prompts(STATE, server.model.loaded.decisions.parse(QUESTIONS))
        assert "paged" not in server.model.loaded.runner
    model = AutoModelForSeq2SeqLM.from_pretrained(path).eval()
    start = torch.tensor([[model.config.decoder_start_token_id]])
    expected = []
    for prompt in text:
        assert prompt.ids[-1] == byte_tokenizer().eos_token_id
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt.ids]), decoder_input_ids=start).logits[0, -1]
        expected.append(logits[list(prompt.label_ids)].softmax(-1).tolist())
    assert close(answers["refund"]["noul"], expected[0][0])
    assert close(answers["described"]["noul"], expected[1][0])
    assert close(answers["team"]["probabilities"], dict(zip(QUESTIONS["team"]["criteria"], expected[2], strict=True)))
    assert close(answers["mood"]["probabilities"], dict(zip("012", expected[3], strict=True)))


def test_forced_first_tokens_come_before_the_answer(tmp_path: Path) -> None:
    path = save_tiny("bart", tmp_path / "m")
    with serving(path, ModelType.SEQ2SEQ, generate_config={"forced_bos_token_id": 7}) as server:
        answers = ask(server)["answers"]
        prompts = server.model.loaded.decisions.prompts(STATE, server.model.loaded.decisions.parse(QUESTIONS))
    model = AutoModelForSeq2SeqLM.from_pretrained(path).eval()
    with torch.inference_mode():
        start = torch.tensor([[model.config.decoder_start_token_id, 7]])
        logits = model(input_ids=torch.tensor([prompts[0].ids]), decoder_input_ids=start).logits[0, -1]
    assert close(answers["refund"]["noul"], logits[list(prompts[0].label_ids)].softmax(-1)[0].item())
