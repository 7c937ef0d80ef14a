"""Owns POST /v1/responses, and counting its input. Knows neither how a conversation runs nor how its output becomes events."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from litestar import Request, post

from app.api.context import Context
from app.api.conversation import ChatPrompt, Conversation, Rendered, Step, render
from app.api.generate import Generation
from app.api.lenient import may_be_lenient
from app.api.openapi import documented
from app.api.request_state import RequestState
from app.api.requests import read_body, respond, unless_disconnected
from app.api.response_events import Event, OutputBuilder
from app.api.response_messages import drop_oldest, template_messages
from app.api.response_store import ResponseStore, Stored
from app.api.schemas.response_items import Item, new_item_id, read_input, references
from app.api.schemas.response_objects import (
    EffectiveReasoning,
    EffectiveText,
    IncompleteDetails,
    InputTokens,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from app.api.schemas.responses import (
    REFUSED,
    REFUSED_FOR_COUNT,
    InputTokensRequest,
    ReasoningOptions,
    ResponseRequest,
    offered_tools,
    read_reasoning,
    read_tools,
    template_variables,
)
from app.api.schemas.tiers import served_tier, tier_priority
from app.api.schemas.tools import OfferedTools
from app.api.sse import Framing, told
from app.engine.sequence import FinishReason
from app.errors import ContextLengthExceeded, InvalidRequest, RequestError, UnsupportedParameter
from app.registry import ServedModel

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
    store = context.responses
    if body.store and not store.max_responses:
        raise UnsupportedParameter("`store` true is not supported: this server stores no responses.", param="store")
    asked = _Asked.of(body, store, RequestState.of(request.scope).salt)
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
    asked = _Asked.of(body, context.responses, RequestState.of(request.scope).salt)
    generation = context.begin(request.scope, body.model, 1, "input_tokens")

    async def count() -> InputTokens:
        await asyncio.to_thread(asked.read)
        _, rendered = await asked.render(generation.model, num_output_tokens=1)
        return InputTokens(len(rendered.ids))

    return await unless_disconnected(request, count())


@dataclass(slots=True)
class _Asked:
    """What a request shows the model: the stored responses before it, its own items, its tools.

    `read` makes `items` (the request's own) and `messages`, the first `num_kept` of them from `instructions`.
    """

    body: ResponseRequest | InputTokensRequest
    before: Sequence[Stored]
    referenced: Mapping[str, Stored]
    tools: list[dict[str, Any]]
    offered: OfferedTools
    reasoning: ReasoningOptions
    items: Sequence[Item] = ()
    messages: Sequence[dict[str, Any]] = ()
    num_kept: int = 0

    @classmethod
    def of(cls, body: ResponseRequest | InputTokensRequest, store: ResponseStore, salt: str) -> "_Asked":
        """Check what can be checked at once, and look up what is stored; raise what refuses the request."""
        before: Sequence[Stored] = ()
        if body.previous_response_id is not None:
            before = store.chain(salt, body.previous_response_id) or ()
            if not before:
                raise InvalidRequest(
                    f"Previous response with id '{body.previous_response_id}' not found.",
                    param="previous_response_id",
                    code="previous_response_not_found",
                )
        found = {item_id: store.with_item(salt, item_id) for item_id in references(body.input)}
        tools = read_tools(body)
        return cls(
            body,
            before,
            {item_id: stored for item_id, stored in found.items() if stored is not None},
            tools,
            offered_tools(body, tools),
            read_reasoning(body),
        )

    @property
    def verbosity(self) -> str | None:
        return None if self.body.text is None else self.body.text.verbosity

    def read(self) -> None:
        """Make items and messages. Stored responses may be large: not for the event loop."""
        items_of: dict[str, dict[str, Item]] = {}

        def find(item_id: str) -> Item | None:
            stored = self.referenced.get(item_id)
            if stored is None:
                return None
            if stored.id not in items_of:
                items_of[stored.id] = {item["id"]: item for item in _items(stored)}
            return items_of[stored.id][item_id]

        self.items = read_input(self.body.input, find)
        messages = template_messages([*(item for stored in self.before for item in _items(stored)), *self.items])
        if self.body.instructions:
            messages.insert(0, {"role": "system", "content": self.body.instructions})
            self.num_kept = 1
        self.messages = messages

    async def render(self, model: ServedModel, *, num_output_tokens: int) -> tuple[ChatPrompt, Rendered]:
        """Return the prompt, without its oldest messages where `truncation` allows it and there is no room for them."""
        prompt = ChatPrompt(
            messages=self.messages,
            offered=self.offered,
            variables=template_variables(self.reasoning, self.verbosity, model.loaded.chat),
        )

        async def fitting(messages: list[dict[str, Any]]) -> Rendered | None:
            rendered = await _render(model, replace(prompt, messages=messages))
            try:
                model.check_length(len(rendered.ids), num_output_tokens, what="input")
            except ContextLengthExceeded:
                return None
            return rendered

        rendered = None
        if self.body.truncation == "auto":
            rendered = await drop_oldest(self.messages, self.num_kept, fitting)
        return prompt, await _render(model, prompt) if rendered is None else rendered


async def _render(model: ServedModel, prompt: ChatPrompt) -> Rendered:
    try:
        return await render(model, prompt)
    except InvalidRequest as error:
        if error.param == "messages":
            error.param = "input"
        raise


def _items(stored: Stored) -> list[Item]:
    return [*msgspec.json.decode(stored.input), *msgspec.json.decode(stored.response)["output"]]


def _format(body: ResponseRequest) -> dict[str, Any]:
    wanted = None if body.text is None else body.text.format
    return {"type": "text"} if wanted is None else msgspec.to_builtins(wanted)


class _Answer:
    """Submits the input and turns its generation into the response object, or into its events; stores the former."""

    def __init__(self, body: ResponseRequest, generation: Generation, asked: _Asked, store: ResponseStore) -> None:
        self._body = body
        self._asked = asked
        self._conversation = Conversation(generation)
        self._builder = OutputBuilder()
        self._keep: Callable[[Stored], bool] | None = None
        if body.store is not False and store.max_responses:
            salt = generation.salt
            self._keep = lambda stored: store.put(salt, stored)
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
            store=self._keep is not None,
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
