"""Supervised fine-tuning: what a step reads and what it is scored on."""

import torch
from transformers import LlamaForCausalLM

from rayexp import rng
from rayexp.models import decoder
from rayexp.spec import SFT
from rayexp.store.artifacts import Store
from rayexp.tasks.strings import Corpus, TokenBatch


def initial(spec: SFT, store: Store, device: torch.device) -> LlamaForCausalLM:
    """The pretrained decoder."""
    with store.model(spec.init.id) as folder:
        return decoder.load(folder, device)


def batch(spec: SFT, step: int) -> list[TokenBatch]:
    """ID samples only: ``samples`` different ones, in a fresh order each epoch."""
    start = step * spec.batch_samples
    stop = min(start + spec.batch_samples, spec.samples * spec.epochs)
    numbers = rng.epochs(rng.stream_key(spec.seed, "sft order"), spec.samples, start, stop)
    return Corpus(spec.root.world, spec.seed).tasks("sft", "id", numbers)


def loss_start(token_batch: TokenBatch) -> int:
    """First token that counts: the first one of the completion."""
    return token_batch.prompt_tokens
