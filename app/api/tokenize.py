"""Owns the tokenizer's routes: /tokenize, /detokenize, /tokenizer_info. Knows no generation, though a request takes a slot.

The slot bounds how many texts are in work at a time, and lets a server that goes down finish them.
"""

import asyncio
from typing import Any

from litestar import Request, get, post

from app.api.context import Context
from app.api.lenient import may_be_lenient
from app.api.openapi import documented
from app.api.requests import read_body, unless_disconnected
from app.api.schemas.common import check_token_id
from app.api.schemas.messages import template_messages
from app.api.schemas.tokenize import (
    REFUSED,
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)
from app.registry import ServedModel


@post(
    ["/tokenize", "/v1/tokenize"],
    status_code=200,
    operation_class=documented("Turn a text or a conversation into token ids", TokenizeRequest, TokenizeResponse),
)
@may_be_lenient
async def tokenize(request: Request[Any, Any, Any], context: Context) -> Any:
    body = await read_body(request, TokenizeRequest, REFUSED)
    body.check()
    messages = template_messages(body.messages or ())
    tools = [tool.function.for_template() for tool in body.tools or ()]
    continues = bool(body.continue_final_message)
    prompts = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    model = context.registry.get_or_first(body.model)
    context.begin(request.scope, model.name, 1, "tokenize")

    def work() -> TokenizeResponse:
        loaded = model.any_loaded
        tokenizer = loaded.tokenizer
        if body.prompt is None:
            variables = loaded.chat.checked_variables(body.chat_template_kwargs or {})
            ids, _ = loaded.chat.render(
                messages, tools, variables=variables, add_generation_prompt=prompts, continue_final_message=continues
            )
        else:
            ids = tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
        return TokenizeResponse(
            count=len(ids),
            max_model_len=loaded.context_length,
            tokens=ids,
            token_strs=tokenizer.spell(ids) if body.return_token_strs else None,
            model=model.name,
        )

    return await unless_disconnected(request, asyncio.to_thread(work))


@post(
    ["/detokenize", "/v1/detokenize"],
    status_code=200,
    operation_class=documented("Turn token ids into their text", DetokenizeRequest, DetokenizeResponse),
)
@may_be_lenient
async def detokenize(request: Request[Any, Any, Any], context: Context) -> Any:
    """Special tokens stay in the text, so that tokenizing it again gives the same ids."""
    body = await read_body(request, DetokenizeRequest, {})
    model = context.registry.get_or_first(body.model)
    context.begin(request.scope, model.name, 1, "detokenize")

    def work() -> DetokenizeResponse:
        loaded = model.any_loaded
        for index, token_id in enumerate(body.tokens):
            check_token_id(token_id, loaded.vocab_size, f"tokens.[{index}]")
        return DetokenizeResponse(prompt=loaded.tokenizer.decode(body.tokens, skip_special_tokens=False), model=model.name)

    return await unless_disconnected(request, asyncio.to_thread(work))


@get("/tokenizer_info", operation_class=documented("Describe the tokenizer of a model", None, TokenizerInfo))
async def tokenizer_info(context: Context, model: str | None = None) -> Any:
    """`?model=` names the model; without it, the first of the configuration."""
    return _info(context.registry.get_or_first(model))


def _info(model: ServedModel) -> TokenizerInfo:
    loaded = model.any_loaded
    return TokenizerInfo(**loaded.tokenizer.describe(), model_max_length=loaded.context_length, model=model.name)
