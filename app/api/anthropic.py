"""Owns Anthropic's POST /v1/messages, and counting its tokens. Knows not how a conversation runs, nor how events are made."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from litestar import Request, post

from app.api.anthropic_events import Event, MessageBuilder
from app.api.anthropic_messages import continues, template_messages
from app.api.context import Context
from app.api.conversation import ChatPrompt, Conversation, Rendered, Step, render
from app.api.error_shapes import anthropic_error
from app.api.generate import Generation
from app.api.lenient import may_be_lenient
from app.api.openapi import documented
from app.api.request_state import RequestState
from app.api.requests import read_body, respond, unless_disconnected
from app.api.schemas.anthropic import REFUSED, REFUSED_FOR_COUNT, CountTokensRequest, MessagesRequest
from app.api.schemas.anthropic_objects import AnthropicError, AnthropicMessage, MessageTokensCount, MessageUsage, StopReason
from app.api.schemas.anthropic_tools import offered_tools
from app.api.schemas.response_items import new_item_id
from app.api.schemas.tools import OfferedTools
from app.api.sse import Framing, told
from app.engine.sequence import FinishReason
from app.errors import InvalidRequest
from app.registry import ServedModel
from app.text.output import OutputOptions

_FRAMING = Framing(named=True, end=b"")


@post(
    "/v1/messages",
    status_code=200,
    operation_class=documented("Create a message", MessagesRequest, AnthropicMessage, streams=True, error=AnthropicError),
)
@may_be_lenient
async def create_message(request: Request[Any, Any, Any], context: Context) -> Any:
    body = await read_body(request, MessagesRequest, REFUSED)
    body.check()
    asked = _Asked.of(body)
    generation = context.begin(request.scope, body.model, 1, "message")
    answer = _Answer(body, asked, generation, RequestState.of(request.scope).request_id)
    return await respond(request, answer, stream=bool(body.stream), framing=_FRAMING)


@post(
    "/v1/messages/count_tokens",
    status_code=200,
    operation_class=documented(
        "Count the tokens of a message's prompt", CountTokensRequest, MessageTokensCount, error=AnthropicError
    ),
)
@may_be_lenient
async def count_tokens(request: Request[Any, Any, Any], context: Context) -> Any:
    body = await read_body(request, CountTokensRequest, REFUSED_FOR_COUNT)
    body.check()
    asked = _Asked.of(body)
    generation = context.begin(request.scope, body.model, 1, "count_tokens")

    async def count() -> MessageTokensCount:
        _, rendered = await asked.render(generation.model)
        return MessageTokensCount(len(rendered.ids))

    return await unless_disconnected(request, count())


@dataclass(slots=True)
class _Asked:
    """What a request shows the model."""

    body: MessagesRequest | CountTokensRequest
    messages: list[dict[str, Any]]
    continues: bool
    offered: OfferedTools

    @classmethod
    def of(cls, body: MessagesRequest | CountTokensRequest) -> "_Asked":
        """Check what can be checked at once; raise what refuses the request."""
        messages = template_messages(body.system, body.messages)
        return cls(body, messages, continues(body.messages, messages), offered_tools(body.tools, body.tool_choice))

    async def render(self, model: ServedModel) -> tuple[ChatPrompt, Rendered]:
        prompt = ChatPrompt(
            messages=self.messages,
            offered=self.offered,
            constraint=self.body.constraint,
            variables=self.body.template_variables(model.loaded.chat),
            add_generation_prompt=not self.continues,
            continue_final_message=self.continues,
            max_thinking=self.body.budget_tokens,
            max_thinking_param="thinking.budget_tokens",
        )
        return prompt, await render(model, prompt)


class _Answer:
    """Submits the prompt and turns its generation into the message, or into its events."""

    def __init__(self, body: MessagesRequest, asked: _Asked, generation: Generation, request_id: str) -> None:
        self._body = body
        self._asked = asked
        self._request_id = request_id
        self._conversation = Conversation(generation)
        self._builder = MessageBuilder()
        self._id = new_item_id("msg")
        self._max_tokens = body.max_tokens

    async def submit(self) -> None:
        body, model = self._body, self._conversation.model
        prompt, rendered = await self._asked.render(model)
        num_tokens, room = len(rendered.ids), model.room(len(rendered.ids))
        longest = min(model.loaded.context_length, num_tokens + room - min(1, body.max_tokens))
        if num_tokens > longest:
            # In these words, which clients look for to shorten a conversation and retry.
            raise InvalidRequest(
                f"prompt is too long: {num_tokens} tokens > {longest} maximum", param="messages", code="context_length_exceeded"
            )
        # Anthropic's `max_tokens` is the most that is wanted: where the context has less, that ends the answer.
        self._max_tokens = min(body.max_tokens, room)
        options = OutputOptions(stop=tuple(body.stop_sequences or ()))
        await self._conversation.submit_rendered(
            prompt, rendered, body.sampling_request(), max_tokens=self._max_tokens, options=options
        )

    async def whole(self) -> AnthropicMessage:
        async for step in self._conversation.steps():
            self._builder.feed(step.deltas)
        self._builder.finish(is_cut=self._is_cut)
        message = await self._message()
        message.content, message.stop_reason, message.stop_sequence = self._builder.content, self._stop_reason, self._stop_text
        return message

    async def chunks(self) -> AsyncIterator[Event]:
        """Yield the stream's events; whatever happens after the first one ends in one of them."""
        steps = self._conversation.steps()
        step: Step | None = await anext(steps)
        yield {"type": "message_start", "message": await self._message()}
        try:
            while step is not None:
                for event in self._builder.feed(step.deltas):
                    yield event
                step = await anext(steps, None)
            for event in self._builder.finish(is_cut=self._is_cut):
                yield event
            delta = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_text}
            usage = MessageUsage.of(await self._conversation.usage())
            yield {"type": "message_delta", "delta": delta, "usage": usage}
            yield {"type": "message_stop"}
        except Exception as error:
            yield anthropic_error(told(error), self._request_id)

    async def _message(self) -> AnthropicMessage:
        usage = MessageUsage.of(await self._conversation.usage())
        return AnthropicMessage(id=self._id, model=self._conversation.model.name, content=[], usage=usage)

    @property
    def _is_cut(self) -> bool:
        return self._conversation.choices[0].finish_reason is FinishReason.LENGTH

    @property
    def _stop_text(self) -> str | None:
        return self._conversation.choices[0].candidate.output.stop_text

    @property
    def _stop_reason(self) -> StopReason:
        if self._stop_text is not None:
            return "stop_sequence"
        if self._is_cut:
            return "max_tokens" if self._max_tokens == self._body.max_tokens else "model_context_window_exceeded"
        return "tool_use" if self._conversation.choices[0].ends_in_calls else "end_turn"
