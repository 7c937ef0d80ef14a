"""Embedding models: vectors equal a plain forward with the pooling written out here, files are read, what is odd is refused."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from app.config import ModelSettings, ModelType
from app.engine.encoder import EncoderRunner
from app.engine.pooling_head import PoolingHead
from app.engine.pooling_job import PoolingInput
from app.engine.sentence_files import SentenceFiles, read_sentence_files
from app.errors import ConfigError
from app.loading import LoadedEmbedder, load_model
from tests.support.tiny import EOS, byte_tokenizer, save_tiny, tiny_encoder

TEXTS = ["a", "Hello, wörld!", "x" * 50, "The quick brown fox", "HELLO"]
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}


def write(directory: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT as a hub checkout without sentence-transformers' files."""
    directory = tmp_path_factory.mktemp("bert")
    tiny_encoder("bert").save_pretrained(directory)
    byte_tokenizer(append_eos=True).save_pretrained(directory)
    return directory


def sentence_model(bert: Path, directory: Path, files: dict[str, Any]) -> Path:
    for path in bert.iterdir():
        (directory / path.name).symlink_to(path)
    return write(directory, files)


def load(source: Path, **settings: Any) -> LoadedEmbedder:
    settings = {"model_device": "cpu", **settings}
    loaded = load_model("m", ModelSettings(name=str(source), type=ModelType.EMBEDDING, **settings), "MODELS.m", lambda _: None)
    assert isinstance(loaded, LoadedEmbedder)
    return loaded


def embed(loaded: LoadedEmbedder, inputs: Iterable[PoolingInput]) -> Tensor:
    """Through the engine, all inputs in one job."""

    async def run() -> list[bytes]:
        return await loaded.engine.submit(list(inputs), lambda: None).result()

    try:
        vectors = asyncio.run(run())
    finally:
        loaded.engine.stop()
    return torch.stack([torch.frombuffer(bytearray(vector), dtype=torch.float32) for vector in vectors])


def embed_texts(loaded: LoadedEmbedder, prompt: str = "", **more: Any) -> Tensor:
    encoded = loaded.sentences.encode(TEXTS, prompt=prompt)
    return embed(loaded, [PoolingInput(one.ids, one.num_prompt_tokens, **more) for one in encoded])


@torch.inference_mode()
def hidden_states(source: Path, text: str, auto: Any = transformers.AutoModel) -> Tensor:
    """[tokens, hidden] of one text alone, by transformers."""
    model = auto.from_pretrained(source).eval()
    ids = byte_tokenizer(append_eos=True)(text)["input_ids"]
    hidden: Tensor = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return hidden


def plain(source: Path, pooling: Any, texts: list[str] = TEXTS, auto: Any = transformers.AutoModel) -> Tensor:
    return torch.stack([pooling(hidden_states(source, text, auto)) for text in texts])


def test_without_files_it_is_the_mean_of_unit_length(bert: Path) -> None:
    loaded = load(bert)
    assert not loaded.files.exist and loaded.num_dimensions == 32 and loaded.context_length == 512
    expected = functional.normalize(plain(bert, lambda hidden: hidden.mean(0)), dim=-1)
    torch.testing.assert_close(embed_texts(loaded), expected, atol=1e-5, rtol=0)


MODES = {
    "cls": lambda hidden: hidden[0],
    "mean": lambda hidden: hidden.mean(0),
    "max": lambda hidden: hidden.max(0).values,
    "mean_sqrt_len_tokens": lambda hidden: hidden.sum(0) / len(hidden) ** 0.5,
    "weightedmean": lambda hidden: sum((n + 1) * row for n, row in enumerate(hidden)) / sum(range(len(hidden) + 1)),
    "lasttoken": lambda hidden: hidden[-1],
}


@pytest.mark.parametrize("mode", MODES)
def test_every_pooling(bert: Path, tmp_path: Path, mode: str) -> None:
    source = sentence_model(
        bert, tmp_path, {"modules.json": [TRANSFORMER, POOLING], "1_Pooling/config.json": {"pooling_mode": mode}}
    )
    torch.testing.assert_close(embed_texts(load(source)), plain(bert, MODES[mode]), atol=1e-4, rtol=1e-5)


def test_old_flags_put_several_poolings_side_by_side(bert: Path, tmp_path: Path) -> None:
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}
    # The order is that of the flags in sentence-transformers, not that of the file.
    source = sentence_model(bert, tmp_path, {"modules.json": [POOLING, TRANSFORMER], "1_Pooling/config.json": flags})
    loaded = load(source)
    assert loaded.files.pooling == ("cls", "mean") and loaded.num_dimensions == 64
    expected = plain(bert, lambda hidden: torch.cat([hidden[0], hidden.mean(0)]))
    torch.testing.assert_close(embed_texts(loaded), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("activation", [None, "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.GELU"])
@pytest.mark.parametrize("pickled", [False, True])
def test_dense_layers_and_layer_norm(bert: Path, tmp_path: Path, activation: str | None, pickled: bool) -> None:
    torch.manual_seed(0)
    weight, bias, scale = torch.randn(16, 32), torch.randn(16), torch.rand(16) + 0.5
    settings: dict[str, Any] = {"in_features": 32, "out_features": 16, "bias": True}
    if activation:
        settings["activation_function"] = activation
    dense = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    norm = {"idx": 3, "path": "3_LayerNorm", "type": "sentence_transformers.models.LayerNorm"}
    files = {
        "modules.json": [TRANSFORMER, POOLING, dense, norm, {**NORMALIZE, "idx": 4}],
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "2_Dense/config.json": settings,
        "3_LayerNorm/config.json": {"dimension": 16},
    }
    source = sentence_model(bert, tmp_path, files)
    if pickled:
        torch.save({"linear.weight": weight, "linear.bias": bias}, source / "2_Dense" / "pytorch_model.bin")
    else:
        save_file({"linear.weight": weight, "linear.bias": bias}, source / "2_Dense" / "model.safetensors")
    save_file({"norm.weight": scale, "norm.bias": bias}, source / "3_LayerNorm" / "model.safetensors")
    function: Any = {None: torch.tanh, "torch.nn.modules.linear.Identity": lambda x: x}.get(activation, functional.gelu)

    def expected(hidden: Tensor) -> Tensor:
        out = function(hidden.mean(0) @ weight.T + bias)
        return functional.normalize(functional.layer_norm(out, (16,), scale, bias), dim=0)

    torch.testing.assert_close(embed_texts(load(source)), plain(bert, expected), atol=1e-5, rtol=0)


def test_shorter_vectors(bert: Path, tmp_path: Path) -> None:
    whole = embed_texts(load(bert))
    torch.testing.assert_close(embed_texts(load(bert), dimensions=8), functional.normalize(whole[:, :8], dim=-1))
    torch.testing.assert_close(embed_texts(load(bert), dimensions=32), whole)
    # Vectors that the model leaves as they are stay so when they are cut.
    modules = {"modules.json": [TRANSFORMER, POOLING], "config_sentence_transformers.json": {"truncate_dim": 8}}
    loaded = load(sentence_model(bert, tmp_path, modules))
    assert loaded.files.dimensions == 8 and loaded.num_dimensions == 32
    torch.testing.assert_close(embed_texts(loaded, dimensions=8), plain(bert, lambda h: h.mean(0))[:, :8], atol=1e-4, rtol=1e-5)


def test_prompts_and_lower_case(bert: Path, tmp_path: Path) -> None:
    files = {
        "modules.json": [TRANSFORMER, POOLING, NORMALIZE],
        "sentence_bert_config.json": {"max_seq_length": 100, "do_lower_case": True},
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "include_prompt": False},
        "config_sentence_transformers.json": {"prompts": {"query": "Query: ", "document": ""}, "default_prompt_name": "query"},
    }
    loaded = load(sentence_model(bert, tmp_path, files))
    assert (loaded.context_length, dict(loaded.sentences.prompts)) == (100, {"query": "Query: "})
    assert loaded.sentences.prompt(None) == "Query: "
    result = embed_texts(loaded, prompt="Query: ")
    texts = ["query: " + text.lower() for text in TEXTS]
    without_prompt = plain(bert, lambda hidden: hidden[len("Query: ") :].mean(0), texts)
    torch.testing.assert_close(result, functional.normalize(without_prompt, dim=-1), atol=1e-5, rtol=0)
    assert (result[1] - result[4]).abs().max() > 1e-3


def test_a_decoder_only_model_by_its_last_token(tmp_path: Path) -> None:
    files = {"modules.json": [TRANSFORMER, POOLING, NORMALIZE], "1_Pooling/config.json": {"pooling_mode_lasttoken": True}}
    source = write(save_tiny("qwen3", tmp_path, tokenizer=byte_tokenizer(append_eos=True)), files)
    loaded = load(source)
    expected = functional.normalize(plain(source, lambda hidden: hidden[-1]), dim=-1)
    torch.testing.assert_close(embed_texts(loaded), expected, atol=1e-5, rtol=0)


def test_of_an_encoder_decoder_model_the_encoder(tmp_path: Path) -> None:
    source = save_tiny("t5", tmp_path)
    loaded = load(source, max_model_len=300)
    assert loaded.context_length == 300
    expected = plain(source, lambda hidden: hidden.mean(0), auto=transformers.T5EncoderModel)
    torch.testing.assert_close(embed_texts(loaded), functional.normalize(expected, dim=-1), atol=1e-5, rtol=0)


def test_positions_that_begin_behind_the_padding(tmp_path: Path) -> None:
    """RoBERTa counts from its padding's id on, so it has fewer positions than it says, and padding must be its own."""
    tiny_encoder("roberta").save_pretrained(tmp_path)
    byte_tokenizer(append_eos=True).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.context_length == 511
    expected = plain(tmp_path, lambda hidden: hidden.mean(0))
    torch.testing.assert_close(embed_texts(loaded), functional.normalize(expected, dim=-1), atol=1e-5, rtol=0)
    longest = PoolingInput((5,) * 511)
    assert embed(load(tmp_path), [longest]).isfinite().all()
    with pytest.raises(ConfigError, match=r"MODELS\.m\.MAX_MODEL_LEN: found 512; expected at most 511"):
        load(tmp_path, max_model_len=512)


def test_half_precision(bert: Path) -> None:
    loaded = load(bert, model_config={"dtype": "bfloat16"})
    assert loaded.dtype == "bfloat16"
    expected = functional.normalize(plain(bert, lambda hidden: hidden.mean(0)), dim=-1)
    assert functional.cosine_similarity(embed_texts(loaded), expected).min() > 0.99


def test_a_model_that_padding_disturbs_is_not_padded() -> None:
    class Careless(torch.nn.Module):
        """A model that does not look at the mask."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_encoder("bert")
            self.config, self.device, self.dtype = self.inner.config, self.inner.device, self.inner.dtype
            self.get_input_embeddings = self.inner.get_input_embeddings

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return self.inner(input_ids=input_ids)

    head = PoolingHead(SentenceFiles(), "MODELS.m")
    assert not EncoderRunner(Careless(), head).can_pad  # type: ignore[arg-type]
    assert EncoderRunner(tiny_encoder("bert"), head).can_pad


def test_a_vector_that_is_not_finite_is_none() -> None:
    model = tiny_encoder("bert")
    with torch.no_grad():
        model.get_input_embeddings().weight[77] = torch.nan
    runner = EncoderRunner(model, PoolingHead(SentenceFiles(), "MODELS.m"))
    alone = runner.forward([PoolingInput((5, 6, 7))])
    good, bad = runner.forward([PoolingInput((5, 6, 7)), PoolingInput((5, 77))])
    assert bad is None and good is not None
    first, second = (torch.frombuffer(bytearray(vector or b""), dtype=torch.float32) for vector in (good, alone[0]))
    torch.testing.assert_close(first, second)


def test_shortening_keeps_the_special_tokens(bert: Path) -> None:
    loaded = load(bert)
    loaded.engine.stop()

    def ids(text: str, max_tokens: int | None = None) -> tuple[int, ...]:
        return loaded.sentences.encode([text], max_tokens=max_tokens)[0].ids

    whole = ids("hello")
    assert whole[-1] == EOS and len(whole) == 6
    assert ids("hello", 4) == (*whole[:3], EOS)
    assert ids("hello", 6) == ids("hello", 7) == whole
    assert ids("hello", 1) == ids("", 5) == (EOS,)


REFUSED = [
    ({"modules.json": {}}, "no list of objects"),
    ({"modules.json": [TRANSFORMER]}, "modules Transformer in its modules.json"),
    ({"modules.json": [{**TRANSFORMER, "type": "custom.Transformer"}, POOLING]}, "the module 'custom.Transformer'"),
    ({"modules.json": [TRANSFORMER, POOLING, {**NORMALIZE, "type": "sentence_transformers.models.CNN"}]}, "models.CNN'"),
    ({"modules.json": [TRANSFORMER, POOLING, {**POOLING, "idx": 2}]}, "a second Pooling"),
    ({"modules.json": [TRANSFORMER, POOLING], "1_Pooling/config.json": {"pooling_mode": "best"}}, "the pooling 'best'"),
    ({"modules.json": [TRANSFORMER, POOLING], "sentence_bert_config.json": {"transformer_task": "fill-mask"}}, "'fill-mask'"),
    (
        {
            "modules.json": [TRANSFORMER, POOLING, NORMALIZE],
            "2_Normalize/config.json": {"module_input_name": "token_embeddings"},
        },
        "token_embeddings",
    ),
    (
        {"modules.json": [TRANSFORMER, POOLING, {**NORMALIZE, "type": "sentence_transformers.models.Dense"}]},
        "no weights in 2_Normalize",
    ),
]


@pytest.mark.parametrize(("files", "found"), REFUSED, ids=[found for _, found in REFUSED])
def test_files_that_are_refused(tmp_path: Path, files: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=r"^MODELS\.m\.NAME: found ") as caught:
        read_sentence_files(str(write(tmp_path, files)), {}, "MODELS.m")
    assert found in str(caught.value)


def test_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ConfigError, match=r"modules\.json that can not be read"):
        read_sentence_files(str(tmp_path), {}, "MODELS.m")


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"in_features": 32, "out_features": 16, "activation_function": "os.system"}, "the activation 'os.system'"),
        ({"in_features": 32, "out_features": 16, "activation_function": "torch.nn.functional"}, "the activation"),
        ({"in_features": 32, "out_features": 8}, "can not be loaded"),
        ({}, "can not be loaded"),
    ],
)
def test_a_dense_layer_that_is_refused(tmp_path: Path, settings: dict[str, Any], found: str) -> None:
    dense = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    source = write(tmp_path, {"modules.json": [TRANSFORMER, POOLING, dense], "2_Dense/config.json": settings})
    save_file({"linear.weight": torch.zeros(16, 32), "linear.bias": torch.zeros(16)}, source / "2_Dense" / "model.safetensors")
    with pytest.raises(ConfigError, match=found):
        PoolingHead(read_sentence_files(str(source), {}, "MODELS.m"), "MODELS.m")


def test_a_head_of_another_size(bert: Path, tmp_path: Path) -> None:
    dense = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    files = {"modules.json": [TRANSFORMER, POOLING, dense], "2_Dense/config.json": {"in_features": 9, "out_features": 3}}
    source = sentence_model(bert, tmp_path, files)
    save_file({"linear.weight": torch.zeros(3, 9), "linear.bias": torch.zeros(3)}, source / "2_Dense" / "model.safetensors")
    with pytest.raises(ConfigError, match=r"MODELS\.m\.TYPE: .* makes no vectors"):
        load(source)


def test_the_tokenizer_and_the_model_may_lie_in_a_folder(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "0_Transformer").symlink_to(bert)
    write(tmp_path, {"modules.json": [{**TRANSFORMER, "path": "0_Transformer"}, POOLING, NORMALIZE]})
    expected = functional.normalize(plain(bert, lambda hidden: hidden.mean(0)), dim=-1)
    torch.testing.assert_close(embed_texts(load(tmp_path)), expected, atol=1e-5, rtol=0)
