"""The decoder: transformers' LlamaForCausalLM, built from a ``Decoder`` value, saved as stock tools load it."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from rayexp.spec import Decoder
from rayexp.tasks.strings import vocabulary

transformers_logging.disable_progress_bar()  # saving and loading take milliseconds

CPU = torch.device("cpu")


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises RuntimeError when ``cuda`` is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device is 'cuda'; allowed here: cpu, for torch sees no GPU")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def use_cores(cores: float) -> None:
    """Let torch compute in as many threads as this process was given cores, at least one.

    Left to OMP_NUM_THREADS, a variable of the shell could change results: another number of threads adds in another
    order.
    """
    torch.set_num_threads(max(1, int(cores)))


def config(decoder: Decoder) -> LlamaConfig:
    """The transformers configuration of a decoder.

    Weights start with a standard deviation of width^-1/2: at the usual 0.02 a decoder of width 128 stays on the
    unigram plateau for the whole tiny budget (40,000 samples), at this one it is past it after a few thousand.
    """
    return LlamaConfig(
        vocab_size=vocabulary.SIZE,
        hidden_size=decoder.width,
        intermediate_size=decoder.ff_width,
        num_hidden_layers=decoder.layers,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.kv_heads,
        head_dim=decoder.head_size,
        max_position_embeddings=decoder.context_tokens,
        tie_word_embeddings=False,
        pad_token_id=vocabulary.PAD,
        bos_token_id=vocabulary.BOS,
        eos_token_id=vocabulary.EOS,
        initializer_range=decoder.width**-0.5,
        architectures=["LlamaForCausalLM"],
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )


def build(decoder: Decoder, seed: int, device: torch.device = CPU) -> LlamaForCausalLM:
    """A fresh fp32 decoder; equal seeds give equal weights and leave the global generator untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _placed(LlamaForCausalLM(config(decoder)), device)


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """``config.json`` and ``model.safetensors``, which ``from_pretrained`` and vLLM load as they are."""
    model.save_pretrained(folder)


def load(folder: Path, device: torch.device = CPU) -> LlamaForCausalLM:
    """A saved decoder, in fp32. Never runs code from the folder and never looks beyond it."""
    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True, local_files_only=True
    )
    return _placed(model, device)


def autocast(model: LlamaForCausalLM, precision: str) -> AbstractContextManager[Any]:
    """The context in which a decoder of fp32 weights computes in ``precision``: fp32, or bf16 by autocast."""
    if precision == "fp32":
        return nullcontext()
    if model.device.type == "cpu":
        # torch's fused attention is slow in bf16 on CPUs: more than half of a step at these lengths (benchmarks).
        model.set_attn_implementation("eager")
    return torch.autocast(model.device.type, dtype=torch.bfloat16)


def _placed(model: LlamaForCausalLM, device: torch.device) -> LlamaForCausalLM:
    """In fp32, on the device, ready to be trained."""
    nn.Module.to(model, device, torch.float32)
    return model.train()
