"""Owns the figures of the demo models: `python -m app.demo.evaluate` generates on held-out items and compares.

Knows how to load a model directory as any user would; knows nothing of training.
"""

import argparse
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from app.demo import DEMO_MODELS, chat_corpus, dates_corpus, tool_corpus
from app.demo.example import Chat

SEED = 99
WANTED = 97.0
CHATS, TOOL_CALLS, TOOL_TALKS, DATES = 400, 300, 150, 400
_CALL = re.compile(r"<tool_call>\n(.*)\n</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result. Only figures that are `required` decide on the exit code."""

    name: str
    right: int
    total: int
    required: bool = True

    @property
    def percent(self) -> float:
        return 100.0 * self.right / max(self.total, 1)

    @property
    def good(self) -> bool:
        return not self.required or self.percent >= WANTED

    def __str__(self) -> str:
        return f"{self.name}: {self.percent:.1f} % ({self.right} of {self.total})"


class Answerer:
    """A model directory that answers prompts greedily, many at once."""

    def __init__(self, directory: Path, seq2seq: bool = False) -> None:
        auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.model: Any = auto.from_pretrained(directory, dtype=torch.float32).eval()
        self._seq2seq = seq2seq

    def prompt(self, chat: Chat) -> str:
        text = self.tokenizer.apply_chat_template(
            chat.prompt, tools=chat.tools or None, tokenize=False, add_generation_prompt=True
        )
        return str(text)

    def answer(self, prompts: Sequence[str], max_new_tokens: int = 128, batch: int = 64) -> list[str]:
        """Return the answers in the order of the prompts. Prompts of about the same length run together."""
        answers = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            side = "right" if self._seq2seq else "left"
            inputs = self.tokenizer(
                [prompts[index] for index in some],
                padding=True,
                padding_side=side,
                return_tensors="pt",
                return_token_type_ids=False,
                add_special_tokens=self._seq2seq,
            )
            with torch.inference_mode():
                output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            new = output if self._seq2seq else output[:, inputs.input_ids.shape[1] :]
            for index, text in zip(some, self.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                answers[index] = text
        return answers


def call_of(text: str) -> dict[str, Any] | None:
    """Return the call in an answer; None if it is none in the form of the template."""
    match = _CALL.fullmatch(text)
    try:
        call = json.loads(match[1]) if match else None
    except ValueError:
        return None
    if not isinstance(call, dict) or set(call) != {"name", "arguments"} or not isinstance(call["arguments"], dict):
        return None
    return call


def is_valid(call: dict[str, Any], chat: Chat) -> bool:
    """Whether the tool exists and has these parameters, and all that it requires are there."""
    for tool in chat.tools:
        if tool["function"]["name"] == call["name"]:
            schema = tool["function"]["parameters"]
            return set(schema.get("required", ())) <= set(call["arguments"]) <= set(schema["properties"])
    return False


def chat_figures(answerer: Answerer, limit: int | None = None) -> list[Figure]:
    """Ask held-out questions with and without tools, and make held-out calls."""
    rng = random.Random(SEED)
    chats = [chat_corpus.conversation(rng, held_out=True) for _ in range(limit or CHATS)]
    calls = [tool_corpus.conversation(rng, True, "call") for _ in range(limit or TOOL_CALLS)]
    talks = [tool_corpus.conversation(rng, True, rng.choice(("talk", "unfit", "result"))) for _ in range(limit or TOOL_TALKS)]
    texts = answerer.answer([answerer.prompt(chat) for chat in (*chats, *calls, *talks)])
    chat_texts, rest = texts[: len(chats)], texts[len(chats) :]
    call_texts, talk_texts = rest[: len(calls)], rest[len(calls) :]
    made = [call_of(text) for text in call_texts]
    valid = [call is not None and is_valid(call, chat) for call, chat in zip(made, calls, strict=True)]
    wanted = [chat.answer["tool_calls"][0]["function"] for chat in calls]
    return [
        Figure("chat exact", _same(chat_texts, chats), len(chats)),
        Figure("tools well-formed", sum(call is not None for call in made), len(calls)),
        Figure("tools valid", sum(valid), len(calls), required=False),
        Figure("tools exact", sum(a == b for a, b in zip(made, wanted, strict=True)), len(calls), required=False),
        Figure("tools not called for, or answered", _same(talk_texts, talks), len(talks), required=False),
    ]


def _same(texts: Sequence[str], chats: Sequence[Chat]) -> int:
    return sum(text == chat.answer["content"] for text, chat in zip(texts, chats, strict=True))


def dates_figures(answerer: Answerer, limit: int | None = None) -> list[Figure]:
    """Translate dates that are held out."""
    rng = random.Random(SEED)
    pairs = [dates_corpus.pair(rng, held_out=True) for _ in range(limit or DATES)]
    texts = answerer.answer([english for english, _ in pairs], max_new_tokens=16, batch=200)
    return [Figure("dates exact", sum(text == iso for text, (_, iso) in zip(texts, pairs, strict=True)), len(pairs))]


def main(argv: list[str] | None = None) -> int:
    """Print the figures, one a line; return 1 if one that is required is too low."""
    parser = argparse.ArgumentParser(prog="python -m app.demo.evaluate", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--limit", type=int, help="items of each kind (default: several hundred)")
    parser.add_argument("--models", type=Path, help="directory with both models (default: the shipped ones)")
    args = parser.parse_args(argv)
    paths = {name: args.models / name if args.models else path for name, path in DEMO_MODELS.items()}
    figures = chat_figures(Answerer(paths["tfoai-demo"]), args.limit)
    figures += dates_figures(Answerer(paths["tfoai-demo-dates"], seq2seq=True), args.limit)
    for figure in figures:
        print(figure)
    return 0 if all(figure.good for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
