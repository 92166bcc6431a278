"""A weight sync into VLLMSampler, against vLLM's reload alone of ready-made tensors."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from benchmarks.measure import Row, alternate, publish
from rayexp.models import devices, factory
from rayexp.sampling.vllm_sampler import VLLMSampler
from rayexp.studies.presets import DECODERS
from rayexp.tasks.strings.symbols import VOCABULARY

TARGETS_S = {"tiny": 0.01, "paper": 0.1}
ROUNDS = 7


def run() -> list[Row]:
    device = devices.resolve_device("auto").type
    return [row(name, target, device) for name, target in TARGETS_S.items()]


def row(name: str, target: float, device: str) -> Row:
    shape = DECODERS[name]
    weights = {key: tensor.numpy() for key, tensor in factory.build(shape, VOCABULARY, seed=0).state_dict().items()}
    sampler = VLLMSampler(factory.config(shape, VOCABULARY), sequence_tokens=shape.context_tokens, device=device)
    torch.set_num_threads(1)  # after vLLM, which sets it too
    timed = alternate({"ours": lambda: sampler.sync(weights, 1), "vLLM": reload(sampler, weights)}, ROUNDS, device)
    megabytes = sum(array.nbytes for array in weights.values()) / 1e6
    return Row(
        case=f"{name}, {megabytes:.1f} MB",
        ours=timed["ours"].time(),
        peer=timed["vLLM"].time(),
        ratio=f"{timed['ours'].faster_than(timed['vLLM']):.2f}",
        target=f"< {target * 1e3:g} ms",
        met=timed["ours"].best < target,
    )


def reload(sampler: VLLMSampler, weights: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """Return a function that calls ``reload_weights`` of the sampler's own engine, without copies and without resetting
    its prefix cache."""
    tensors = [(name, torch.from_numpy(array)) for name, array in weights.items()]
    return lambda: sampler._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors)})


if __name__ == "__main__":
    publish(run())
