"""What `helm test` runs in a pod of its own: one check of the API through the Service. Needs the standard library only.

Usage: helm_test.py CHECK BASE_URL MODEL [TOKENS_DIR]
"""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHECK, BASE, MODEL = sys.argv[1:4]
TOKENS = Path(sys.argv[4]) if len(sys.argv) > 4 else None


def token() -> str | None:
    """Return any of the tokens that the server was given too."""
    files = sorted(path for path in TOKENS.iterdir() if not path.name.startswith(".")) if TOKENS else []
    return files[0].read_text().strip() if files else None


def ask(path: str, body: dict[str, Any] | None = None, bearer: str | None = None) -> Any:
    request = urllib.request.Request(BASE + path, headers={"Content-Type": "application/json"})
    if bearer:
        request.add_header("Authorization", f"Bearer {bearer}")
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(request, data, timeout=120)


def models() -> str:
    names = [model["id"] for model in json.load(ask("/v1/models", bearer=token()))["data"]]
    assert MODEL in names, f"{MODEL} is not among {names}"
    return ", ".join(names)


def completion() -> str:
    body = {"model": MODEL, "prompt": "the 3rd of March 2024", "max_tokens": 16}
    answer = json.load(ask("/v1/completions", body, token()))
    assert answer["choices"][0]["finish_reason"] in ("stop", "length"), answer
    assert answer["usage"]["completion_tokens"] > 0, answer
    return repr(answer["choices"][0]["text"])


def embedding() -> str:
    answer = json.load(ask("/v1/embeddings", {"model": MODEL, "input": "How do I change the port?"}, token()))
    vector = answer["data"][0]["embedding"]
    assert any(vector), answer
    return f"{len(vector)} numbers"


def chat() -> str:
    messages = [{"role": "user", "content": "How do I change the port?"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 32, "stream": True}
    answer = ask("/v1/chat/completions", body, token())
    assert answer.headers["Content-Type"].startswith("text/event-stream"), answer.headers["Content-Type"]
    events = [line[6:].decode().strip() for line in answer if line.startswith(b"data: ")]
    assert events[-1] == "[DONE]", events[-1:]
    chunks = [json.loads(event) for event in events[:-1]]
    assert not any("error" in chunk for chunk in chunks), chunks
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[-1]["finish_reason"] in ("stop", "length"), choices
    return repr("".join(choice["delta"].get("content") or "" for choice in choices))


def unauthorized() -> str:
    for bearer in (None, "not-a-token"):
        try:
            status = ask("/v1/models", bearer=bearer).status
        except urllib.error.HTTPError as error:
            status = error.code
        assert status == 401, f"status {status} with the token {bearer}"
    return "401, without a token and with a wrong one"


print(f"{CHECK}: {globals()[CHECK]()}")
