"""Owns the tokenizers of the demo models: cutting text, vocabularies, the response template. Knows no weights."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from app.demo import chat_corpus, dates_corpus, tool_corpus, tool_words
from app.demo.example import Chat

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
CHAT_VOCABULARY = 2_304
CONTEXT = 2_048
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_CHAT_SPECIAL = (END_OF_TEXT, START, END)
_CHAT_MARKERS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_SPACED_WORDS = 250
_JSON = r'": \{"|": \["|": "|", "|": |"\}|\{"|", "|"\], "|"\]|, "'
_WHOLE_WORDS = (
    "system user assistant string integer number boolean required optional description arguments name true false "
    "result degrees sunny temperature status celsius fahrenheit convert currency weather forecast translate reminder "
    "location"
)

# What tokenizer.parse_response() needs to know: the shape that transformers itself uses for Qwen models.
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)", "content": "text"},
    },
}


def render(tokenizer: PreTrainedTokenizerFast, chat: Chat) -> str:
    """Return a whole conversation as the model sees it."""
    text = tokenizer.apply_chat_template(chat.messages, tools=list(chat.tools) or None, tokenize=False)
    return str(text)


def _sample_texts(rng: random.Random) -> Iterator[str]:
    for _ in range(6_000):
        yield from (str(message["content"]) for message in chat_corpus.conversation(rng).messages)
    for intent in chat_corpus.load_intents():
        yield from [intent.answer] * 40
    for _ in range(3_000):
        request = tool_corpus.request(rng)
        yield f"{request.question}\n{request.tool['function']}\n{request.arguments}".replace("'", '"')
    for group in (
        tool_words.VERBS, tool_words.NOUNS, tool_words.PARAMETERS, tool_words.CITIES, tool_words.NAMES,
        tool_words.WORDS, tool_words.TEXTS, tool_words.LANGUAGES, tool_words.CURRENCIES, _WHOLE_WORDS.split(),
    ):  # fmt: skip
        # One a line: at the start of a line a word has no space before it, which is how names and values are cut.
        yield from ["\n".join(" ".join(group).split())] * (1_000 if "assistant" in group else 100)
    yield from ['{"name": "x", "description": "x", "required": {"x": "x"}, "optional": {"x": ["x", "x"], "x": "x"}}'] * 1_000


def _frequent_words(texts: Iterable[str]) -> list[str]:
    counts = Counter(word for text in texts for word in text.split(" ") if word.isalpha() and word.islower())
    names = {*tool_words.WORDS, *tool_words.NOUNS, *tool_words.PARAMETERS, *tool_words.VERBS}
    return sorted([word for word, _ in counts.most_common() if word not in names][:_SPACED_WORDS])


def chat_tokenizer(seed: int = 1) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE of tfoai-demo.

    A space is a token of its own, except before the most frequent small words. So a name or a value has the same tokens
    after a space, a quote or an underscore, and copying it from a question into a call is copying tokens.
    """
    texts = list(_sample_texts(random.Random(seed)))
    words = "|".join(_frequent_words(texts))
    cut = Regex(rf" (?:{words})(?![A-Za-z0-9_])|{_JSON}|[A-Za-z]+|[0-9]|[^\sA-Za-z0-9_]+?(?=[\sA-Za-z0-9_]|$)|.|\s")
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(cut, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CHAT_VOCABULARY - len(_CHAT_MARKERS),
        special_tokens=list(_CHAT_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in _CHAT_MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[START],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
        response_template=RESPONSE_TEMPLATE,
    )


def dates_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of tfoai-demo-dates: one token for each character that dates are written with."""
    special = ("<pad>", "</s>", "<unk>")
    vocabulary = {token: number for number, token in enumerate((*special, *dates_corpus.CHARACTERS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
