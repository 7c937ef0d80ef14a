"""Tiny models with random weights and a tokenizer with one id per byte, made on the spot."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD, BOS, EOS = 0, 1, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
# `<tool_call>{"name": ..., "arguments": ...}</tool_call>`, in the form that transformers' parser reads.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<s>assistant: ",
    "fields": {
        "content": {"content": "text"},
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}


def byte_tokenizer(**kwargs: Any) -> PreTrainedTokenizerFast:
    """Ids 0 to 2 are <pad>, <s>, </s>; byte b is id 3 + its place in the byte-level alphabet. Any text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": PAD, "<s>": BOS, "</s>": EOS} | {char: 3 + index for index, char in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if kwargs.pop("append_eos", False):
        backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE, **kwargs
    )
    assert len(tokenizer) == 259
    return tokenizer


VOCAB_SIZE = 259


def tiny_model(kind: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a two-layer model of an architecture, weights scaled up so that its greedy text is not one repeated token."""
    torch.manual_seed(seed)
    common = {
        "vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 512,
    }  # fmt: skip
    grouped = common | {"num_key_value_heads": 2}
    seq2seq = {
        "vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": PAD,
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 512,
    }  # fmt: skip
    relative = {
        "vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD,
        "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    }  # fmt: skip
    t = transformers
    makers: dict[str, Any] = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**common | overrides)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**common | {"num_key_value_heads": 2, "head_dim": 8} | overrides)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**grouped | overrides)),
        "qwen3_moe": lambda: t.Qwen3MoeForCausalLM(
            t.Qwen3MoeConfig(**grouped, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, **overrides)
        ),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**grouped, sliding_window=32, **overrides)),
        "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**grouped, num_local_experts=4, **overrides)),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**grouped, head_dim=8, sliding_window=16, **overrides)),
        "gemma3_text": lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(**grouped | {"num_hidden_layers": 6}, head_dim=8, sliding_window=16, **overrides)
        ),
        "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**grouped, **overrides)),
        "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**common | overrides)),
        "gpt_oss": lambda: t.GptOssForCausalLM(
            t.GptOssConfig(**grouped, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=16, **overrides)
        ),
        "falcon": lambda: t.FalconForCausalLM(
            t.FalconConfig(**{key: value for key, value in common.items() if key != "intermediate_size"}, **overrides)
        ),
        "bloom": lambda: t.BloomForCausalLM(
            t.BloomConfig(
                vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS
            )
        ),
        "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**common | overrides)),
        "cohere": lambda: t.CohereForCausalLM(t.CohereConfig(**common | overrides)),
        "starcoder2": lambda: t.Starcoder2ForCausalLM(t.Starcoder2Config(**grouped, **overrides)),
        "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**common | overrides)),
        "smollm3": lambda: t.SmolLM3ForCausalLM(t.SmolLM3Config(**grouped, **overrides)),
        "stablelm": lambda: t.StableLmForCausalLM(t.StableLmConfig(**grouped, **overrides)),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(
                vocab_size=VOCAB_SIZE,
                n_embd=32,
                n_head=4,
                n_layer=2,
                n_positions=512,
                pad_token_id=PAD,
                bos_token_id=BOS,
                eos_token_id=EOS,
                **overrides,
            )
        ),
        "opt": lambda: t.OPTForCausalLM(t.OPTConfig(**common | {"ffn_dim": 64, "word_embed_proj_dim": 32} | overrides)),
        "mamba": lambda: t.MambaForCausalLM(
            t.MambaConfig(
                vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS
            )
        ),
        "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**relative | overrides)),
        "mt5": lambda: t.MT5ForConditionalGeneration(t.MT5Config(**relative | overrides)),
        "bart": lambda: t.BartForConditionalGeneration(t.BartConfig(**seq2seq | overrides)),
        "mbart": lambda: t.MBartForConditionalGeneration(t.MBartConfig(**seq2seq | overrides)),
        "marian": lambda: t.MarianMTModel(t.MarianConfig(**seq2seq | overrides)),
        "m2m_100": lambda: t.M2M100ForConditionalGeneration(t.M2M100Config(**seq2seq | overrides)),
        "blenderbot": lambda: t.BlenderbotForConditionalGeneration(t.BlenderbotConfig(**seq2seq | overrides)),
        "blenderbot_small": lambda: t.BlenderbotSmallForConditionalGeneration(t.BlenderbotSmallConfig(**seq2seq | overrides)),
        "pegasus": lambda: t.PegasusForConditionalGeneration(
            t.PegasusConfig(**seq2seq | {"forced_eos_token_id": EOS} | overrides)
        ),
    }
    model: PreTrainedModel = makers[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.eval()


def tiny_encoder(kind: str, seed: int = 0) -> PreTrainedModel:
    """Return a two-layer encoder that makes no text: "bert" or "roberta"."""
    torch.manual_seed(seed)
    config = {
        "vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 512,
    }  # fmt: skip
    t = transformers
    makers: dict[str, Any] = {
        "bert": lambda: t.BertModel(t.BertConfig(**config)),
        "roberta": lambda: t.RobertaModel(t.RobertaConfig(**config)),
    }
    model: PreTrainedModel = makers[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.eval()


def save_tiny(kind: str, directory: Path, *, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Write a tiny model with its tokenizer, as a hub checkout would lie on disk."""
    model = tiny_model(kind, seed)
    model.save_pretrained(directory)
    (tokenizer or byte_tokenizer(append_eos=model.config.is_encoder_decoder)).save_pretrained(directory)
    return directory
