"""Owns the tests of authorization: every route of the application against every kind of header."""

import hmac
from collections.abc import Iterator

import pytest
from litestar import Litestar

from app.api.auth import PUBLIC_PATHS, BearerTokens, TokenRefused
from app.errors import Unauthorized
from tests.api.conftest import Serve
from tests.support.live import LiveServer, assert_error, live_server

TOKENS = ("first-token", "second-token")
PROBES = {"/livez", "/readyz", "/startupz", "/health"}


@pytest.fixture(scope="module")
def guarded() -> Iterator[LiveServer]:
    with live_server(bearer_tokens=TOKENS) as server:
        server.http.headers.pop("Authorization")
        yield server


def routes_of(app: Litestar) -> set[tuple[str, str]]:
    """Every method and path that the application answers, with something for the parameters."""
    found = set()
    for route in app.routes:
        path = "/".join("x" if part.startswith("{") else part for part in route.path_format.split("/"))
        found |= {(method, path) for method in getattr(route, "methods", ["GET"])}
    return found


def test_the_routes_are_found(guarded: LiveServer) -> None:
    """The tests below are worth nothing if the list is short."""
    routes = routes_of(guarded.app)
    assert len(routes) >= 14
    assert {("POST", "/v1/completions"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/livez")} <= routes


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        (None, False),
        ("", False),
        ("Bearer", False),
        ("Basic Zmlyc3QtdG9rZW4=", False),
        ("first-token", False),
        ("Bearer wrong", False),
        ("Bearer first-toke", False),
        ("Bearer first-tokenx", False),
        ("Bearer FIRST-TOKEN", False),
        ("Bearer first-token second-token", False),
        ("Bearerfirst-token", False),
        ("Bearer first-token", True),
        ("Bearer second-token", True),
        ("bearer first-token", True),
        ("BEARER first-token", True),
        ("Bearer   first-token", True),
    ],
)
def test_every_route(guarded: LiveServer, header: str | None, allowed: bool) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method, path in sorted(routes_of(guarded.app)):
        response = guarded.http.request(method, path, headers=headers)
        if allowed or path in PROBES:
            assert response.status_code != 401, (method, path)
        elif method == "HEAD":
            assert response.status_code == 401, (method, path)
        else:
            assert_error(response, 401, type="invalid_request_error", code="invalid_api_key", param="Authorization")
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"x-api-key": "first-token"}, True),
        ({"x-api-key": "second-token"}, True),
        ({"x-api-key": "wrong"}, False),
        ({"x-api-key": ""}, False),
        ({"x-api-key": "first-token", "Authorization": "Bearer second-token"}, True),
        ({"x-api-key": "first-token", "Authorization": "Bearer wrong"}, False),
        ({"x-api-key": "wrong", "Authorization": "Bearer first-token"}, True),
    ],
)
def test_anthropics_header(guarded: LiveServer, headers: dict[str, str], allowed: bool) -> None:
    for method, path in sorted(routes_of(guarded.app)):
        if path not in PROBES:
            assert (guarded.http.request(method, path, headers=headers).status_code != 401) is allowed, (method, path)


def test_a_key_of_spaces_is_none() -> None:
    with pytest.raises(TokenRefused) as refused:
        BearerTokens({"a": "b"}).check(None, b"  ")
    assert refused.value.reason == "missing"


def test_only_the_probes_are_open() -> None:
    assert PUBLIC_PATHS == PROBES


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nope",
        "/v1/nope",
        "/livez/",
        "/livez/x",
        "//livez",
        "/livez/../metrics",
        "/health%2f..%2fmetrics",
        "/LIVEZ",
        "/docs/assets/swagger-ui.css",
        "/docs/assets/nope",
    ],
)
def test_unknown_urls_do_not_tell_that_they_are_unknown(guarded: LiveServer, path: str) -> None:
    assert_error(guarded.http.get(path), 401, code="invalid_api_key")
    assert_error(guarded.http.put(path), 401, code="invalid_api_key")


def test_a_wrong_token_is_refused_before_the_body_is_read(guarded: LiveServer) -> None:
    response = guarded.http.post("/v1/completions", content=b"not json", headers={"Authorization": "Bearer x"})
    assert_error(response, 401)


def test_the_token_is_in_no_answer(guarded: LiveServer) -> None:
    response = guarded.http.get("/v1/models", headers={"Authorization": "Bearer some-secret-of-the-client"})
    assert "some-secret" not in response.text
    assert not any(token in response.text for token in TOKENS)


def test_bytes_that_are_no_text(guarded: LiveServer) -> None:
    assert_error(guarded.http.get("/v1/models", headers=[(b"Authorization", b"Bearer \xff\xfe")]), 401)


def test_without_tokens_everything_is_open(serve: Serve) -> None:
    server = serve()
    for method, path in sorted(routes_of(server.app)):
        assert server.http.request(method, path).status_code != 401, (method, path)


@pytest.mark.parametrize("sent", ["first", "second", "third", "none of them"])
def test_every_digest_is_compared(monkeypatch: pytest.MonkeyPatch, sent: str) -> None:
    """An early end would tell by its time which token it was."""
    tokens = BearerTokens({name: name for name in ("first", "second", "third")})
    compared = []
    real = hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    header = f"Bearer {sent}".encode()
    if sent == "none of them":
        with pytest.raises(Unauthorized):
            tokens.check(header)
    else:
        caller = tokens.check(header)
        assert caller is not None and caller.name == sent
    assert len(set(compared)) == 3


def test_failures_are_counted_by_reason(serve: Serve) -> None:
    server = serve(bearer_tokens=TOKENS)
    authorized = dict(server.http.headers)
    del server.http.headers["Authorization"]
    for header in (None, "Basic x", "Bearer x", "Bearer y"):
        server.http.get("/v1/models", headers={} if header is None else {"Authorization": header})
    text = server.http.get("/metrics", headers=authorized).text
    assert 'tfoai_auth_failures_total{reason="missing"} 1.0' in text
    assert 'tfoai_auth_failures_total{reason="malformed"} 1.0' in text
    assert 'tfoai_auth_failures_total{reason="unknown"} 2.0' in text
