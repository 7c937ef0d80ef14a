"""Owns POST /v1/responses/compact: a conversation becomes a shorter input that can be gone on from. Knows no engine.

The model that is asked writes a summary. What must not be put into other words stays as it is: messages of system and developer
before it, calls that have no output yet behind it.
"""

import asyncio
import itertools
import time
from typing import Any

from litestar import Request, post

from app.api.context import Context
from app.api.conversation import Conversation
from app.api.lenient import may_be_lenient
from app.api.openapi import documented
from app.api.request_state import RequestState
from app.api.requests import read_body, unless_disconnected
from app.api.response_input import ResponseInput
from app.api.schemas.compaction import REFUSED, Compaction, CompactRequest, compaction_item
from app.api.schemas.response_items import Item, new_item_id
from app.api.schemas.response_objects import ResponseUsage
from app.api.schemas.tiers import served_tier, tier_priority
from app.engine.defaults import SamplingRequest
from app.engine.sequence import FinishReason
from app.errors import ContextLengthExceeded, EngineError

# A summary that is as long as what it is of is none.
MAX_SUMMARY_TOKENS = 2048
# With less room than this beside it, the conversation is too long to be summed up.
MIN_SUMMARY_TOKENS = 64
_TASK = (
    "Write a summary of this conversation, from which it can be continued by somebody who can not see it. Keep what was asked "
    "for, what was decided, facts, names and numbers, results of tools, and what is left to do. Answer with the summary only."
)


@post(
    "/v1/responses/compact",
    status_code=200,
    operation_class=documented("Compact a conversation", CompactRequest, Compaction),
)
@may_be_lenient
async def compact_response(request: Request[Any, Any, Any], context: Context) -> Any:
    body = await read_body(request, CompactRequest, REFUSED)
    body.check()
    asked = ResponseInput.of(body.as_input, context.responses_of(request.scope), RequestState.of(request.scope).salt)
    conversation = Conversation(context.begin(request.scope, body.model, 1, "compact"))
    return await unless_disconnected(request, _compact(body, asked, conversation))


async def _compact(body: CompactRequest, asked: ResponseInput, conversation: Conversation) -> Compaction:
    rules, pending = await asyncio.to_thread(_read, asked)
    model = conversation.model
    prompt, rendered = await asked.render(model, num_output_tokens=MIN_SUMMARY_TOKENS)
    model.check_length(len(rendered.ids), MIN_SUMMARY_TOKENS, what="input")
    max_tokens = min(MAX_SUMMARY_TOKENS, model.room(len(rendered.ids)))
    request = SamplingRequest(priority=tier_priority(body.service_tier))
    await conversation.submit_rendered(prompt, rendered, request, max_tokens=max_tokens, what="input")
    await conversation.finish()
    if conversation.choices[0].finish_reason is FinishReason.LENGTH and max_tokens < MAX_SUMMARY_TOKENS:
        # Half a summary would lose the other half without a word.
        raise ContextLengthExceeded(model.loaded.context_length, len(rendered.ids), max_tokens + 1, what="input", param="input")
    summary = conversation.choices[0].answer.content.strip()
    if not summary:
        raise EngineError("The model wrote no summary of this conversation.")
    return Compaction(
        id=new_item_id("resp"),
        created_at=int(time.time()),
        output=[*rules, compaction_item(summary), *pending],
        usage=ResponseUsage.of(await conversation.usage()),
        service_tier=served_tier(body.service_tier),
    )


def _read(asked: ResponseInput) -> tuple[list[Item], list[Item]]:
    """Make the messages that ask for a summary; return the items that stay before it and behind it."""
    asked.read()
    items = asked.all_items
    rules = [item for item in items if item["type"] == "message" and item["role"] in ("system", "developer")]
    answered = {item["call_id"] for item in items if item["type"] == "function_call_output"}
    is_pending = [item["type"] == "function_call" and item["call_id"] not in answered for item in items]
    pending = list(itertools.compress(items, is_pending))
    asked.show([item for item, pends in zip(items, is_pending, strict=True) if not pends])
    messages = asked.messages
    if messages and messages[-1]["role"] == "user":
        messages[-1]["content"] += "\n\n" + _TASK
    else:
        messages.append({"role": "user", "content": _TASK})
    return rules, pending
