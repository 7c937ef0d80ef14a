"""Loading: what is served, and one readable line for everything that can not be."""

import json
from pathlib import Path

import pytest
import torch

from app.config import ModelSettings, ModelType
from app.engine import loader
from app.engine.sequence import FinishReason, SamplingParams
from app.errors import ConfigError
from app.loading import load_model
from tests.support.tiny import EOS, save_tiny, tiny_model

PATH = "MODELS.m"


def settings(
    name: Path | str, type: ModelType = ModelType.CAUSAL_LM, device: str | None = "cpu", **more: object
) -> ModelSettings:
    return ModelSettings(name=str(name), type=type, model_device=device, **more)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for kind in ("llama", "t5", "opt"):
        save_tiny(kind, root / kind)
    return root


def load(given: ModelSettings) -> loader.LoadedModel:
    return loader.load("m", given.name, given, PATH, lambda share: None)


def test_a_causal_model_is_described(models: Path) -> None:
    shares: list[float] = []
    given = settings(models / "llama")
    loaded = loader.load("m", given.name, given, PATH, shares.append)
    assert (loaded.is_encoder_decoder, loaded.context_length, loaded.vocab_size) == (False, 512, 259)
    assert (loaded.runner, loaded.device, loaded.dtype) == ("paged", "cpu", "float32")
    assert loaded.defaults.eos_token_ids == {EOS}
    assert shares[-1] == 1.0
    loaded.engine.stop()


def test_an_encoder_decoder_without_limit_gets_the_fallback(models: Path) -> None:
    loaded = load(settings(models / "t5", ModelType.SEQ2SEQ))
    assert (loaded.is_encoder_decoder, loaded.num_decoder_start_tokens) == (True, 1)
    assert loaded.context_length == loader.FALLBACK_CONTEXT_LENGTH
    assert loaded.runner == "seq2seq"
    loaded.engine.stop()


def test_beams_by_default_run_one_by_one(models: Path) -> None:
    loaded = load(settings(models / "t5", ModelType.SEQ2SEQ, generate_config={"num_beams": 3}))
    assert loaded.runner == "sequential"
    loaded.engine.stop()


def test_an_encoder_decoder_with_relative_positions_takes_any_limit(tmp_path: Path) -> None:
    """T5's n_positions is no limit: its position embedding is relative."""
    save_tiny("t5", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_positions": 512}))
    loaded = load(settings(tmp_path, ModelType.SEQ2SEQ, max_model_len=9000))
    assert loaded.context_length == 9000
    loaded.engine.stop()


@pytest.mark.parametrize(
    "options", [{"cache_implementation": "hybrid"}, {"cache_implementation": "static"}, {"use_cache": False}]
)
async def test_the_models_own_cache_options_do_not_matter(tmp_path: Path, options: dict[str, object]) -> None:
    for kind, type in (("opt", ModelType.CAUSAL_LM), ("t5", ModelType.SEQ2SEQ)):
        directory = save_tiny(kind, tmp_path / kind)
        own = json.loads((directory / "generation_config.json").read_text())
        (directory / "generation_config.json").write_text(json.dumps({**own, **options}))
        loaded = load(settings(directory, type))
        outputs = [output async for output in loaded.engine.submit([5, 6, 7], SamplingParams(max_tokens=3))]
        assert outputs[-1].finish_reason is FinishReason.LENGTH
        loaded.engine.stop()


@pytest.mark.parametrize(
    "generate_config",
    [{"bad_words_ids": "x"}, {"forced_bos_token_id": 10**9}, {"do_sample": True, "num_beams": 4}],
    ids=str,
)
def test_options_that_do_not_work_stop_the_start(models: Path, generate_config: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^MODELS\.m\.GENERATE_CONFIG: "):
        load(settings(models / "llama", generate_config=generate_config))


def test_the_length_fits_the_kv_memory(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.memory.free_memory", lambda device: 400_000)
    loaded = load(settings(models / "llama", kv_cache_memory_fraction=0.5))
    assert 16 <= loaded.context_length < 512
    assert loaded.context_length % 16 == 0
    loaded.engine.stop()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtype_by_name(models: Path, dtype: str) -> None:
    loaded = load(settings(models / "opt", model_config={"dtype": dtype}))
    assert loaded.dtype == dtype
    loaded.engine.stop()


def test_device_map_places_the_model(models: Path) -> None:
    loaded = load(settings(models / "opt", device=None, model_config={"device_map": "auto"}))
    assert loaded.device == ("cuda:0" if torch.cuda.is_available() else "cpu")
    loaded.engine.stop()


def test_auto_takes_what_is_there(models: Path) -> None:
    loaded = load(settings(models / "opt", device="auto"))
    assert loaded.device.partition(":")[0] == ("cuda" if torch.cuda.is_available() else "cpu")
    loaded.engine.stop()


def test_max_model_len(models: Path) -> None:
    loaded = load(settings(models / "llama", max_model_len=100))
    assert loaded.context_length == 100
    loaded.engine.stop()
    with pytest.raises(ConfigError, match=r"MODELS\.m\.MAX_MODEL_LEN: found 513; expected at most 512"):
        load(settings(models / "llama", max_model_len=513))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_says_what_to_do(models: Path) -> None:
    with pytest.raises(ConfigError, match=r'^MODELS\.m\.MODEL_DEVICE: found "cuda".*set MODEL_DEVICE to "cpu"'):
        load(settings(models / "llama", device="cuda"))


@pytest.mark.parametrize(
    ("kind", "type", "text"),
    [("t5", ModelType.CAUSAL_LM, "TYPE"), ("llama", ModelType.SEQ2SEQ, "TYPE")],
)
def test_the_wrong_type_is_named(models: Path, kind: str, type: ModelType, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^MODELS\.m\.{text}: "):
        load(settings(models / kind, type))


def one_line(error: ConfigError) -> str:
    assert "\n" not in str(error)
    assert len(str(error)) < 700
    return str(error)


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(settings(tmp_path / "nothing"))
    assert one_line(caught.value).startswith("MODELS.m.NAME: ")


def test_a_hub_id_that_can_not_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as caught:
        load(settings("nobody/nothing-of-this-name"))
    assert one_line(caught.value).startswith("MODELS.m.NAME: ")


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        load(settings(tmp_path))
    assert one_line(caught.value).startswith("MODELS.m.NAME: ")


def test_broken_weights(tmp_path: Path) -> None:
    save_tiny("opt", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ConfigError) as caught:
        load(settings(tmp_path))
    assert one_line(caught.value).startswith("MODELS.m.NAME: ")


def test_pickled_weights_are_refused_unless_asked_for(tmp_path: Path) -> None:
    save_tiny("opt", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny_model("opt").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="use_safetensors false"):
        load(settings(tmp_path))
    loaded = load(settings(tmp_path, model_config={"use_safetensors": False}))
    loaded.engine.stop()


def test_code_in_a_model_directory_is_not_run(tmp_path: Path) -> None:
    save_tiny("opt", tmp_path)
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    config = (tmp_path / "config.json").read_text()
    auto_map = '"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}'
    config = config.replace('"model_type": "opt"', f'"model_type": "evil", {auto_map}')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError):
        load(settings(tmp_path))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("generate_config", "place"),
    [
        ({"typical_p": 0.5}, r"MODELS\.m\.GENERATE_CONFIG\.typical_p"),
        ({"guidance_scale": 2.0}, r"MODELS\.m\.GENERATE_CONFIG\.guidance_scale"),
        ({"no_such_option": 1}, r"MODELS\.m\.GENERATE_CONFIG\.no_such_option"),
        ({"use_cache": False}, r"MODELS\.m\.GENERATE_CONFIG\.use_cache"),
    ],
    ids=str,
)
def test_options_that_can_not_be_honoured_are_refused_by_name(
    models: Path, generate_config: dict[str, object], place: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{place}: "):
        load(settings(models / "llama", generate_config=generate_config))


def test_neutral_values_of_refused_options_are_fine(models: Path) -> None:
    loaded = load(settings(models / "llama", generate_config={"typical_p": 1.0, "num_return_sequences": 1}))
    loaded.engine.stop()


def test_an_argument_that_the_model_does_not_know(models: Path) -> None:
    with pytest.raises(ConfigError, match=r"^MODELS\.m\.MODEL_CONFIG: "):
        load(settings(models / "llama", model_config={"no_such_argument": 3}))


def test_model_and_tokenizer_together(models: Path) -> None:
    loaded = load_model("m", settings(models / "opt"), PATH, lambda share: None)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("é🎉")) == "é🎉"
    loaded.engine.stop()


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    tiny_model("opt").save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_model("m", settings(tmp_path), PATH, lambda share: None)
    assert one_line(caught.value).startswith("MODELS.m.TOKENIZER_CONFIG: ")
