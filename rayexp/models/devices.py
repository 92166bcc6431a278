"""Devices, threads and precision that models compute with."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from rayexp import host

CPU = torch.device("cpu")


def resolve_device(name: str) -> torch.device:
    """Return the device of a name. ``auto`` is the GPU if there is one. Raises RuntimeError on ``cuda`` if torch sees
    no GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device='cuda' was requested, but torch sees no GPU; use device='cpu'")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def memory(device: torch.device) -> float:
    """Return the total memory of a device in bytes, free and in use."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else host.memory()


def use_cores(cores: float) -> None:
    """Set torch's number of threads to the number of cores that this process was given, at least one.

    Otherwise the shell's OMP_NUM_THREADS could change results, because another number of threads adds in another order.
    """
    torch.set_num_threads(max(1, int(cores)))


def autocast(model: PreTrainedModel, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which a model of fp32 weights computes in ``precision``: fp32, or bf16 by autocast."""
    if precision == "fp32":
        return nullcontext()
    if model.device.type == "cpu":
        # torch's fused attention is slow in bf16 on CPUs: more than half of a step at these lengths (benchmarks).
        model.set_attn_implementation("eager")
    return torch.autocast(model.device.type, dtype=torch.bfloat16)
