"""Models from values: transformers' LlamaForCausalLM from scratch, and pretrained models from elsewhere."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from rayexp import sources
from rayexp.models import io
from rayexp.models.config import Decoder, PretrainedDecoder
from rayexp.models.devices import CPU
from rayexp.tasks import Vocabulary

#: RoPE that rotates nothing: every frequency is divided by a billion. Stock transformers and vLLM both read this
#: configuration. Only some models have one for no positions at all.
NO_ROTATION = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 1e9,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1,
}


def config(decoder: Decoder | PretrainedDecoder, vocabulary: Vocabulary) -> PreTrainedConfig:
    """Return the transformers configuration of a decoder, with the special tokens of the vocabulary."""
    if isinstance(decoder, Decoder):
        return _llama_config(decoder, vocabulary)
    found = AutoConfig.from_pretrained(sources.described(decoder.source, decoder.revision), local_files_only=True)
    return _fitted(found, vocabulary)


def build(
    decoder: Decoder | PretrainedDecoder, vocabulary: Vocabulary, seed: int, device: torch.device = CPU
) -> PreTrainedModel:
    """Return a fresh fp32 model with the shape of a decoder. Equal seeds give equal weights. The global generator is
    left untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(decoder, vocabulary), attn_implementation="sdpa")
        return io.placed(model, device)


def pretrained(decoder: PretrainedDecoder, vocabulary: Vocabulary, device: torch.device = CPU) -> PreTrainedModel:
    """Return a pretrained model in fp32, with an output matrix of its own."""
    model = io.load(sources.whole(decoder.source, decoder.revision))
    if model.config.tie_word_embeddings:
        head = model.get_output_embeddings()
        assert head is not None, "a decoder has an output matrix"
        head.weight = nn.Parameter(head.weight.detach().clone())
    model.config = _fitted(model.config, vocabulary)
    return io.placed(model, device)


def _fitted(found: PreTrainedConfig, vocabulary: Vocabulary) -> PreTrainedConfig:
    """Return a configuration with an output matrix of its own and the end tokens of the vocabulary."""
    found.tie_word_embeddings = False
    found.update({"eos_token_id": vocabulary.eos, "bos_token_id": vocabulary.bos, "pad_token_id": vocabulary.pad})
    return found


def _llama_config(decoder: Decoder, vocabulary: Vocabulary) -> LlamaConfig:
    """Return the transformers configuration of a decoder.

    Weights start with a standard deviation of width^-1/2. At the usual 0.02 a decoder of width 128 stays on the unigram
    plateau for the whole tiny budget (40,000 samples). At width^-1/2 it leaves the plateau after a few thousand.
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
