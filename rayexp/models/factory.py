"""Decoders from scratch: transformers' LlamaForCausalLM, built from a ``Decoder`` value."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rayexp.models.config import Decoder
from rayexp.models.devices import CPU
from rayexp.models.io import placed
from rayexp.tasks import Vocabulary

#: RoPE that rotates nothing: every frequency is divided by a billion. A configuration that stock transformers and vLLM
#: both read, where one of no positions at all is only known to some models.
NO_ROTATION = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 1e9,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1,
}


def llama_config(decoder: Decoder, vocabulary: Vocabulary) -> LlamaConfig:
    """Return the transformers configuration of a decoder.

    Weights start with a standard deviation of width^-1/2: at the usual 0.02 a decoder of width 128 stays on the
    unigram plateau for the whole tiny budget (40,000 samples), at this one it is past it after a few thousand.
    """
    return LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=decoder.width,
        intermediate_size=decoder.ff_width,
        num_hidden_layers=decoder.layers,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.kv_heads,
        head_dim=decoder.head_size,
        max_position_embeddings=decoder.context_tokens,
        rope_parameters=NO_ROTATION if decoder.positions == "none" else None,
        tie_word_embeddings=False,
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        initializer_range=decoder.width**-0.5,
        architectures=["LlamaForCausalLM"],
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )


def build(decoder: Decoder, vocabulary: Vocabulary, seed: int, device: torch.device = CPU) -> PreTrainedModel:
    """Return a fresh fp32 decoder. Equal seeds give equal weights and leave the global generator untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return placed(LlamaForCausalLM(llama_config(decoder, vocabulary)), device)
