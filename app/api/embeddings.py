"""Owns /v1/embeddings: inputs to ids, vectors to the answer. Knows no pooling; what takes long runs off the event loop."""

import asyncio
import base64
import sys
from array import array
from typing import Any

import msgspec
from litestar import Request, Response, post

from app.api.context import Context
from app.api.embed import EmbeddingWork
from app.api.lenient import may_be_lenient
from app.api.openapi import documented
from app.api.requests import read_body, unless_disconnected
from app.api.schemas.embeddings import (
    MAX_TOTAL_TOKENS,
    Embedding,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingUsage,
)
from app.engine.pooling_job import PoolingInput
from app.errors import InvalidRequest
from app.registry import ServedModel


@post(
    "/v1/embeddings",
    status_code=200,
    operation_class=documented("Turn texts into vectors", EmbeddingRequest, EmbeddingList),
)
@may_be_lenient
async def create_embeddings(request: Request[Any, Any, Any], context: Context) -> Any:
    return await _embed(request, context, await read_body(request, EmbeddingRequest, {}))


@post(
    "/v1/engines/{model_name:str}/embeddings",
    status_code=200,
    operation_class=documented("Turn texts into vectors (legacy path)", EmbeddingRequest, EmbeddingList),
)
@may_be_lenient
async def create_engine_embeddings(request: Request[Any, Any, Any], context: Context, model_name: str) -> Any:
    """The path names the model, as in OpenAI's API of 2022."""
    body = await read_body(request, EmbeddingRequest, {}, {"model": model_name})
    if body.model != model_name:
        raise InvalidRequest(f"`model` ({body.model[:100]}) is not the model of the path ({model_name[:100]}).", param="model")
    return await _embed(request, context, body)


async def _embed(request: Request[Any, Any, Any], context: Context, body: EmbeddingRequest) -> Response[bytes]:
    body.check()
    given = body.inputs
    work = context.begin_embeddings(request.scope, body.model)
    content = await unless_disconnected(request, _answer(work, body, given))
    return Response(content, media_type="application/json")


async def _answer(work: EmbeddingWork, body: EmbeddingRequest, given: list[str | list[int]]) -> bytes:
    model = work.model
    inputs = await asyncio.to_thread(_encode, model, body, given)
    vectors = await work.vectors(inputs)
    num_tokens = sum(len(one.ids) for one in inputs)
    return await asyncio.to_thread(_write, model.name, vectors, body.encoding_format == "base64", num_tokens)


def _encode(model: ServedModel, body: EmbeddingRequest, given: list[str | list[int]]) -> list[PoolingInput]:
    """Return the inputs as ids within the model's limits; raise InvalidRequest for what does not fit."""
    loaded = model.encoder
    dimensions = body.dimensions
    if dimensions is None:
        dimensions = loaded.files.dimensions
    elif dimensions > loaded.num_dimensions:
        raise InvalidRequest(
            f"`dimensions` is {dimensions}; vectors of this model have {loaded.num_dimensions}.", param="dimensions"
        )
    limit = loaded.context_length
    shorten = body.truncate_prompt_tokens
    if shorten is not None and shorten > limit:
        raise InvalidRequest(
            f"`truncate_prompt_tokens` is {shorten}; this model takes {limit}.", param="truncate_prompt_tokens"
        )
    max_tokens = limit if shorten == -1 else shorten
    texts = [item for item in given if isinstance(item, str)]
    prompt = loaded.sentences.prompt(body.prompt_name)
    encoded = loaded.sentences.encode(texts, prompt=prompt, max_tokens=max_tokens) if texts else []
    inputs: list[PoolingInput] = []
    num_tokens = 0
    for index, item in enumerate(given):
        place = f"input.[{index}]" if _is_list_of_inputs(body) else "input"
        if isinstance(item, str):
            ids, num_prompt_tokens = encoded[index].ids, encoded[index].num_prompt_tokens
        else:
            _check_ids(item, loaded.vocab_size, place)
            ids, num_prompt_tokens = tuple(item[:max_tokens]), 0
        if not ids:
            raise InvalidRequest(f"`{place}` has no tokens.", param=place)
        if len(ids) > limit:
            raise InvalidRequest(
                f"This model's maximum context length is {limit} tokens. However, `{place}` has {len(ids)} tokens. Please "
                "reduce its length, or send `truncate_prompt_tokens: -1`.",
                param=place,
                code="context_length_exceeded",
            )
        num_tokens += len(ids)
        if num_tokens > MAX_TOTAL_TOKENS:
            raise InvalidRequest(
                f"The inputs have more than {MAX_TOTAL_TOKENS} tokens together; send them in several requests.",
                param="input",
                code="max_tokens_per_request",
            )
        inputs.append(PoolingInput(ids, num_prompt_tokens, dimensions))
    return inputs


def _is_list_of_inputs(body: EmbeddingRequest) -> bool:
    return isinstance(body.input, list) and not isinstance(body.input[0], int)


def _check_ids(ids: list[int], vocab_size: int, place: str) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"`{place}`: {token_id} is no token id of this model (0 to {vocab_size - 1}). Ids from another tokenizer mean "
                "nothing to it: langchain-openai sends such unless OpenAIEmbeddings has check_embedding_ctx_length=False.",
                param=place,
            )


def _write(name: str, vectors: list[bytes], as_base64: bool, num_tokens: int) -> bytes:
    """Return the answer as JSON: millions of numbers would hold up everybody else on the event loop."""
    data = [
        Embedding(index=index, embedding=base64.b64encode(vector).decode() if as_base64 else _numbers(vector))
        for index, vector in enumerate(vectors)
    ]
    answer = EmbeddingList(data=data, model=name, usage=EmbeddingUsage(num_tokens, num_tokens))
    return msgspec.json.encode(answer)


def _numbers(vector: bytes) -> list[float]:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
