"""Owns the model cards of the demo models. Knows no figures: they are measured after training and put in."""

from collections.abc import Sequence

_CHAT = """\
---
pipeline_tag: text-generation
language: en
---

# tfoai-demo

A tiny chat model that ships with tfoai, so that the server can be tried, shown and tested without a download. It has
about two and a half million parameters, a Qwen3 architecture and a byte-level BPE tokenizer of its own.

It was trained from nothing, on two CPU cores, on text that `app/demo/chat_corpus.py` and `app/demo/tool_corpus.py`
generate: questions about tfoai with one fixed answer each, small talk, and made-up tools. No other text and no other
model went into it.

What it can do:

- answer questions about tfoai in English (its answers are the ones in `app/demo/questions.txt`), in a chat or after
  `Question: ...` in a plain prompt;
- call one tool whose name, description and parameters resemble the words of the question, and repeat the tool's result;
- say that it does not know, for most other questions.

What it can not do: anything else. It knows nothing of the world, does not reason, does not calculate, calls no two
tools at once, and makes up the value of a parameter that the question does not give. It reads only names, types and
enums of parameters, not their descriptions. Do not use it for anything serious.

Figures on questions, names of tools and made-up values that are not in its training text, as
`python -m app.demo.evaluate` prints them. The words of these questions are in the training text, in other combinations; on
questions in words of your own it does worse.

{figures}

Train it again with `python -m app.demo.train chat`.
"""

_DATES = """\
---
pipeline_tag: text2text-generation
language: en
---

# tfoai-demo-dates

A tiny encoder-decoder model that ships with tfoai: it turns a date in English into ISO 8601, "the 3rd of March 2024"
into "2024-03-03". It has a T5 architecture, less than a million parameters, and one token for each character.

It was trained from nothing, on two CPU cores, on dates that `app/demo/dates_corpus.py` writes in many ways, of the
years 1000 to 2999, most of them from 1900 to 2099. It knows only dates that name day, month and year, with the month
as a word; for any other text it still makes up a date. Do not use it for anything serious.

Figures on days that are not in its training text, as `python -m app.demo.evaluate` prints them:

{figures}

Train it again with `python -m app.demo.train dates`.
"""

_CARDS = {"tfoai-demo": _CHAT, "tfoai-demo-dates": _DATES}


def card(name: str, figures: Sequence[object]) -> str:
    """Return the README.md of a model."""
    return _CARDS[name].format(figures="\n".join(f"- {figure}" for figure in figures))
