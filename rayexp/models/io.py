"""Causal language models in folders that stock tools save and load."""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from rayexp.config import RunConfig
from rayexp.models import tokenizer
from rayexp.models.devices import CPU
from rayexp.tasks import Vocabulary

transformers_logging.disable_progress_bar()  # saving and loading take milliseconds


def save(model: PreTrainedModel, vocabulary: Vocabulary, folder: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and a tokenizer, for ``from_pretrained`` and vLLM."""
    model.save_pretrained(folder)
    tokenizer.save(vocabulary, folder)


def save_without_weights(model: PreTrainedModel, vocabulary: Vocabulary, folder: Path) -> None:
    """Write the files of ``save`` except the weights, which other code writes."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__.removeprefix("FSDP")]  # torch's name of a sharded class
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save(vocabulary, folder)


def load(folder: Path, device: torch.device = CPU) -> PreTrainedModel:
    """Return a saved model in fp32. Never run code from the folder, and never read outside it."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True, local_files_only=True
    )
    return placed(model, device)


def placed(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Return the model in fp32 on the device, ready for training."""
    nn.Module.to(model, device, torch.float32)
    return model.train()


def checkpointing(model: PreTrainedModel, run_config: RunConfig) -> PreTrainedModel:
    """Return the model, with gradient checkpointing if the run's configuration sets it (``enable_checkpointing``)."""
    return enable_checkpointing(model) if run_config.gradient_checkpointing else model


def enable_checkpointing(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with gradient checkpointing. Raises ValueError if its architecture has none."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model
