"""Owns how a conversation runs: rendered, submitted, and its answers parsed into text, reasoning and tool calls as they come.

Shared by every endpoint that chats. Knows neither the shape of requests nor that of answers, and no templates: text.chat does.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from app.api.enforce import grammar_of_calls, limit_thinking
from app.api.generate import Candidate, Generation, Prompt
from app.api.schemas.common import CompletionTokensDetails, Usage
from app.api.schemas.tools import OfferedTools
from app.engine.defaults import SamplingRequest
from app.engine.sequence import FinishReason, SamplingParams
from app.registry import ServedModel
from app.text.constraint import Constraint
from app.text.deltas import ChatAnswer, ChatDelta
from app.text.output import PLAIN_OUTPUT, OutputOptions, TextDelta, TokenText
from app.text.truncation import Truncation

if TYPE_CHECKING:
    from app.text.answer_parser import AnswerParser


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """What a model is to answer, as templates expect it, and what the answer is held to; `variables` are the template's own.

    With `add_special_tokens` the tokenizer's special tokens are put around what the template writes.
    The model thinks for at most `max_thinking` tokens, by the request's parameter `max_thinking_param`.
    """

    messages: Sequence[dict[str, Any]]
    offered: OfferedTools = field(default_factory=OfferedTools)
    constraint: Constraint | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    truncation: Truncation | None = None
    max_thinking: int | None = None
    max_thinking_param: str = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt in tokens, and as the text that the parser of its answers wants."""

    ids: list[int]
    text: str


@dataclass(slots=True)
class Choice:
    """One answer, as far as it has come. `tokens` are filled when logprobs were asked for."""

    candidate: Candidate
    parser: "AnswerParser"
    answer: ChatAnswer = field(default_factory=ChatAnswer)
    tokens: list[TokenText] = field(default_factory=list)

    @property
    def index(self) -> int:
        return self.candidate.index

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.candidate.finish_reason

    @property
    def ends_in_calls(self) -> bool:
        """Whether the model stopped to have tools called."""
        return self.finish_reason is FinishReason.STOP and self.answer.has_called

    def take(self, delta: TextDelta) -> list[ChatDelta]:
        """Add what the model wrote; return what it means."""
        deltas = self.parser.feed(delta.text)
        if delta.finish_reason is not None:
            deltas += self.parser.finish()
        for part in deltas:
            self.answer.add(part)
        self.tokens += delta.tokens
        return deltas


@dataclass(frozen=True, slots=True)
class Step:
    """What one engine step adds to one choice. It is the last one of its choice when that has a `finish_reason`."""

    choice: Choice
    deltas: list[ChatDelta]
    tokens: list[TokenText]


async def render(model: ServedModel, prompt: ChatPrompt) -> Rendered:
    """Return the prompt in tokens, made off the event loop; raise InvalidRequest for what the template refuses."""
    ids, text = await asyncio.to_thread(
        model.loaded.chat.render,
        prompt.messages,
        prompt.offered.tools,
        variables=prompt.variables,
        add_generation_prompt=prompt.add_generation_prompt,
        continue_final_message=prompt.continue_final_message,
    )
    if prompt.add_special_tokens:
        before, behind = model.loaded.tokenizer.affixes
        ids = [*before, *ids, *behind]
    if prompt.truncation is not None:
        ids = prompt.truncation.cut(ids)
    return Rendered(ids, text)


class Conversation:
    """One prompt and the answers to it."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.choices: list[Choice] = []
        self._params: list[SamplingParams] = []

    @property
    def model(self) -> ServedModel:
        return self.generation.model

    @property
    def params(self) -> SamplingParams:
        """What the first choice is sampled with; there is one once the prompt is submitted."""
        return self._params[0]

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens of the prompt, once it is submitted."""
        return self.choices[0].candidate.prompt.ids

    async def submit(
        self, prompt: ChatPrompt, request: SamplingRequest, *, max_tokens: int | None, options: OutputOptions = PLAIN_OUTPUT
    ) -> None:
        """Render the prompt and hand it to the engine, `request.n` times; raise what refuses it.

        `max_tokens` None leaves the length to the model's defaults and the context.
        """
        rendered = await render(self.model, prompt)
        await self.submit_rendered(prompt, rendered, request, max_tokens=max_tokens, options=options)

    async def submit_rendered(
        self,
        prompt: ChatPrompt,
        rendered: Rendered,
        request: SamplingRequest,
        *,
        max_tokens: int | None,
        options: OutputOptions = PLAIN_OUTPUT,
        what: str = "messages",
    ) -> None:
        """Do the second half of `submit`; `what` is the request's name for the prompt."""
        model, chat, offered = self.model, self.model.loaded.chat, prompt.offered
        if max_tokens is None:
            max_tokens = model.default_max_tokens(len(rendered.ids), otherwise=None)
        model.check_length(len(rendered.ids), max_tokens, what=what)
        self.generation.check_tokens(request.n * len(rendered.ids), request.n * max_tokens, what)
        constraint = prompt.constraint
        if constraint is not None:
            constraint = replace(constraint, reasoning=chat.reasoning(rendered.text))
            # By itself also where it becomes a part of what calls are held to: what is wrong with it has its own name.
            grammar = await model.loaded.grammars.compile(constraint)
            request = replace(request, grammar=grammar, grammar_param=constraint.param)
        if offered.must_call:
            constraint = None  # the answer is calls, and nothing that it could be held to
        calls = await grammar_of_calls(model, offered, rendered.text, request, constraint if offered.tools else None)
        if calls is not None:
            request = replace(request, grammar=calls, grammar_param=offered.param if constraint is None else constraint.param)
        if prompt.max_thinking is not None:
            request = await limit_thinking(model, rendered.text, request, prompt.max_thinking, prompt.max_thinking_param)
        # The prompt's tokens are scored once.
        unscored = replace(request, prompt_logprobs=None)
        self._params = [
            model.resolve(unscored if choice else request, max_tokens=max_tokens, choice=choice) for choice in range(request.n)
        ]
        encoded = Prompt(rendered.ids, "")
        # Only now, so that a request which is refused leaves nothing running.
        for params in self._params:
            parser = chat.parser(rendered.text, offered.tools, constraint, names=offered.names, limit=offered.limit)
            self.generation.submit(encoded, params, options, kept_special_ids=chat.kept_special_ids)
            self.choices.append(Choice(self.generation.candidates[-1], parser))

    async def steps(self) -> AsyncIterator[Step]:
        """Yield what comes, from all choices as it comes; raise when a sequence fails."""
        async for candidate, delta in self.generation.deltas():
            choice = self.choices[candidate.index]
            yield Step(choice, choice.take(delta), delta.tokens)

    async def finish(self) -> None:
        """Read all answers to their ends."""
        async for _ in self.steps():
            pass

    async def usage(self) -> Usage:
        """Return the usage, with the tokens of the reasoning: as many as its text has when it is tokenized by itself."""
        usage = self.generation.usage()
        texts = [choice.answer.reasoning for choice in self.choices if choice.answer.reasoning]
        count = await asyncio.to_thread(self._count_tokens, texts) if texts else 0
        usage.completion_tokens_details = CompletionTokensDetails(min(count, usage.completion_tokens))
        return usage

    def _count_tokens(self, texts: list[str]) -> int:
        tokenizer = self.model.loaded.tokenizer
        return sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
