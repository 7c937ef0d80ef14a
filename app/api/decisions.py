"""Owns /v1/decisions and /v1/systemone: typed questions about one input, answered with probabilities. Knows no prompts.

Each question is one sequence whose next token is read. The first one goes ahead: when it is computed, the input that all
prompts begin with is in the prefix cache, and the others compute only their questions.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from litestar import Request, post

from app.api.context import Context
from app.api.generate import Generation, Prompt
from app.api.lenient import may_be_lenient
from app.api.openapi import documented
from app.api.requests import read_body, unless_disconnected
from app.api.schemas.decisions import (
    REFUSED,
    SYSTEM_ONE_REFUSED,
    Choice,
    ChoiceAnswer,
    ChoiceProbability,
    Decision,
    DecisionRequest,
    DecisionUsage,
    InputTokensDetails,
    OutputTokensDetails,
    Predicate,
    PredicateAnswer,
    Score,
    ScoreAnswer,
    ScoreProbability,
    SystemOneAnswers,
    SystemOneRequest,
    SystemOneUsage,
)
from app.engine.sequence import SamplingParams

if TYPE_CHECKING:
    from app.text.decisions import DecisionPrompt, DecisionPrompts, Question


@post(
    "/v1/decisions",
    status_code=200,
    operation_class=documented("Answer typed questions with probabilities", DecisionRequest, Decision),
)
@may_be_lenient
async def create_decision(request: Request[Any, Any, Any], context: Context) -> Any:
    body = await read_body(request, DecisionRequest, REFUSED)
    body.check()
    state, texts = body.state, body.question_texts()
    generation = _begin(request, context, body.model, len(texts), "decisions")
    decisions = _decisions_of(generation)

    def ask() -> "list[Question]":
        return [_asked(decisions, index, *one) for index, one in enumerate(zip(body.questions, texts, strict=True))]

    async def work() -> Decision:
        found = [decisions.answer(*one, numbered=True) for one in await _decide(generation, decisions, state, ask)]
        answers = [_answer(question, answer) for question, answer in zip(body.questions, found, strict=True)]
        usage = generation.usage()
        cached, tokens = InputTokensDetails(usage.prompt_tokens_details.cached_tokens), usage.prompt_tokens
        return Decision(generation.model.name, answers, DecisionUsage(tokens, cached, 0, OutputTokensDetails(), tokens))

    return await unless_disconnected(request, work())


@post(
    "/v1/systemone",
    status_code=200,
    operation_class=documented("Answer typed questions, in the shapes of System One", SystemOneRequest, SystemOneAnswers),
)
@may_be_lenient
async def create_systemone(request: Request[Any, Any, Any], context: Context) -> Any:
    body = await read_body(request, SystemOneRequest, SYSTEM_ONE_REFUSED)
    body.check()
    generation = _begin(request, context, body.model, len(body.questions), "systemone")
    decisions = _decisions_of(generation)

    async def work() -> SystemOneAnswers:
        found = await _decide(generation, decisions, body.state, lambda: decisions.parse(body.questions))
        answers = {question.name: decisions.answer(question, logprobs) for question, logprobs in found}
        return SystemOneAnswers(generation.model.name, answers, SystemOneUsage(generation.usage().prompt_tokens))

    return await unless_disconnected(request, work())


def _begin(request: Request[Any, Any, Any], context: Context, name: str, num_questions: int, operation: str) -> Generation:
    """Take as many places as may run at the same time; the questions use them one after the other."""
    width = min(num_questions, context.registry.get(name).settings.max_num_seqs)
    return context.begin(request.scope, name, width, operation, reuses=True)


def _decisions_of(generation: Generation) -> "DecisionPrompts":
    return generation.model.loaded.decisions


async def _decide(
    generation: Generation, decisions: "DecisionPrompts", state: Any, ask: "Callable[[], list[Question]]"
) -> "list[tuple[Question, tuple[float, ...]]]":
    """Return the questions, each with the logprobs of its labels."""
    model = generation.model

    def render() -> "tuple[list[Question], list[DecisionPrompt]]":
        questions = ask()
        return questions, decisions.prompts(state, questions)

    questions, prompts = await asyncio.to_thread(render)
    # What the configuration dictates at the beginning of a text (`forced_bos_token_id`) comes before the answer.
    max_tokens = model.loaded.defaults.num_forced_tokens + 1
    for prompt in prompts:
        model.check_length(len(prompt.ids), max_tokens, what="input")
    generation.check_tokens(sum(len(prompt.ids) for prompt in prompts), len(prompts) * max_tokens, "questions")
    width = model.settings.max_num_seqs
    for wave in (prompts[:1], *(prompts[start : start + width] for start in range(1, len(prompts), width))):
        candidates = [
            generation.submit(
                Prompt(prompt.ids, ""),
                SamplingParams(max_tokens=max_tokens, logprobs=0, logprob_token_ids=prompt.label_ids),
            )
            for prompt in wave
        ]
        async for _ in generation.deltas(candidates):
            pass
    return [(question, one.asked_logprobs) for question, one in zip(questions, generation.candidates, strict=True)]


def _asked(decisions: "DecisionPrompts", index: int, question: Predicate | Choice | Score, text: str) -> "Question":
    place = f"questions.[{index}]"
    if isinstance(question, Predicate):
        return decisions.question("noul", text, ["true", "false"], [None, None], place)
    if isinstance(question, Choice):
        names = [str(one.value).lower() if isinstance(one.value, bool) else one.value for one in question.choices]
        return decisions.question("choice", text, names, [one.description for one in question.choices], f"{place}.choices")
    levels = [one.label if one.description is None else f"{one.label}: {one.description}" for one in question.levels]
    return decisions.question("score", text, [str(number) for number in range(len(levels))], list(levels), f"{place}.levels")


def _answer(question: Predicate | Choice | Score, answer: dict[str, Any]) -> PredicateAnswer | ChoiceAnswer | ScoreAnswer:
    if isinstance(question, Predicate):
        return PredicateAnswer(question.name, answer["noul"])
    probabilities = list(answer["probabilities"].values())
    if isinstance(question, Choice):
        options = [ChoiceProbability(one.value, share) for one, share in zip(question.choices, probabilities, strict=True)]
        return ChoiceAnswer(question.name, question.choices[int(answer["choice"])].value, answer["confidence"], options)
    levels = [
        ScoreProbability(number, level.label, share)
        for number, (level, share) in enumerate(zip(question.levels, probabilities, strict=True))
    ]
    return ScoreAnswer(question.name, answer["score"], answer["confidence"], levels)
