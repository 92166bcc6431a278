"""A decoder sharded over ranks (FSDP2): each rank holds a shard of every weight, gradient and moment, and gathers a
block only while it computes with it.

Numbers are those of one rank up to rounding, because gradients are summed in another order.
"""

import copy
import warnings
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, cast

import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rayexp.models import io
from rayexp.tasks import TokenBatch
from rayexp.training.context import Ranks

#: Changes a decoder in place, and returns it.
Change = Callable[[PreTrainedModel], PreTrainedModel]


def spread(whole: PreTrainedModel | None, device: torch.device, precision: str, context: Ranks) -> PreTrainedModel:
    """Return this rank's shard of a model. whole: the model on the CPU, on rank 0; None on other ranks. Tensors are
    sent one by one, so that no other rank ever holds the whole."""
    config, generation = context.gather(whole and (whole.config, whole.generation_config))[0]
    mesh = init_device_mesh(device.type, (context.ranks,))
    model = _empty(config, generation, mesh, precision)
    _fill(model.to_empty(device=device), whole, mesh)
    return model.train()


@torch.no_grad()
def duplicate(model: PreTrainedModel, precision: str, change: Change = lambda model: model) -> PreTrainedModel:
    """Return a copy of a decoder, sharded like the original. change: is applied to the copy; the weights that it
    replaces by others of another shape are 0."""
    if not is_spread(model):
        return change(copy.deepcopy(model))
    given = dict(_tensors(model))
    mesh = cast(DTensor, next(model.parameters())).device_mesh
    twin = _empty(model.config, model.generation_config, mesh, precision, change).to_empty(device=model.device)
    for name, tensor in _tensors(twin):
        source = given.get(name)
        if source is not None and source.shape == tensor.shape:
            tensor.copy_(source)
        else:
            tensor.zero_()
    if model.is_gradient_checkpointing:
        io.enable_checkpointing(twin)
    return twin.train(model.training)


def total(value: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Return the sum of a value over all ranks. All ranks have to call this."""
    if ranks.ranks > 1:
        torch.distributed.all_reduce(value)
    return value


def is_spread(model: nn.Module) -> bool:
    """Return whether this rank has only a shard of the model."""
    return isinstance(next(model.parameters()), DTensor)


def _empty(
    config: PreTrainedConfig, generation: Any, mesh: DeviceMesh, precision: str, change: Change = lambda model: model
) -> PreTrainedModel:
    """Return a sharded decoder on the meta device, without memory for its weights."""
    with torch.device("meta"):
        model = change(AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa"))
    model.config, model.generation_config = config, generation
    _shard(model, mesh, precision)
    return model


def _tensors(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    """Return parameters and buffers, each once, by name."""
    return chain(model.named_parameters(), model.named_buffers())


def _shard(model: PreTrainedModel, mesh: DeviceMesh, precision: str) -> None:
    """Shard each block, then the rest of the model. In bf16 half as many bytes of weights are sent; gradients are
    summed in fp32."""
    # FSDP2 warns that changing logits in place would lose gradients; nothing here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if precision == "bf16" else MixedPrecisionPolicy()
    blocks = [block for block in model.modules() if type(block).__name__ in (model._no_split_modules or ())]
    for block in [*blocks, model]:
        # By default FSDP keeps the root gathered until its backward pass. A forward pass that only measures has none,
        # so the forward pass after the next step would read stale weights of the root.
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


@torch.no_grad()
def _fill(model: nn.Module, whole: nn.Module | None, mesh: DeviceMesh) -> None:
    given = {} if whole is None else dict(_tensors(whole))
    for name, tensor in _tensors(model):
        source = given[name].to(tensor.device) if given else torch.empty(tensor.shape, device=tensor.device)
        if isinstance(tensor, DTensor):
            tensor.copy_(distribute_tensor(source, mesh, tensor.placements))
        else:
            torch.distributed.broadcast(source, 0)
            tensor.copy_(source)


def even_pieces(batch: TokenBatch, tokens: int | None, context: Ranks) -> list[TokenBatch]:
    """Return this rank's rows of a batch as micro-batches, as many as every rank has; some may be empty. If a rank had
    one less, the others would wait for its weights for ever. See ``TokenBatch.pieces``."""
    own = batch.shard(context.rank, context.ranks).pieces(tokens)
    most = len(batch.shard(0, context.ranks).pieces(tokens))  # no rank has more rows
    return own + [batch.take(slice(0))] * (most - len(own))
