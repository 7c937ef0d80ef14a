"""Owns the shapes of /v1/responses/compact. Knows no models.

openai-python: types/responses/response_compact_params.py; Open Responses 2026-04-24: CompactResource, CompactionBody.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from app.api.schemas.response_items import Item, new_item_id
from app.api.schemas.response_objects import ResponseUsage
from app.api.schemas.responses import REFUSED as REFUSED_OF_RESPONSES
from app.api.schemas.responses import InputTokensRequest
from app.api.schemas.summaries import write_summary
from app.api.schemas.tiers import ServiceTier
from app.errors import InvalidRequest

REFUSED = {"image": REFUSED_OF_RESPONSES["image"]}

_ShortText = Annotated[str, Meta(max_length=512)]


class CompactRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The `prompt_cache_*` change nothing."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    service_tier: ServiceTier | None = None
    prompt_cache_key: _ShortText | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: dict[str, Any] | None = None

    def check(self) -> None:
        """Raise InvalidRequest if there is nothing to compact."""
        if not self.input and self.previous_response_id is None:
            raise InvalidRequest("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")

    @property
    def as_input(self) -> InputTokensRequest:
        return InputTokensRequest(
            model=self.model, input=self.input, instructions=self.instructions, previous_response_id=self.previous_response_id
        )


class Compaction(msgspec.Struct, kw_only=True):
    """`output` is the input to go on from."""

    id: str
    object: Literal["response.compaction"] = "response.compaction"
    created_at: int
    output: list[Item]
    usage: ResponseUsage
    service_tier: str


def compaction_item(summary: str) -> Item:
    return {"type": "compaction", "id": new_item_id("cmp"), "encrypted_content": write_summary(summary)}
