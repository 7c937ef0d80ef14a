"""Owns the training of the demo models from nothing: `python -m app.demo.train [chat|dates|all] [--out DIR]`.

Knows the shapes of the models and the schedule; what the models learn is in the corpus modules.
"""

import argparse
import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from app.demo import DEMO_MODELS, chat_corpus, dates_corpus, tool_corpus
from app.demo.cards import card
from app.demo.evaluate import Answerer, chat_figures, dates_figures
from app.demo.example import Chat, Plain
from app.demo.tokenizer import CONTEXT, END, START, chat_tokenizer, dates_tokenizer, render

SEED = 20_24
IGNORED = -100
Encoded = tuple[list[int], list[int]]
Batch = dict[str, Tensor]

CHAT_BATCH_TOKENS = 4_608
_BEGINNING = 12


@dataclass(frozen=True, slots=True)
class Round:
    """One schedule of learning rates from warm-up to almost nothing; the next one goes on from its weights.

    `tools` is the share of conversations with tools, `careless` how questions are typed (see `phrases.dress`). The first
    lessons of a round with `copying` are mostly in copying, which everything about tools is built on.
    """

    steps: int
    peak: float
    tools: float
    careless: float
    copying: bool = False


CHAT_ROUNDS = (Round(2_800, 4e-3, 0.34, 1.0, copying=True), Round(1_100, 2e-3, 0.2, 2.0))
DATES_STEPS, DATES_BATCH = 700, 160


def encode_chat(tokenizer: PreTrainedTokenizerFast, chat: Chat) -> Encoded:
    """Return ids and labels: every answer of the assistant is learned, its end included."""
    ids: list[int] = tokenizer(render(tokenizer, chat), add_special_tokens=False).input_ids
    header: list[int] = tokenizer(f"{START}assistant\n", add_special_tokens=False).input_ids
    end = tokenizer.convert_tokens_to_ids(END)
    labels = [IGNORED] * len(ids)
    inside = False
    for i, token in enumerate(ids):
        if inside:
            labels[i] = token
            inside = token != end
        elif ids[i + 1 - len(header) : i + 1] == header:
            inside = True
    return ids, labels


def encode_plain(tokenizer: PreTrainedTokenizerFast, plain: Plain) -> Encoded:
    """Return ids and labels of a text that ends with the end token; nothing before its start is learned."""
    prompt: list[int] = tokenizer(plain.text[: plain.start], add_special_tokens=False).input_ids
    rest: list[int] = tokenizer(plain.text[plain.start :], add_special_tokens=False).input_ids
    rest += tokenizer(END, add_special_tokens=False).input_ids
    return prompt + rest, [IGNORED] * len(prompt) + rest


def chat_examples(tokenizer: PreTrainedTokenizerFast, rng: random.Random, part: Round, copying: bool) -> Encoded:
    """Return one example."""
    chance = rng.random()
    if chance < (0.5 if copying else 0.04):
        return encode_plain(tokenizer, tool_corpus.copying(rng))
    kind = rng.random()
    if kind < part.tools:
        return encode_chat(tokenizer, tool_corpus.conversation(rng))
    if kind < 0.9:
        chat = chat_corpus.conversation(rng, careless=part.careless)
        ids, labels = encode_chat(tokenizer, chat)
        if len(chat.messages) <= 3 and not copying and rng.random() < 0.5:
            # Which answer it is shows in its first words; the rest is known by heart soon, and costs most of the time.
            first = next(place for place, label in enumerate(labels) if label != IGNORED)
            ids, labels = ids[: first + _BEGINNING], labels[: first + _BEGINNING]
        return ids, labels
    return encode_plain(tokenizer, chat_corpus.plain(rng))


def chat_batches(tokenizer: PreTrainedTokenizerFast, rng: random.Random, part: Round) -> Iterator[Batch]:
    """Yield a round's batches of about as many tokens, of texts of about the same length, padded on the right."""
    made = 0
    while made < part.steps:
        copying = part.copying and made < 0.12 * part.steps
        pool = sorted((chat_examples(tokenizer, rng, part, copying) for _ in range(1_200)), key=lambda pair: len(pair[0]))
        batches: list[list[Encoded]] = [[]]
        for example in pool:
            if (len(batches[-1]) + 1) * len(example[0]) > CHAT_BATCH_TOKENS:
                batches.append([])
            batches[-1].append(example)
        rng.shuffle(batches)
        for batch in batches:
            longest = max(len(ids) for ids, _ in batch)
            ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch])
            labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in batch])
            yield {"ids": ids, "labels": labels}
            made += 1


def chat_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the mean loss of the labelled tokens. Padding is on the right: no mask is needed."""
    hidden = model.model(input_ids=batch["ids"], use_cache=False).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    wanted = labels != IGNORED
    logits = model.lm_head(hidden[wanted])
    return nn.functional.cross_entropy(logits.float(), labels[wanted])


def dates_batches(tokenizer: PreTrainedTokenizerFast, rng: random.Random, steps: int) -> Iterator[Batch]:
    """Yield batches of dates in English and in ISO 8601."""
    for _ in range(steps):
        pairs = [dates_corpus.pair(rng) for _ in range(DATES_BATCH)]
        source = tokenizer([english for english, _ in pairs], padding=True, padding_side="right", return_tensors="pt")
        target = tokenizer([iso for _, iso in pairs], padding=True, padding_side="right", return_tensors="pt")
        labels = target.input_ids.masked_fill(target.attention_mask == 0, IGNORED)
        yield {"ids": source.input_ids, "mask": source.attention_mask, "labels": labels}


def dates_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the mean loss of the characters of the ISO dates."""
    loss: Tensor = model(input_ids=batch["ids"], attention_mask=batch["mask"], labels=batch["labels"]).loss
    return loss


def optimizers(model: nn.Module, peak: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers, which learn to copy much sooner with it, and AdamW for the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and not any(part in name for part in ("embed", "shared", "lm_head", "relative"))
        (matrices if hidden else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def fit(
    model: PreTrainedModel,
    batches: Iterator[Batch],
    loss_of: Callable[[PreTrainedModel, Batch], Tensor],
    steps: int,
    peak: float,
) -> None:
    """Train for a number of steps: a short warm-up, then down along a cosine."""
    model.train()
    optimizer_list = optimizers(model, peak)
    started, tokens, recent = time.monotonic(), 0, []
    for step, batch in zip(range(steps), batches, strict=False):
        rate = peak * min((step + 1) / 60, 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        # bfloat16 is a third faster than float32 where the CPU has it; the weights themselves stay in float32.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizer_list:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        tokens += batch["ids"].numel()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            spent = time.monotonic() - started
            mean = sum(recent) / len(recent)
            print(f"step {step + 1}/{steps}  loss {mean:.4f}  {tokens / spent:.0f} tokens/s  {spent:.0f} s", flush=True)
            recent.clear()
    model.eval()


def train_chat(out: Path, only_steps: int | None = None) -> None:
    """Train tfoai-demo and save it."""
    torch.manual_seed(SEED)
    tokenizer = chat_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Over texts this short, eager attention trains a quarter faster than the CPU's flash kernel.
    model = Qwen3ForCausalLM._from_config(config, attn_implementation="eager")
    print(f"tfoai-demo: {model.num_parameters()} parameters", flush=True)
    for number, planned in enumerate(CHAT_ROUNDS):
        part = dataclasses.replace(planned, steps=only_steps or planned.steps)
        fit(model, chat_batches(tokenizer, random.Random(SEED + number), part), chat_loss, part.steps, part.peak)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=256
    )
    save(model, tokenizer, out)


def train_dates(out: Path, only_steps: int | None = None) -> None:
    """Train tfoai-demo-dates and save it."""
    torch.manual_seed(SEED)
    tokenizer = dates_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        num_heads=4,
        d_ff=192,
        num_layers=3,
        num_decoder_layers=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # The class does not declare it, but the model asks its configuration for it.
    config.update({"decoder_start_token_id": tokenizer.pad_token_id})
    model = T5ForConditionalGeneration(config)
    print(f"tfoai-demo-dates: {model.num_parameters()} parameters", flush=True)
    steps = only_steps or DATES_STEPS
    fit(model, dates_batches(tokenizer, random.Random(SEED), steps), dates_loss, steps, peak=3e-3)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=16,
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save(model, tokenizer, out)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write everything that from_pretrained() needs, the weights in half precision, and the model card."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    model.half().save_pretrained(out)
    seq2seq = isinstance(model, T5ForConditionalGeneration)
    figures = (dates_figures if seq2seq else chat_figures)(Answerer(out, seq2seq))
    (out / "README.md").write_text(card("tfoai-demo-dates" if seq2seq else "tfoai-demo", figures), encoding="utf-8")
    print(
        *figures,
        f"saved {out}: {sum(file.stat().st_size for file in out.iterdir()) / 1e6:.2f} MB",
        sep="\n",
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    """Train what the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m app.demo.train", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", nargs="?", choices=("chat", "dates", "all"), default="all")
    parser.add_argument("--out", type=Path, help="directory for the models' directories (default: where they ship)")
    parser.add_argument("--steps", type=int, help="steps of each round, to try something out")
    args = parser.parse_args(argv)
    for what, name, train in (("chat", "tfoai-demo", train_chat), ("dates", "tfoai-demo-dates", train_dates)):
        if args.what in (what, "all"):
            train(args.out / name if args.out else DEMO_MODELS[name], args.steps)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
