"""Pretraining: what a step reads and what it is scored on."""

import torch
from transformers import LlamaForCausalLM

from rayexp.models import decoder
from rayexp.spec import Pretrain
from rayexp.store.artifacts import Store
from rayexp.tasks.strings import Corpus, TokenBatch


def initial(spec: Pretrain, store: Store, device: torch.device) -> LlamaForCausalLM:
    """A fresh decoder."""
    return decoder.build(spec.decoder, spec.seed, device)


def batch(spec: Pretrain, step: int) -> list[TokenBatch]:
    """The samples of step ``step``: the next ``batch_samples`` of the mixture, as far as the budget goes."""
    start = step * spec.batch_samples
    count = min(spec.batch_samples, spec.samples - start)
    return Corpus(spec.world, spec.seed).mixture("pretrain", spec.ood_ratio, start, count)


def loss_start(token_batch: TokenBatch) -> int:
    """First token that counts: all but ``<bos>``, for pretraining models the whole sample."""
    return 1
