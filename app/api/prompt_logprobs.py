"""Owns `prompt_logprobs` of an answer, in vLLM's shape: for each token of the prompt, tokens by id. Knows no requests."""

from typing import TYPE_CHECKING

from app.api.generate import Candidate
from app.api.schemas.common import LOWEST_LOGPROB
from app.api.schemas.output import PromptLogprob
from app.errors import UnsupportedParameter

if TYPE_CHECKING:
    from app.text.tokenizer import Tokenizer


def check_scores_prompts(*, is_encoder_decoder: bool, param: str) -> None:
    """Raise UnsupportedParameter where a prompt's tokens have no probabilities; `param` is what asks for them."""
    if is_encoder_decoder:
        name = "`echo` with `logprobs`" if param == "echo" else f"`{param}`"
        raise UnsupportedParameter(
            f"{name} is not supported for encoder-decoder models: the encoder reads the prompt as a whole, so its tokens have "
            "no probabilities.",
            param=param,
        )


def prompt_logprobs(candidate: Candidate, tokenizer: "Tokenizer", num_top: int) -> list[dict[int, PromptLogprob] | None]:
    """Return for each token of the prompt itself and the `num_top` best ones; None for the first, before which is nothing.

    Slow for a long prompt: every token is decoded.
    """
    entries: list[dict[int, PromptLogprob] | None] = []
    for entry in candidate.prompt_logprobs:
        if entry is None:
            entries.append(None)
            continue
        # The prompt's own token comes first, whatever its rank.
        ranked = [(entry.token_id, entry.logprob, entry.rank)]
        ranked += [(*pair, rank) for rank, pair in enumerate(entry.top[:num_top], 1) if pair[0] != entry.token_id]
        entries.append(
            {
                token_id: PromptLogprob(max(logprob, LOWEST_LOGPROB), rank, tokenizer.token_string(token_id))
                for token_id, logprob, rank in ranked
            }
        )
    return entries
