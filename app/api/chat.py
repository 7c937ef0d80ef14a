"""Owns /v1/chat/completions. Knows no templates: text.chat renders and parses."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from litestar import Request, post
from msgspec import UNSET

from app.api.context import Context, new_id
from app.api.enforce import grammar_of_calls
from app.api.generate import Candidate, Generation, Prompt
from app.api.lenient import may_be_lenient
from app.api.openapi import documented
from app.api.requests import read_body, respond
from app.api.schemas.chat import (
    REFUSED,
    AnswerMessage,
    CalledTool,
    CalledToolDelta,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChatRequest,
    ChoiceDelta,
    ChunkChoice,
    FunctionDelta,
    TokenLogprob,
    TopLogprob,
)
from app.api.schemas.common import LOWEST_LOGPROB, CompletionTokensDetails, Usage
from app.api.schemas.messages import FunctionCall
from app.api.schemas.tools import OfferedTools
from app.engine.sequence import FinishReason
from app.text.deltas import CallArguments, CallBegin, CallEnd, ChatAnswer, ChatDelta, Content, Reasoning
from app.text.output import TextDelta, TokenText

if TYPE_CHECKING:
    from app.text.answer_parser import AnswerParser


@post(
    "/v1/chat/completions",
    status_code=200,
    operation_class=documented("Create a chat completion", ChatRequest, ChatCompletion, streams=True),
)
@may_be_lenient
async def create_chat_completion(request: Request[Any, Any, Any], context: Context) -> Any:
    body = await read_body(request, ChatRequest, REFUSED)
    body.check()
    offered = body.offered_tools
    messages = body.template_messages()
    generation = context.begin(request.scope, body.model, body.n or 1, "chat")
    return await respond(request, _Answer(body, generation, messages, offered), stream=bool(body.stream))


@dataclass(slots=True)
class _Choice:
    """What is known of one choice so far."""

    parser: "AnswerParser"
    answer: ChatAnswer = field(default_factory=ChatAnswer)
    tokens: list[TokenText] = field(default_factory=list)
    begun: bool = False


class _Answer:
    """Submits the rendered conversation and turns its generation into the response object, or into its chunks."""

    def __init__(
        self,
        body: ChatRequest,
        generation: Generation,
        messages: list[dict[str, Any]],
        offered: OfferedTools,
    ) -> None:
        self._body = body
        self._generation = generation
        self._messages = messages
        self._offered = offered
        self._choices: list[_Choice] = []
        self._id = new_id("chatcmpl")
        self._created = int(time.time())
        self._fingerprint = generation.model.system_fingerprint

    async def submit(self) -> None:
        body, model = self._body, self._generation.model
        loaded = model.loaded
        chat, offered = loaded.chat, self._offered
        continues = bool(body.continue_final_message)
        ids, prefix = await asyncio.to_thread(
            chat.render,
            self._messages,
            offered.tools,
            variables=body.template_variables(chat),
            add_generation_prompt=not continues if body.add_generation_prompt is None else body.add_generation_prompt,
            continue_final_message=continues,
        )
        constraint = body.constraint
        if constraint is not None:
            constraint = replace(constraint, reasoning=chat.reasoning(prefix))
        request = body.sampling_request(
            loaded.vocab_size,
            n=body.n or 1,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            grammar=None if constraint is None else await loaded.grammars.compile(constraint),
            grammar_param="" if constraint is None else constraint.param,
        )
        if body.tier_priority:
            request = replace(request, priority=body.tier_priority)
        calls = await grammar_of_calls(model, offered, prefix, body)
        if calls is not None:
            request = replace(request, grammar=calls, grammar_param=offered.param)
        max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        if max_tokens is None:
            max_tokens = model.default_max_tokens(len(ids), otherwise=None)
        model.check_length(len(ids), max_tokens, what="messages")
        num_choices = body.n or 1
        self._generation.check_tokens(num_choices * len(ids), num_choices * max_tokens, "messages")
        prompt = Prompt(ids, "")
        for choice in range(body.n or 1):
            parser = chat.parser(prefix, offered.tools, constraint, names=offered.names, limit=offered.limit)
            params = model.resolve(request, max_tokens=max_tokens, choice=choice)
            self._choices.append(_Choice(parser))
            self._generation.submit(prompt, params, stop=body.stop_texts, kept_special_ids=chat.kept_special_ids)

    async def whole(self) -> ChatCompletion:
        async for candidate, delta in self._generation.deltas():
            self._take(candidate, delta)
        choices = [self._whole_choice(candidate) for candidate in self._generation.candidates]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._generation.model.name,
            choices=choices,
            system_fingerprint=self._fingerprint,
            service_tier=self._body.served_tier or UNSET,
            usage=await self._usage(),
        )

    async def _usage(self) -> Usage:
        """Return the usage, with the tokens of the reasoning: as many as its text has when it is tokenized by itself."""
        usage = self._generation.usage()
        texts = [choice.answer.reasoning for choice in self._choices if choice.answer.reasoning]
        count = await asyncio.to_thread(self._count_tokens, texts) if texts else 0
        usage.completion_tokens_details = CompletionTokensDetails(min(count, usage.completion_tokens))
        return usage

    def _count_tokens(self, texts: list[str]) -> int:
        tokenizer = self._generation.model.loaded.tokenizer
        return sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)

    async def chunks(self) -> AsyncIterator[ChatCompletionChunk]:
        """Yield a role chunk, the deltas and a finish chunk per choice, and one for the usage if it was asked for."""
        options = self._body.stream_options
        include_usage = bool(options and options.include_usage)
        more: dict[str, None] = {"usage": None} if include_usage else {}
        async for candidate, delta in self._generation.deltas():
            choice = self._choices[candidate.index]
            if not choice.begun:
                choice.begun = True
                yield self._chunk(candidate.index, ChoiceDelta(role="assistant", content=""), **more)
            deltas = [part for part in map(self._choice_delta, self._take(candidate, delta)) if part is not None]
            logprobs = self._logprobs(delta.tokens)
            if not deltas and logprobs is not None and logprobs.content:
                deltas = [ChoiceDelta(content="")]
            for part in deltas:
                yield self._chunk(candidate.index, part, logprobs, **more)
                logprobs = None
            if candidate.finish_reason is not None:
                yield self._chunk(candidate.index, ChoiceDelta(), finish_reason=self._finish_reason(candidate), **more)
        if include_usage:
            yield self._empty_chunk(usage=await self._usage())

    def _take(self, candidate: Candidate, delta: TextDelta) -> list[ChatDelta]:
        """Add one delta to its choice; return what it means."""
        choice = self._choices[candidate.index]
        deltas = choice.parser.feed(delta.text)
        if delta.finish_reason is not None:
            deltas += choice.parser.finish()
        for part in deltas:
            choice.answer.add(part)
        choice.tokens += delta.tokens
        return deltas

    def _whole_choice(self, candidate: Candidate) -> ChatChoice:
        choice = self._choices[candidate.index]
        answer = choice.answer
        calls = [CalledTool(call.id, FunctionCall(call.name, call.arguments)) for call in answer.tool_calls]
        message = AnswerMessage(
            content=None if calls and not answer.content.strip() else answer.content,
            reasoning_content=answer.reasoning or UNSET,
            tool_calls=UNSET if self._offered.is_legacy else calls or UNSET,
            function_call=calls[0].function if calls and self._offered.is_legacy else UNSET,
        )
        return ChatChoice(
            index=candidate.index,
            message=message,
            logprobs=self._logprobs(choice.tokens),
            finish_reason=self._finish_reason(candidate),
        )

    def _finish_reason(self, candidate: Candidate) -> Any:
        if self._choices[candidate.index].answer.has_called and candidate.finish_reason is FinishReason.STOP:
            return "function_call" if self._offered.is_legacy else "tool_calls"
        return None if candidate.finish_reason is None else candidate.finish_reason.value

    def _logprobs(self, tokens: list[TokenText]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        return ChatLogprobs(
            [
                TokenLogprob(
                    token.text,
                    max(token.logprob, LOWEST_LOGPROB),
                    list(token.data),
                    [TopLogprob(top.text, max(top.logprob, LOWEST_LOGPROB), list(top.data)) for top in token.top],
                )
                for token in tokens
            ]
        )

    def _chunk(
        self,
        index: int,
        delta: ChoiceDelta,
        logprobs: ChatLogprobs | None = None,
        *,
        finish_reason: Any = None,
        **usage: Any,
    ) -> ChatCompletionChunk:
        chunk = self._empty_chunk(**usage)
        chunk.choices.append(ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason))
        return chunk

    def _empty_chunk(self, **usage: Any) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._generation.model.name,
            choices=[],
            system_fingerprint=self._fingerprint,
            service_tier=self._body.served_tier or UNSET,
            **usage,
        )

    def _choice_delta(self, delta: ChatDelta) -> ChoiceDelta | None:
        """Return a delta as OpenAI sends it: a call's first piece has its id, type and name, the others only arguments."""
        match delta:
            case Content(text):
                return ChoiceDelta(content=text)
            case Reasoning(text):
                return ChoiceDelta(reasoning_content=text)
            case CallBegin(_, _, name) if self._offered.is_legacy:
                return ChoiceDelta(function_call=FunctionDelta("", name))
            case CallBegin(index, id, name):
                return ChoiceDelta(tool_calls=[CalledToolDelta(index, FunctionDelta("", name), id, "function")])
            case CallArguments(_, text) if self._offered.is_legacy:
                return ChoiceDelta(function_call=FunctionDelta(text))
            case CallArguments(index, text):
                return ChoiceDelta(tool_calls=[CalledToolDelta(index, FunctionDelta(text))])
            case CallEnd():
                return None
