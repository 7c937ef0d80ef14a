"""Owns POST /v1/responses, and counting its input. Knows neither how a conversation runs nor how its output becomes events."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgspec
from litestar import Request, post

from app.api.context import Context
from app.api.conversation import Conversation, Step
from app.api.generate import Generation
from app.api.lenient import may_be_lenient
from app.api.openapi import documented
from app.api.request_state import RequestState
from app.api.requests import read_body, respond, unless_disconnected
from app.api.response_events import Event, OutputBuilder
from app.api.response_input import ResponseInput
from app.api.response_store import Responses, Stored
from app.api.schemas.response_items import new_item_id
from app.api.schemas.response_objects import (
    EffectiveReasoning,
    EffectiveText,
    IncompleteDetails,
    InputTokens,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from app.api.schemas.responses import REFUSED, REFUSED_FOR_COUNT, InputTokensRequest, ResponseRequest
from app.api.schemas.tiers import served_tier, tier_priority
from app.api.sse import Framing, told
from app.engine.sequence import FinishReason
from app.errors import InvalidRequest, RequestError, UnsupportedParameter

_FRAMING = Framing(named=True)


@post(
    "/v1/responses",
    status_code=200,
    operation_class=documented("Create a response", ResponseRequest, ResponseObject, streams=True),
)
@may_be_lenient
async def create_response(request: Request[Any, Any, Any], context: Context) -> Any:
    body = await read_body(request, ResponseRequest, REFUSED)
    body.check()
    store = context.responses_of(request.scope)
    if body.store and not store.max_responses:
        raise UnsupportedParameter("`store` true is not supported: this server stores no responses.", param="store")
    asked = ResponseInput.of(body, store, RequestState.of(request.scope).salt)
    generation = context.begin(request.scope, body.model, 1, "response")
    return await respond(request, _Answer(body, generation, asked, store), stream=bool(body.stream), framing=_FRAMING)


@post(
    "/v1/responses/input_tokens",
    status_code=200,
    operation_class=documented("Count the tokens of a response's input", InputTokensRequest, InputTokens),
)
@may_be_lenient
async def count_input_tokens(request: Request[Any, Any, Any], context: Context) -> Any:
    body = await read_body(request, InputTokensRequest, REFUSED_FOR_COUNT)
    if body.input is None and body.previous_response_id is None:
        raise InvalidRequest("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    asked = ResponseInput.of(body, context.responses, RequestState.of(request.scope).salt)
    generation = context.begin(request.scope, body.model, 1, "input_tokens")

    async def count() -> InputTokens:
        await asyncio.to_thread(asked.read)
        _, rendered = await asked.render(generation.model, num_output_tokens=1)
        return InputTokens(len(rendered.ids))

    return await unless_disconnected(request, count())


def _format(body: ResponseRequest) -> dict[str, Any]:
    wanted = None if body.text is None else body.text.format
    return {"type": "text"} if wanted is None else msgspec.to_builtins(wanted)


class _Answer:
    """Submits the input and turns its generation into the response object, or into its events; stores the former."""

    def __init__(self, body: ResponseRequest, generation: Generation, asked: ResponseInput, store: Responses) -> None:
        self._body = body
        self._asked = asked
        self._conversation = Conversation(generation)
        self._builder = OutputBuilder()
        self._is_stored = body.store is not False and store.max_responses > 0
        self._keep = store.keeper(generation.salt, asked.before, wanted=self._is_stored)
        self._response: ResponseObject

    async def submit(self) -> None:
        body, conversation = self._body, self._conversation
        await asyncio.to_thread(self._asked.read)
        loaded = conversation.model.loaded
        request = body.sampling_request(
            loaded.vocab_size,
            n=1,
            logprobs=body.num_logprobs,
            **body.sampling_extras(loaded.vocab_size, loaded.tokenizer),
        )
        if tier_priority(body.service_tier):
            request = replace(request, priority=tier_priority(body.service_tier))
        prompt, rendered = await self._asked.render(conversation.model, num_output_tokens=body.max_output_tokens or 1)
        await conversation.submit_rendered(
            replace(prompt, constraint=body.constraint),
            rendered,
            request,
            max_tokens=body.max_output_tokens,
            options=body.output_options,
            what="input",
        )
        self._response = self._begun()

    def _begun(self) -> ResponseObject:
        body, asked, params = self._body, self._asked, self._conversation.params
        return ResponseObject(
            id=new_item_id("resp"),
            created_at=int(time.time()),
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            max_tool_calls=body.max_tool_calls,
            model=self._conversation.model.name,
            output=self._builder.output,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=body.previous_response_id,
            prompt_cache_key=body.prompt_cache_key,
            prompt_cache_retention=body.prompt_cache_retention,
            reasoning=EffectiveReasoning(asked.reasoning.effort, asked.reasoning.summary or asked.reasoning.generate_summary),
            safety_identifier=body.safety_identifier,
            service_tier=served_tier(body.service_tier),
            store=self._is_stored,
            temperature=params.temperature,
            text=EffectiveText(_format(body), asked.verbosity or "medium"),
            tool_choice=body.tool_choice or "auto",
            tools=asked.tools,
            top_logprobs=body.top_logprobs or 0,
            top_p=params.top_p,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            truncation=body.truncation or "disabled",
            user=body.user,
            metadata=body.metadata or {},
        )

    async def whole(self) -> ResponseObject:
        async for step in self._conversation.steps():
            self._builder.feed(step.deltas, step.tokens)
        self._builder.finish(is_cut=self._is_cut)
        await self._end()
        return self._response

    async def chunks(self) -> AsyncIterator[Event]:
        """Yield the events. The first waits for the model's first step: until then, a failure has a status of its own."""
        builder, steps = self._builder, self._conversation.steps()
        first: Step | None = await anext(steps)
        yield builder.event("response.created", response=self._response)
        yield builder.event("response.in_progress", response=self._response)
        try:
            step = first
            while step is not None:
                for event in builder.feed(step.deltas, step.tokens):
                    yield event
                step = await anext(steps, None)
            for event in builder.finish(is_cut=self._is_cut):
                yield event
            await self._end()
            yield builder.event(f"response.{self._response.status}", response=self._response)
        except Exception as error:
            for event in self._failed(told(error)):
                yield event

    @property
    def _is_cut(self) -> bool:
        return self._conversation.choices[0].finish_reason is FinishReason.LENGTH

    async def _end(self) -> None:
        response = self._response
        response.status = "incomplete" if self._is_cut else "completed"
        if self._is_cut:
            response.incomplete_details = IncompleteDetails("max_output_tokens")
        else:
            response.completed_at = int(time.time())
        response.usage = ResponseUsage.of(await self._conversation.usage())
        self._store()

    def _failed(self, error: RequestError) -> list[Event]:
        """End a stream that has begun. Clients look for one or the other event, and for fields inside `error` or beside it."""
        response = self._response
        self._builder.fail()
        response.status = "failed"
        response.error = ResponseError("server_error", str(error))
        self._store()
        fields = error.body()["error"]
        more = {name: fields[name] for name in ("code", "message", "param")}
        return [
            self._builder.event("response.failed", response=response),
            self._builder.event("error", **more, error=fields),
        ]

    def _store(self) -> None:
        if self._keep is None:
            return
        response = self._response
        ids = tuple(dict.fromkeys(item["id"] for item in (*self._asked.items, *response.output)))
        stored = Stored(
            response.id,
            msgspec.json.encode(response),
            msgspec.json.encode(self._asked.items),
            ids,
            response.previous_response_id,
        )
        # One that is larger than the whole store is not kept, and says so.
        response.store = self._keep(stored)
