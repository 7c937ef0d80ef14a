"""Owns the tests of the OpenAPI document and its page."""

import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.api.conftest import Serve
from tests.support.live import MODEL, LiveServer


@pytest.fixture(scope="module")
def document(counting: LiveServer) -> dict[str, Any]:
    response = counting.http.get("/openapi.json")
    assert response.status_code == 200
    result: dict[str, Any] = response.json()
    return result


def refs_of(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in refs_of(value)]
    return [ref for value in node for ref in refs_of(value)] if isinstance(node, list) else []


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    refs = refs_of(document)
    assert len(refs) > 20
    for ref in refs:
        node: Any = document
        assert ref.startswith("#/")
        for part in ref.removeprefix("#/").split("/"):
            assert part in node, ref
            node = node[part]


def test_every_route_is_there(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.")
    assert {
        *("/v1/completions", "/v1/engines/{model_name}/completions", "/v1/chat/completions", "/v1/models"),
        *("/v1/models/{model_name}", "/v1/engines", "/livez", "/readyz", "/startupz", "/health", "/metrics", "/v1/metrics"),
        *("/v1/embeddings", "/v1/engines/{model_name}/embeddings", "/v1/decisions", "/v1/systemone"),
        *("/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize", "/tokenizer_info", "/version", "/load"),
        *("/v1/responses", "/v1/responses/compact", "/v1/responses/input_tokens", "/v1/responses/{response_id}"),
        *("/v1/messages", "/v1/messages/count_tokens"),
        *("/v1/responses/{response_id}/cancel", "/v1/responses/{response_id}/input_items"),
    } == set(document["paths"])


def test_every_operation_says_what_it_does(document: dict[str, Any]) -> None:
    operations = [(path, one) for path, item in document["paths"].items() for one in item.values() if isinstance(one, dict)]
    assert len({one["operationId"] for _, one in operations}) == len(operations)
    for path, operation in operations:
        assert operation["summary"], path
        assert "200" in operation["responses"], path


def test_every_post_documents_its_body_and_its_errors(document: dict[str, Any]) -> None:
    posts = {path: item["post"] for path, item in document["paths"].items() if "post" in item}
    posts.pop("/v1/responses/{response_id}/cancel")  # has no body
    bodies = {
        "/v1/responses": "ResponseRequest",
        "/v1/responses/compact": "CompactRequest",
        "/v1/responses/input_tokens": "InputTokensRequest",
        "/v1/messages": "MessagesRequest",
        "/v1/messages/count_tokens": "CountTokensRequest",
        "/v1/chat/completions": "ChatRequest",
        "/v1/completions": "CompletionRequest",
        "/v1/engines/{model_name}/completions": "CompletionRequest",
        **dict.fromkeys(("/v1/embeddings", "/v1/engines/{model_name}/embeddings"), "EmbeddingRequest"),
        **dict.fromkeys(("/tokenize", "/v1/tokenize"), "TokenizeRequest"),
        "/v1/decisions": "DecisionRequest",
        "/v1/systemone": "SystemOneRequest",
        **dict.fromkeys(("/detokenize", "/v1/detokenize"), "DetokenizeRequest"),
    }
    assert set(posts) == set(bodies)
    for path, operation in posts.items():
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{bodies[path]}"}
        assert {"200", "400", "401", "404", "413", "415", "429", "500", "503"} <= set(operation["responses"])
        error = operation["responses"]["400"]["content"]["application/json"]["schema"]
        name = "AnthropicError" if path.startswith("/v1/messages") else "ErrorResponse"
        assert error == {"$ref": f"#/components/schemas/{name}"}
        streams = "text/event-stream" in operation["responses"]["200"]["content"]
        assert streams == path.endswith(("completions", "/responses", "/messages"))


def validator(document: dict[str, Any], name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]})


def test_answers_are_as_documented(document: dict[str, Any], counting: LiveServer) -> None:
    validator(document, "Completion").validate(counting.complete(logprobs=2, echo=True).json())
    validator(document, "ChatCompletion").validate(counting.chat(logprobs=True, top_logprobs=2, max_tokens=3).json())
    validator(document, "ModelList").validate(counting.http.get("/v1/models").json())
    validator(document, "ModelObject").validate(counting.http.get(f"/v1/models/{MODEL}").json())
    validator(document, "EngineList").validate(counting.http.get("/v1/engines").json())
    validator(document, "ErrorResponse").validate(counting.complete(n=0).json())
    message = {"model": MODEL, "max_tokens": 3, "messages": [{"role": "user", "content": "hello"}]}
    validator(document, "AnthropicMessage").validate(counting.http.post("/v1/messages", json=message).json())
    validator(document, "AnthropicError").validate(counting.http.post("/v1/messages", json={**message, "x": 1}).json())
    del message["max_tokens"]
    count = counting.http.post("/v1/messages/count_tokens", json=message)
    validator(document, "MessageTokensCount").validate(count.json())
    validator(document, "TokenizeResponse").validate(counting.http.post("/tokenize", json={"prompt": "a"}).json())
    validator(document, "DetokenizeResponse").validate(counting.http.post("/detokenize", json={"tokens": [5]}).json())
    validator(document, "TokenizerInfo").validate(counting.http.get("/tokenizer_info").json())
    validator(document, "Version").validate(counting.http.get("/version").json())
    validator(document, "Load").validate(counting.http.get("/load").json())


@pytest.mark.parametrize(
    ("body", "valid"),
    [
        ({"model": "m", "prompt": "a"}, True),
        ({"model": "m", "prompt": [[1, 2], [3]], "n": 2, "stop": ["a"]}, True),
        ({"model": "m", "n": None}, True),
        ({"prompt": "a"}, False),
        ({"model": "m", "n": 0}, False),
        ({"model": "m", "temperature": 3}, False),
        ({"model": "m", "stop": ["a"] * 5}, False),
        ({"model": "m", "nonsense": 1}, False),
    ],
    ids=repr,
)
def test_requests_are_as_documented(document: dict[str, Any], counting: LiveServer, body: dict[str, Any], valid: bool) -> None:
    assert validator(document, "CompletionRequest").is_valid(body) is valid
    response = counting.http.post("/v1/completions", json=body | ({"model": MODEL} if "model" in body else {}))
    assert (response.status_code == 200) is valid


def test_the_page_needs_nobody_else(counting: LiveServer) -> None:
    """It works in a cluster without internet, and tells nobody that it was opened."""
    response = counting.http.get("/docs")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert not re.findall(r"https?://(?!www\.w3\.org/)[^\s\"'<>]+|[\"']//[^\s\"']+", response.text)
    links = re.findall(r"""(?:src|href)=["']([^"']+)["']""", response.text)
    assets = [link for link in links if not link.startswith("data:")]
    assert len(assets) >= 3
    for link in assets:
        assert link.startswith("/")
        asset = counting.http.get(link)
        assert asset.status_code == 200 and len(asset.content) > 1000, link


def test_both_are_behind_the_token(serve: Serve) -> None:
    server = serve(bearer_tokens=("x",))
    assert server.http.get("/openapi.json").status_code == server.http.get("/docs").status_code == 200
    del server.http.headers["Authorization"]
    assert server.http.get("/openapi.json").status_code == server.http.get("/docs").status_code == 401
