"""Owns /v1/chat/completions. Knows no templates, and not how a conversation runs: api.conversation does."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from litestar import Request, post
from msgspec import UNSET, UnsetType

from app.api.context import Context, new_id
from app.api.conversation import ChatPrompt, Choice, Conversation
from app.api.generate import Generation
from app.api.lenient import may_be_lenient
from app.api.openapi import documented
from app.api.prompt_logprobs import check_scores_prompts, prompt_logprobs
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
from app.api.schemas.common import LOWEST_LOGPROB
from app.api.schemas.messages import FunctionCall
from app.api.schemas.output import spelled
from app.api.schemas.tools import OfferedTools
from app.text.deltas import CallArguments, CallBegin, CallEnd, ChatDelta, Content, Reasoning
from app.text.output import TokenText

# Tokens that are left for an answer where `truncate_prompt_tokens` is -1 and no number says how long it may be.
LEAST_ROOM = 256


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
        self._conversation = Conversation(generation)
        self._messages = messages
        self._offered = offered
        self._begun: set[int] = set()
        # In a stream, of each choice, how many token ids are sent.
        self._num_sent_ids: dict[int, int] = {}
        self._id = new_id("chatcmpl")
        self._created = int(time.time())
        self._fingerprint = generation.model.system_fingerprint

    async def submit(self) -> None:
        body, loaded = self._body, self._conversation.model.loaded
        request = body.sampling_request(
            loaded.vocab_size,
            n=body.n or 1,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            prompt_logprobs=body.prompt_logprobs,
            **body.sampling_extras(loaded.vocab_size, loaded.tokenizer),
        )
        if body.prompt_logprobs is not None:
            check_scores_prompts(is_encoder_decoder=loaded.is_encoder_decoder, param="prompt_logprobs")
        if body.tier_priority:
            request = replace(request, priority=body.tier_priority)
        continues = bool(body.continue_final_message)
        max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        room = self._conversation.model.prompt_room(max_tokens, otherwise=LEAST_ROOM)
        prompt = ChatPrompt(
            messages=self._messages,
            offered=self._offered,
            constraint=body.constraint,
            variables=body.template_variables(loaded.chat),
            add_generation_prompt=not continues if body.add_generation_prompt is None else body.add_generation_prompt,
            continue_final_message=continues,
            add_special_tokens=bool(body.add_special_tokens),
            truncation=body.truncation(loaded.context_length, room),
        )
        await self._conversation.submit(prompt, request, max_tokens=max_tokens, options=body.output_options)

    async def whole(self) -> ChatCompletion:
        await self._conversation.finish()
        num_top = self._body.prompt_logprobs
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._conversation.model.name,
            choices=[self._whole_choice(choice) for choice in self._conversation.choices],
            system_fingerprint=self._fingerprint,
            service_tier=self._body.served_tier or UNSET,
            prompt_token_ids=self._conversation.prompt_ids if self._body.return_token_ids else UNSET,
            prompt_logprobs=UNSET if num_top is None else await asyncio.to_thread(self._prompt_logprobs, num_top),
            usage=await self._conversation.usage(),
        )

    async def chunks(self) -> AsyncIterator[ChatCompletionChunk]:
        """Yield a role chunk, the deltas and a finish chunk per choice, and one for the usage if it was asked for."""
        async for step in self._conversation.steps():
            more = self._body.usage_of_chunk(self._conversation.generation.usage)
            index = step.choice.index
            if index not in self._begun:
                self._begun.add(index)
                begun = self._chunk(step.choice, ChoiceDelta(role="assistant", content=""), **more)
                if self._body.return_token_ids:
                    begun.prompt_token_ids = self._conversation.prompt_ids
                yield begun
            deltas = [part for part in map(self._choice_delta, step.deltas) if part is not None]
            logprobs = self._logprobs(step.tokens)
            if not deltas and ((logprobs is not None and logprobs.content) or self._has_new_ids(step.choice)):
                deltas = [ChoiceDelta(content="")]
            for part in deltas:
                yield self._chunk(step.choice, part, logprobs, **more)
                logprobs = None
            if step.choice.finish_reason is not None:
                yield self._chunk(step.choice, ChoiceDelta(), finish_reason=self._finish_reason(step.choice), **more)
        if self._body.includes_usage:
            yield self._empty_chunk(usage=await self._conversation.usage())

    def _prompt_logprobs(self, num_top: int) -> Any:
        model = self._conversation.model
        return prompt_logprobs(self._conversation.choices[0].candidate, model.loaded.tokenizer, num_top)

    def _whole_choice(self, choice: Choice) -> ChatChoice:
        answer = choice.answer
        calls = [CalledTool(call.id, FunctionCall(call.name, call.arguments)) for call in answer.tool_calls]
        message = AnswerMessage(
            content=None if calls and not answer.content.strip() else answer.content,
            reasoning_content=answer.reasoning or UNSET,
            tool_calls=UNSET if self._offered.is_legacy else calls or UNSET,
            function_call=calls[0].function if calls and self._offered.is_legacy else UNSET,
        )
        return ChatChoice(
            index=choice.index,
            message=message,
            logprobs=self._logprobs(choice.tokens),
            finish_reason=self._finish_reason(choice),
            token_ids=self._new_ids(choice),
        )

    def _has_new_ids(self, choice: Choice) -> bool:
        if not self._body.return_token_ids:
            return False
        return self._num_sent_ids.get(choice.index, 0) < len(choice.candidate.token_ids)

    def _new_ids(self, choice: Choice) -> list[int] | UnsetType:
        """Return the ids that were not yet sent, where the request asks for them."""
        if not self._body.return_token_ids:
            return UNSET
        ids = choice.candidate.token_ids[self._num_sent_ids.get(choice.index, 0) :]
        self._num_sent_ids[choice.index] = len(choice.candidate.token_ids)
        return ids

    def _finish_reason(self, choice: Choice) -> Any:
        if choice.ends_in_calls:
            return "function_call" if self._offered.is_legacy else "tool_calls"
        return None if choice.finish_reason is None else choice.finish_reason.value

    def _logprobs(self, tokens: list[TokenText]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        as_ids = bool(self._body.return_tokens_as_token_ids)
        return ChatLogprobs(
            [
                TokenLogprob(
                    spelled(token, as_id=as_ids),
                    max(token.logprob, LOWEST_LOGPROB),
                    list(token.data),
                    [
                        TopLogprob(spelled(top, as_id=as_ids), max(top.logprob, LOWEST_LOGPROB), list(top.data))
                        for top in token.top
                    ],
                )
                for token in tokens
            ]
        )

    def _chunk(
        self,
        choice: Choice,
        delta: ChoiceDelta,
        logprobs: ChatLogprobs | None = None,
        *,
        finish_reason: Any = None,
        **usage: Any,
    ) -> ChatCompletionChunk:
        chunk = self._empty_chunk(**usage)
        chunk.choices.append(
            ChunkChoice(
                index=choice.index,
                delta=delta,
                logprobs=logprobs,
                finish_reason=finish_reason,
                token_ids=self._new_ids(choice),
            )
        )
        return chunk

    def _empty_chunk(self, **usage: Any) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._conversation.model.name,
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
