"""Owns typed questions -> prompts whose next token is the answer, and that token's probabilities -> answers. Knows no HTTP.

The prompt and the answers are those of transformers' decision pipeline (`transformers.decision`), so a model that was tuned for
one answers the other: what is asked about comes first and the question last, and each option has a label that is one token.
"""

import itertools
import json
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.decision import DECISION_PROMPT, DecisionConfig, Question, parse_questions

from app.errors import InvalidRequest, UnsupportedParameter
from app.text.chat import ChatTemplate
from app.text.tokenizer import Tokenizer

# The most labels that are looked for; OpenAI takes 255 choices.
MAX_LABELS = 255
_YES_AND_NO = (("Yes", "No"), ("yes", "no"), ("Y", "N"), ("A", "B"))

_environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
_environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
_template = _environment.from_string(DECISION_PROMPT)

__all__ = ["DecisionPrompt", "DecisionPrompts", "Question"]


@dataclass(frozen=True, slots=True)
class DecisionPrompt:
    """One question's prompt; the answer is which of `label_ids` comes next."""

    ids: list[int]
    label_ids: tuple[int, ...]


class DecisionPrompts:
    """Makes the prompts of one model. A model without a chat template, or with an encoder, reads them as plain text."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatTemplate, *, is_encoder_decoder: bool) -> None:
        self._tokenizer = tokenizer
        self._chat = chat
        self._is_encoder_decoder = is_encoder_decoder

    @cached_property
    def config(self) -> DecisionConfig:
        """The labels that are single tokens of this model, by type of question."""
        words = itertools.chain(
            string.ascii_uppercase, string.ascii_lowercase, map("".join, itertools.product(string.ascii_uppercase, repeat=2))
        )
        labels: list[str] = []
        seen: set[int] = set()
        for word in words:
            token_id = self._label_id(word)
            if token_id is not None and token_id not in seen and len(labels) < MAX_LABELS:
                seen.add(token_id)
                labels.append(word)
        pair = next((pair for pair in _YES_AND_NO if None not in {self._label_id(word) for word in pair}), None)
        if pair is None or len(labels) < 2:
            raise InvalidRequest(
                "This model can not decide: its tokenizer has no single tokens for labels such as A and B.",
                param="model",
                code="unsupported_model",
            )
        return DecisionConfig(labels={"noul": list(pair), "choice": labels, "score": labels})

    def parse(self, questions: dict[str, Any]) -> list[Question]:
        """Return System One's questions; raise InvalidRequest for what is none, or has too many options for this model."""
        try:
            return parse_questions(questions, self.config)
        except (ValueError, TypeError) as error:
            raise InvalidRequest(" ".join(str(error).split())[:1000], param="questions") from error

    def question(
        self,
        kind: Literal["noul", "choice", "score"],
        instructions: str,
        options: list[str],
        details: list[str | None],
        param: str,
    ) -> Question:
        """Return one question with an option for each of `options`, which may have equal names; raise InvalidRequest, which
        names `param`, if the model has fewer labels.
        """
        labels = self.config.labels[kind]
        if len(options) > len(labels):
            raise InvalidRequest(
                f"`{param}` has {len(options)} items; this model can tell {len(labels)} apart by labels of one token.",
                param=param,
            )
        return Question(param, kind, instructions, options, labels[: len(options)], details)

    def answer(self, question: Question, logprobs: Sequence[float], *, numbered: bool = False) -> dict[str, Any]:
        """Return System One's answer, given the logprobs of the labels; `numbered` names the options "0", "1", and so on."""
        probabilities = _probabilities(logprobs)
        if numbered and question.type != "noul":
            question = replace(question, options=[str(number) for number in range(len(probabilities))])
        answer: dict[str, Any] = question.answer(probabilities)
        return answer

    def prompts(self, state: Any, questions: Sequence[Question]) -> list[DecisionPrompt]:
        """Return one prompt per question. They begin the same, up to the end of `state` (text, or JSON)."""
        variables = self._without_reasoning() if self._chat.exists else {}
        return [self._prompt(_template.render(state=state, question=question), question, variables) for question in questions]

    def _prompt(self, text: str, question: Question, variables: dict[str, Any]) -> DecisionPrompt:
        label_ids = tuple(self._label_id(label) for label in question.labels)
        assert None not in label_ids  # config has no others
        if self._chat.exists:
            ids, prefix = self._chat.render([{"role": "user", "content": text}], None, variables=variables)
            reasoning = self._chat.reasoning(prefix)
            if reasoning is not None and reasoning.is_open:
                raise _reasons()
        else:
            ids = self._tokenizer.encode(text if self._is_encoder_decoder else text + "\nAnswer:")
        return DecisionPrompt(ids, label_ids)  # type: ignore[arg-type]

    def _without_reasoning(self) -> dict[str, Any]:
        """Return the template's variables that switch reasoning off; raise if the answer never comes first."""
        if self._chat.reasoning_format is not None and self._chat.reasoning_format.name == "harmony":
            raise _reasons()
        try:
            return dict(self._chat.effort_variables("none"))
        except UnsupportedParameter:
            return {}  # it has no switch; whether it reasons is seen in its prompts

    @cached_property
    def _space(self) -> str:
        """What stands between a plain prompt and the answer: part of the label's token, where there are such tokens."""
        if self._chat.exists or self._is_encoder_decoder:
            return ""
        return " " if len(self._tokenizer.encode(" A", add_special_tokens=False)) == 1 else ""

    def _label_id(self, label: str) -> int | None:
        ids = self._tokenizer.encode(self._space + label, add_special_tokens=False)
        return ids[0] if len(ids) == 1 and ids[0] != self._tokenizer.hf.unk_token_id else None


def _reasons() -> UnsupportedParameter:
    return UnsupportedParameter(
        "This model can not decide: its answers begin with reasoning, which its chat template can not switch off.",
        param="model",
        code="unsupported_model",
    )


def _probabilities(logprobs: Sequence[float]) -> list[float]:
    """Return the options' probabilities, given that the answer is one of them."""
    best = max(logprobs)
    weights = [math.exp(logprob - best) if best > -math.inf else 1.0 for logprob in logprobs]
    total = sum(weights)
    return [weight / total for weight in weights]
