"""Owns the tests of the model list, new and legacy."""

import threading
import time
from urllib.parse import quote

import pytest

from app.config import ModelType
from tests.api.conftest import Serve
from tests.support.fakes import FakeLoader
from tests.support.live import MODEL, assert_error, eventually


def test_one_model(serve: Serve) -> None:
    before = int(time.time())
    server = serve(FakeLoader(context_length=77))
    model = {
        "id": MODEL,
        "object": "model",
        "created": server.model.created,
        "owned_by": "tfoai",
        "root": MODEL,
        "state": "ready",
        "type": "CausalLM",
        "runner": "fake",
        "context_length": 77,
    }
    assert before <= model["created"] <= time.time()
    assert server.http.get("/v1/models").json() == {"object": "list", "data": [model]}
    # The name holds a slash; openai-python writes it as %2F, curl users as it is.
    assert server.http.get("/v1/models/fake/model").json() == model
    assert server.http.get("/v1/models/fake%2Fmodel").json() == model


def test_aliases_reach_their_model(serve: Serve) -> None:
    server = serve(names=("own", "other"), aliases={"gpt-4o": "other"})
    listed = server.http.get("/v1/models").json()["data"]
    assert [(model["id"], model["root"]) for model in listed] == [("own", "own"), ("other", "other"), ("gpt-4o", "other")]
    assert server.http.get("/v1/models/gpt-4o").json()["root"] == "other"
    assert server.complete(model="gpt-4o", max_tokens=1).json()["model"] == "other"


@pytest.mark.parametrize("name", ["plain", "a/b/c", "with.dot", "ümlaut", "q?x", "per%cent", "a:b@c+d"])
def test_any_served_name_can_be_retrieved(serve: Serve, name: str) -> None:
    server = serve(names=("other", name))
    for safe in ("", "/"):
        response = server.http.get(f"/v1/models/{quote(name, safe=safe)}")
        assert response.status_code == 200, response.text
        assert response.json()["id"] == name


def test_several_models_in_the_order_of_the_file(serve: Serve) -> None:
    server = serve(names=("b", "a", "c"), type=ModelType.SEQ2SEQ)
    data = server.http.get("/v1/models").json()["data"]
    assert [model["id"] for model in data] == ["b", "a", "c"]
    assert {model["type"] for model in data} == {"Seq2Seq"}


def test_unknown(serve: Serve) -> None:
    server = serve()
    error = assert_error(server.http.get("/v1/models/nope"), 404, param="model", code="model_not_found")
    assert error["message"] == "The model `nope` does not exist."
    error = assert_error(server.http.get("/v1/models/" + "x" * 5000), 404, code="model_not_found")
    assert len(error["message"]) < 300


def test_a_loading_model_is_listed(serve: Serve) -> None:
    gate = threading.Event()
    server = serve(FakeLoader(gate=gate), wait_ready=False)
    model = server.http.get(f"/v1/models/{MODEL}").json()
    assert model["state"] == "loading" and model["runner"] is None and model["context_length"] is None
    assert server.http.get("/v1/engines").json()["data"][0]["ready"] is False
    gate.set()
    eventually(lambda: server.registry.is_ready)
    assert server.http.get(f"/v1/models/{MODEL}").json()["state"] == "ready"


def test_engines_as_the_2023_server_listed_them(serve: Serve) -> None:
    assert serve(names=("a", "b")).http.get("/v1/engines").json() == {
        "object": "list",
        "data": [
            {"id": name, "object": "engine", "owner": "openai", "ready": True, "permissions": None, "created": None}
            for name in ("a", "b")
        ],
    }
