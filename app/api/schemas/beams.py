"""Owns the parameters of transformers' `generate` that a request may set: beam search, n-grams, forced tokens.

Knows no endpoint. `use_beam_search` is vLLM's: as many beams as choices, unless `num_beams` says more.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from app.api.schemas.common import TokenCount, check_token_id
from app.api.schemas.output import OutputFields
from app.errors import InvalidRequest

if TYPE_CHECKING:
    from app.text.tokenizer import Tokenizer

_Size = Annotated[int, Meta(ge=0, le=1024)]
_NAMES = (
    "num_beams",
    "length_penalty",
    "early_stopping",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


class BeamFields(OutputFields, kw_only=True):
    """The names are transformers', and so is what they do; see app/engine/beam.py."""

    num_beams: Annotated[int, Meta(ge=1)] | None = None
    use_beam_search: bool | None = None
    length_penalty: Annotated[float, Meta(ge=-10, le=10)] | None = None
    early_stopping: bool | Literal["never"] | None = None
    no_repeat_ngram_size: _Size | None = None
    encoder_no_repeat_ngram_size: _Size | None = None
    forced_bos_token_id: TokenCount | None = None
    forced_eos_token_id: TokenCount | None = None

    def __post_init__(self) -> None:
        if self.use_beam_search and self.num_beams is None and (self.n or 1) > 1:
            self.num_beams = self.n

    def check_beams(self) -> None:
        """Raise InvalidRequest for a beam search without beams, or beams without a beam search."""
        if self.use_beam_search is None or self.use_beam_search is ((self.num_beams or 1) > 1):
            return
        needs = "at least 2 `num_beams`, or `n`" if self.use_beam_search else "no more than 1 of `num_beams`"
        value = str(self.use_beam_search).lower()
        raise InvalidRequest(f"`use_beam_search` {value} needs {needs}.", param="use_beam_search")

    def sampling_extras(self, vocab_size: int, tokenizer: "Tokenizer") -> dict[str, Any]:
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            token_id = getattr(self, name)
            if token_id is not None:
                check_token_id(token_id, vocab_size, name)
        given = {name: getattr(self, name) for name in _NAMES}
        if self.use_beam_search is False:
            given["num_beams"] = 1
        return {**OutputFields.sampling_extras(self, vocab_size, tokenizer), **given}
