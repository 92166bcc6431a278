"""The runner of pretraining: the decoder to train, and the samples of a step."""

import numpy as np
import torch
from transformers import PreTrainedModel

from rayexp.models import factory
from rayexp.models.config import PretrainedDecoder
from rayexp.stages import Pretrain
from rayexp.store.artifacts import Store
from rayexp.tasks import TokenBatch
from rayexp.tasks.copies import mixed_with_copies


def initial(stage: Pretrain, store: Store, device: torch.device) -> PreTrainedModel:
    """Return a fresh decoder, or the one that others have trained."""
    if isinstance(stage.decoder, PretrainedDecoder):
        return factory.pretrained(stage.decoder, stage.task.vocabulary, device)
    return factory.build(stage.decoder, stage.task.vocabulary, stage.seed, device)


def batch(stage: Pretrain, step: int) -> list[TokenBatch]:
    """Return the samples of a step: the next ``batch_samples`` of the mixture, as far as the budget goes."""
    start = step * stage.batch_samples
    stop = min(start + stage.batch_samples, stage.samples)
    ood_before_N = stage.ood_before(np.arange(start, stop + 1, dtype=np.int64))
    if stage.copied_items:
        return mixed_with_copies(stage.task, "pretrain", stage.seed, start, ood_before_N, stage.copied_items)
    return stage.task.mixed("pretrain", stage.seed, start, ood_before_N)


def loss_start(token_batch: TokenBatch) -> np.ndarray:
    """Return the first token that counts, [N]: all but ``<bos>`` do, because pretraining models the whole sample."""
    return np.ones_like(token_batch.length_N)
