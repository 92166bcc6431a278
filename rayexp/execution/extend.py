"""The runner of extended pretraining: the model to continue, and the samples of a step of the whole pretraining."""

import torch
from transformers import PreTrainedModel

from rayexp.execution import pretrain
from rayexp.execution.pretrain import loss_start
from rayexp.models import io
from rayexp.stages import Extend
from rayexp.store.artifacts import Store
from rayexp.tasks import TokenBatch

__all__ = ["batch", "initial", "loss_start"]


def initial(stage: Extend, store: Store, device: torch.device) -> PreTrainedModel:
    """Return the model of ``init``."""
    with store.model(stage.init.id) as folder:
        return io.load(folder, device)


def batch(stage: Extend, step: int) -> list[TokenBatch]:
    """Return the samples of that step of the whole pretraining."""
    return pretrain.batch(stage.pretraining, step)
