"""Owns what the model is shown of a request of /v1/responses: what is stored before it, its items, its tools, as one prompt.

Knows no sampling and no answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from app.api.conversation import ChatPrompt, Rendered, render
from app.api.response_messages import drop_oldest, template_messages
from app.api.response_store import Responses, Stored
from app.api.schemas.response_items import Item, read_input, references
from app.api.schemas.responses import (
    InputTokensRequest,
    ReasoningOptions,
    ResponseRequest,
    offered_tools,
    read_reasoning,
    read_tools,
    template_variables,
)
from app.api.schemas.tools import OfferedTools
from app.errors import ContextLengthExceeded, InvalidRequest
from app.registry import ServedModel


@dataclass(slots=True)
class ResponseInput:
    """What a request shows the model: the stored responses before it, its own items, its tools.

    `read` makes `items` (the request's own), `all_items` (with those before them), and of these `messages`, `num_kept` of them
    from `instructions`.
    """

    body: ResponseRequest | InputTokensRequest
    before: Sequence[Stored]
    referenced: Mapping[str, Stored]
    tools: list[dict[str, Any]]
    offered: OfferedTools
    reasoning: ReasoningOptions
    items: Sequence[Item] = ()
    all_items: Sequence[Item] = ()
    messages: list[dict[str, Any]] = field(default_factory=list)
    num_kept: int = 0

    @classmethod
    def of(cls, body: ResponseRequest | InputTokensRequest, store: Responses, salt: str) -> "ResponseInput":
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
        self.all_items = [*(item for stored in self.before for item in _items(stored)), *self.items]
        self.show(self.all_items)

    def show(self, items: Sequence[Item]) -> None:
        """Make the messages of `instructions` and these items."""
        self.messages = template_messages(items)
        if self.body.instructions:
            self.messages.insert(0, {"role": "system", "content": self.body.instructions})
            self.num_kept = 1

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
