"""Owns how /v1/completions spells logprobs: parallel lists, with `echo` of the prompt's tokens first. Knows no requests."""

from functools import partial
from typing import TYPE_CHECKING

from app.api.generate import Candidate
from app.api.schemas.common import LOWEST_LOGPROB
from app.api.schemas.completions import CompletionLogprobs
from app.api.schemas.output import spelled
from app.text.detokenizer import Detokenizer
from app.text.output import TokenText

if TYPE_CHECKING:
    from app.text.tokenizer import Tokenizer


def add_token(lists: CompletionLogprobs, token: TokenText, offset: int, *, as_ids: bool) -> None:
    """Add a token that starts at character `offset` of the choice's text; `as_ids` shows tokens by their ids."""
    text = spelled(token, as_id=as_ids)
    own = max(token.logprob, LOWEST_LOGPROB)
    top: dict[str, float] = {}
    for alternative in token.top:
        # Two ids may decode to one text: the likelier one counts.
        shown = spelled(alternative, as_id=as_ids)
        top[shown] = max(top.get(shown, LOWEST_LOGPROB), alternative.logprob)
    # lm-eval compares the token's own logprob with the best of these, as floats.
    top[text] = max(top.get(text, own), own)
    lists.tokens.append(text)
    lists.token_logprobs.append(own)
    lists.top_logprobs.append(top)
    lists.text_offset.append(offset)


def add_prompt(
    lists: CompletionLogprobs,
    candidate: Candidate,
    tokenizer: "Tokenizer",
    *,
    num_top: int,
    skip_special_tokens: bool | None,
    as_ids: bool,
) -> None:
    """Add the prompt's tokens, each with its `num_top` best alternatives. Slow for a long prompt: all of it is decoded."""
    detokenizer = Detokenizer(partial(tokenizer.decode, skip_special_tokens=skip_special_tokens))
    offset = 0
    for token_id, entry in zip(candidate.prompt.ids, candidate.prompt_logprobs, strict=True):
        if entry is None:  # nothing comes before the first token
            lists.tokens.append(f"token_id:{token_id}" if as_ids else tokenizer.token_string(token_id))
            lists.token_logprobs.append(None)
            lists.top_logprobs.append(None)
            lists.text_offset.append(0)
        else:
            add_token(lists, candidate.output.token_text(entry, offset, num_top), offset, as_ids=as_ids)
        offset += len(detokenizer.add([token_id]))
