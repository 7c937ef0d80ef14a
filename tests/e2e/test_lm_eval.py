"""lm-evaluation-harness gives the same figures through tfoai as with the model in its own hands; skipped without it.

`make test-lm-eval` installs it. Models have random weights, data sets are files, and the tokenizer is the server's own
(`tokenizer_backend=remote`), so nothing comes from a hub.
"""

import importlib.util
import json
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.demo import DEMO_MODELS
from tests.support.process import ROOT, ServerProcess, serving
from tests.support.tiny import byte_tokenizer, save_tiny

TOLERANCE = 1e-3
KINDS = ("llama", "qwen3", "gpt2", "falcon")
NUM_DOCUMENTS = 40

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval: make test-lm-eval"),
    # Its libraries' warnings are theirs to mend.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(900),
]

_CHOICES = """
task: tfoai_choices
output_type: multiple_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
_GENERATE = """
task: tfoai_generate
output_type: generate_until
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["i", "V@"], do_sample: false, temperature: 0, max_gen_toks: 24}
metric_list: [{metric: exact_match}]
"""
_ROLLING = """
task: tfoai_rolling
output_type: loglikelihood_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""


def _documents(path: Path) -> list[dict[str, Any]]:
    """Questions with choices of several lengths, characters of several tokens among them, and some that the model would say."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    words = (ROOT / "README.md").read_text().split()
    rng = random.Random(0)
    odd = ["Grüße", "世界", "🙂", "naïve café", "<s>", "\n\n", "a"]

    def some(number: int) -> str:
        return " ".join(rng.choices(words, k=number) + rng.choices(odd, k=1))

    def greedy(question: str) -> str | None:
        """What the model says next, where it is text that is spelled with the same tokens."""
        ids = tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids
        said = model.generate(ids, max_new_tokens=rng.randint(1, 3), do_sample=False)[0]
        text: str = tokenizer.decode(said[ids.shape[1] :])
        return text if tokenizer(question + text, add_special_tokens=False).input_ids == said.tolist() else None

    documents = []
    for _ in range(NUM_DOCUMENTS):
        question = f"Q: {some(rng.randint(1, 12))}\nA:"
        choices = [greedy(question) or " " + some(2), *(" " + some(rng.randint(1, 4)) for _ in range(3))]
        documents.append(
            {"question": question, "choices": choices, "answer": rng.randrange(4), "text": some(rng.randint(2, 60))}
        )
    return documents


def _write_tasks(directory: Path, model: Path) -> Path:
    data = directory / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in _documents(model)))
    for name, task in (("choices", _CHOICES), ("generate", _GENERATE), ("rolling", _ROLLING)):
        (directory / f"{name}.yaml").write_text(task.replace("DATA", json.dumps(str(data))))
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("models")
    paths = {kind: save_tiny(kind, directory / kind, tokenizer=byte_tokenizer(model_max_length=512)) for kind in KINDS}
    demo = directory / "demo"
    shutil.copytree(DEMO_MODELS["tfoai-demo"], demo)
    # Without its max_new_tokens, which would win over the length that the harness gives to generate().
    (demo / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0}))
    return {"demo": demo, **paths}


@pytest.fixture(scope="module")
def servers(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerProcess]]:
    """Two, because the remote tokenizer names no model: the demo model has a tokenizer of its own."""
    entries = {
        kind: {"NAME": str(path), "TYPE": "CausalLM", "MODEL_DEVICE": "cpu", "MODEL_CONFIG": {"dtype": "float32"}}
        for kind, path in models.items()
    }
    demo = {"demo": entries.pop("demo")}
    with (
        serving({"MODELS": demo}, tmp_path_factory.mktemp("demo")) as of_demo,
        serving({"MODELS": entries}, tmp_path_factory.mktemp("tiny")) as of_tiny,
    ):
        of_demo.wait_until_ready()
        of_tiny.wait_until_ready()
        yield {"demo": of_demo, **dict.fromkeys(KINDS, of_tiny)}


def _evaluate(tasks: Path, model: str, arguments: dict[str, Any]) -> dict[str, list[Any]]:
    """Return what each document got: [(log-likelihood, is greedy), ...] or [text]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lm_eval
        from lm_eval.tasks import TaskManager

        results = lm_eval.simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=["tfoai_choices", "tfoai_generate", "tfoai_rolling"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )
    assert results is not None
    found = {}
    for task, samples in results["samples"].items():
        samples.sort(key=lambda sample: sample["doc_id"])
        found[task] = [[answer[0] for answer in sample["resps"]] for sample in samples]
    return found


@pytest.mark.parametrize("kind", ["demo", *KINDS])
def test_local_completions_agrees_with_hf(
    kind: str, models: dict[str, Path], servers: dict[str, ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, server = _write_tasks(tmp_path, models[kind]), servers[kind]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    theirs = _evaluate(
        tasks, "hf", {"pretrained": str(models[kind]), "device": "cpu", "dtype": "float32", "max_length": 512, "batch_size": 1}
    )
    ours = _evaluate(
        tasks,
        "local-completions",
        {
            "model": kind,
            "base_url": f"{server.url}/v1/completions",
            "tokenizer_backend": "remote",
            "tokenized_requests": True,
            "max_length": 512,
            "batch_size": 8,
            "num_concurrent": 4,
        },
    )
    assert ours["tfoai_generate"] == theirs["tfoai_generate"]
    assert any(text for (text,) in theirs["tfoai_generate"])
    worst, flags, num_greedy = 0.0, 0, 0
    for mine, reference in zip(ours["tfoai_choices"], theirs["tfoai_choices"], strict=True):
        for (my_logprob, my_flag), (their_logprob, their_flag) in zip(mine, reference, strict=True):
            worst = max(worst, abs(my_logprob - their_logprob))
            flags += my_flag != their_flag
            num_greedy += their_flag
    rolling = max(abs(a[0] - b[0]) for a, b in zip(ours["tfoai_rolling"], theirs["tfoai_rolling"], strict=True))
    print(  # noqa: T201 - the figures are what somebody runs this for
        f"{kind}: largest difference {worst:.1e} (choices), {rolling:.1e} (rolling); {flags} flags differ, {num_greedy} greedy"
    )
    assert max(worst, rolling) <= TOLERANCE
    assert flags == 0
    assert 0 < num_greedy < 4 * NUM_DOCUMENTS, "otherwise this test could not tell a wrong flag"
