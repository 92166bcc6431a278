"""The runner of supervised fine-tuning: the model to start from, and the samples of a step."""

import numpy as np
import torch
from transformers import PreTrainedModel

from rayexp import rng
from rayexp.models import io
from rayexp.stages import SFT
from rayexp.store.artifacts import Store
from rayexp.tasks import TokenBatch


def initial(stage: SFT, store: Store, device: torch.device) -> PreTrainedModel:
    """Return the model of ``init``."""
    with store.model(stage.init.id) as folder:
        return io.load(folder, device)


def batch(stage: SFT, step: int) -> list[TokenBatch]:
    """Return samples by number, in a fresh order each epoch; the first ``ood_samples`` of them are OOD."""
    start = step * stage.batch_samples
    stop = min(start + stage.batch_samples, stage.samples * stage.epochs)
    numbers = rng.epochs(rng.stream_key(stage.seed, "sft order"), stage.samples, start, stop)
    is_ood = numbers < stage.ood_samples
    return stage.root.task.of_roles("sft", stage.seed, {"id": numbers[~is_ood], "ood": numbers[is_ood]})


def loss_start(token_batch: TokenBatch) -> np.ndarray:
    """Return the first token that counts, [N]: the first one of the completion."""
    return token_batch.prompt_tokens_N
