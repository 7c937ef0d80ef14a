"""A model that is not served any more leaves its weights behind nowhere: registries, hooks, threads."""

import gc
import weakref
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from app.config import ModelSettings, ModelType
from app.loading import free_memory, load_model
from app.registry import stop_all
from app.served import ServedModel
from tests.support.tiny import save_tiny


def living() -> list[PreTrainedModel]:
    gc.unfreeze()  # loading freezes what is there, and what is frozen is not told of
    # By its type: asking some objects of torch for their __class__ warns.
    return [one for one in gc.get_objects() if issubclass(type(one), PreTrainedModel)]


@pytest.mark.parametrize(("kind", "model_type"), [("llama", ModelType.CAUSAL_LM), ("t5", ModelType.SEQ2SEQ)])
def test_an_unloaded_model_is_gone(tmp_path: Path, kind: str, model_type: ModelType) -> None:
    save_tiny(kind, tmp_path)
    gc.collect()
    before = {id(one) for one in living()}
    model = ServedModel("m", ModelSettings(name=str(tmp_path), type=model_type, model_device="cpu"), 1)
    model.load(load_model)
    loaded = [weakref.ref(one) for one in living() if id(one) not in before]
    assert loaded
    stop_all([model])
    model.unload()
    free_memory()
    assert [one() for one in loaded if one() is not None] == []
