"""Owns the benchmarks' random models: Qwen3-shaped, with a tokenizer of one token per word, so that every token is text."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

EOS = 0
# Name -> shape. The numbers are the parameters in float32, the tied embedding included.
SHAPES = {
    "29M": {
        "vocab_size": 8_192, "hidden_size": 512, "intermediate_size": 1_536, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    },
    "0.2M": {
        "vocab_size": 1_024, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    },
}  # fmt: skip


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Token n is the word `wn`; texts are words between spaces."""
    vocabulary = {"<eos>": EOS} | {f"w{number}": number for number in range(1, vocab_size)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>", model_max_length=4_096)


def make_model(name: str, directory: Path) -> Qwen3ForCausalLM:
    """Write a model that never ends by itself: the logit of its end token is always 0, and some other one is above."""
    torch.manual_seed(0)
    config = Qwen3Config(
        **SHAPES[name],
        max_position_embeddings=4_096,
        tie_word_embeddings=True,
        eos_token_id=EOS,
        pad_token_id=EOS,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[EOS] = 0
    model.generation_config = transformers.GenerationConfig(do_sample=False, eos_token_id=EOS, pad_token_id=EOS)
    model.save_pretrained(directory)
    word_tokenizer(config.vocab_size).save_pretrained(directory)
    return model


def words(seed: int, count: int, vocab_size: int) -> str:
    """Return a prompt of `count` tokens."""
    generator = torch.Generator().manual_seed(seed)
    return " ".join(f"w{number}" for number in torch.randint(1, vocab_size, (count,), generator=generator).tolist())
