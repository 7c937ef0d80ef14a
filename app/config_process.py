"""Owns the keys of config.json that say how the process behaves: ports, tokens' directory, reload, limits on connections.

`app.config.Config` is made of them and of the keys about models. Reads nothing.
"""

from typing import Annotated, Literal

from msgspec import Struct

from app.config_keys import END, doc, expected_text, number, whole

_Port = Annotated[int, whole("", 0, 65535)]


class ProcessSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="upper"):
    """Keys of the file's top level; none of them is about a model. `app.reload` knows which can change at run time."""

    metrics_port: Annotated[
        _Port | None,
        doc(
            "Port of its own for /metrics and the probes, both without a token; PORT then has the probes and no /metrics. "
            "0 takes any free one; null: everything is on PORT.",
            f"{expected_text(_Port)}, or null",
        ),
    ] = None
    metrics_aliases: Annotated[
        Literal["vllm"] | None,
        doc(
            "Serve the metrics under the names of another server too, for dashboards, autoscalers and endpoint pickers "
            "that know those.",
            '"vllm" or null',
        ),
    ] = None
    bearer_tokens_dir: Annotated[
        Annotated[str, doc("", "a path", pattern=rf"^[^\x00-\x1f\x7f]+{END}")] | None,
        doc(
            "Directory with one file per token, such as a mounted Secret; a file's name is its client's name in the log. "
            "Its tokens are added to BEARER_TOKENS.",
            "the path of a directory or null",
        ),
    ] = None
    reload_interval: Annotated[
        float,
        number("Seconds between looks at this file and at BEARER_TOKENS_DIR for changes; 0: only on SIGHUP.", 0, 3600),
    ] = 5.0
    model_reload: Annotated[
        Literal["swap", "replace", "restart"],
        doc(
            "How a change of MODELS is applied at run time: swap loads new models beside the old ones, replace frees the old "
            "ones first, restart leaves it to the next start.",
            '"swap", "replace" or "restart"',
        ),
    ] = "swap"
    drain_delay: Annotated[
        float,
        number("Seconds of serving on after SIGTERM, not ready, while load balancers take notice.", 0, 3600),
    ] = 5.0
    stall_timeout: Annotated[
        float,
        number("Seconds without a step after which a busy engine makes /livez fail; 0: never.", 0, 86400),
    ] = 600.0
    header_timeout: Annotated[float, number("Seconds that a client may take to send a request's head.", 0.1, 3600)] = 10.0
    body_timeout: Annotated[float, number("Seconds that a client may take to send a request's body.", 0.1, 3600)] = 30.0
    write_timeout: Annotated[
        float,
        number("Seconds that a client may leave a full buffer unread before its request is aborted.", 0.1, 3600),
    ] = 30.0
    keep_alive_timeout: Annotated[
        float,
        number("Seconds that an idle connection stays open; should be more than a load balancer's own idle time.", 1, 3600),
    ] = 75.0
    max_connections: Annotated[
        int, whole("Connections that may be open at the same time; further ones get status 503.", 1, 1000000)
    ] = 1000
    max_header_bytes: Annotated[
        int, whole("Largest head of a request in bytes, its first line included; a larger one gets status 431.", 1024, 1048576)
    ] = 32768
    response_store_max: Annotated[
        int, whole("Responses of /v1/responses that are kept, the longest unused going first; 0 keeps none.", 0)
    ] = 1000
    response_store_bytes: Annotated[int, whole("Bytes that all kept responses may take together.", 1024)] = 64 * 1024 * 1024
    response_store_ttl: Annotated[float, number("Seconds that a response is kept after its last use.", 1, 31536000)] = 86400.0
