"""A decoder spread over ranks (FSDP2): each holds its part of every weight, gradient and moment, and a whole block only
while it computes with it.

Numbers are those of one rank up to rounding, because gradients are added up in another order.
"""

import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rayexp.tasks import TokenBatch
from rayexp.training.context import Ranks


def spread(whole: PreTrainedModel | None, device: torch.device, precision: str, context: Ranks) -> PreTrainedModel:
    """Return this rank's part of the model that rank 0 has, on the CPU; others give None. Tensors go round one by one,
    so that no other rank ever holds the whole."""
    config, generation = context.gather(whole and (whole.config, whole.generation_config))[0]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.config, model.generation_config = config, generation
    mesh = init_device_mesh(device.type, (context.ranks,))
    _shard(model, mesh, precision)
    model.to_empty(device=device)
    _fill(model, whole, mesh)
    return model.train()


def is_spread(model: nn.Module) -> bool:
    """Return whether this rank has only a part of the model."""
    return isinstance(next(model.parameters()), DTensor)


def _shard(model: PreTrainedModel, mesh: DeviceMesh, precision: str) -> None:
    """Divide each block, then what is left. In bf16 half as many bytes of weights go round; gradients are added up in
    fp32."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if precision == "bf16" else MixedPrecisionPolicy()
    blocks = [block for block in model.modules() if type(block).__name__ in (model._no_split_modules or ())]
    for block in [*blocks, model]:
        fully_shard(block, mesh=mesh, mp_policy=policy)


@torch.no_grad()
def _fill(model: nn.Module, whole: nn.Module | None, mesh: DeviceMesh) -> None:
    given = {} if whole is None else dict([*whole.named_parameters(), *whole.named_buffers()])
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        source = given[name].to(tensor.device) if given else torch.empty(tensor.shape, device=tensor.device)
        if isinstance(tensor, DTensor):
            tensor.copy_(distribute_tensor(source, mesh, tensor.placements))
        else:
            torch.distributed.broadcast(source, 0)
            tensor.copy_(source)


def even_pieces(batch: TokenBatch, tokens: int | None, context: Ranks) -> list[TokenBatch]:
    """Return this rank's rows of a batch in as many pieces as every rank has, some of them maybe empty: a rank that
    computed once less often would let the others wait for its weights for ever. See ``TokenBatch.pieces``."""
    own = batch.shard(context.rank, context.ranks).pieces(tokens)
    most = len(batch.shard(0, context.ranks).pieces(tokens))  # no rank has more rows
    return own + [batch.take(slice(0))] * (most - len(own))
