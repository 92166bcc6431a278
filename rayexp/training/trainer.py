"""One optimiser step, shared by pretraining, SFT and the GRPO learner.

They differ in where batches come from and in the objective; the trainer knows neither. It accumulates the gradients of
the losses it is handed, clips, steps, and follows the schedule. All that a continued run needs is in ``state``.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rayexp.errors import NotFiniteError
from rayexp.models import devices
from rayexp.stages import AdamW


def learning_rate(optimiser: AdamW, step: int, steps: int) -> float:
    """Return the rate of step ``step`` of ``steps``: linear warm-up from 1/warmup, then constant or a cosine to a
    tenth."""
    if step < optimiser.warmup_steps:
        return optimiser.learning_rate * (step + 1) / optimiser.warmup_steps
    if optimiser.schedule == "constant":
        return optimiser.learning_rate
    progress = (step - optimiser.warmup_steps) / max(1, steps - optimiser.warmup_steps)
    return optimiser.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(1.0, progress)))


#: Prefix of the decoder's own names in a trainer's state.
WEIGHTS = "weights."
#: Compiled decoders read batches with a multiple of this many rows, so that there are few shapes to compile.
COMPILED_ROWS = 256


class Trainer:
    """A decoder and its optimiser. ``model`` may be wrapped for data parallelism; ``module`` is the bare decoder, which
    may be sharded over ranks.

    row_multiple: the number of rows of a batch has to be a multiple of it.
    """

    def __init__(self, model: nn.Module, optimiser: AdamW, steps: int, module: nn.Module | None = None) -> None:
        self.model = model
        self.module = module or model
        self.device = next(model.parameters()).device
        self.completed_steps = 0
        self.row_multiple = 1
        self._settings = optimiser
        self._steps = steps
        matrices = [p for p in self.module.parameters() if p.ndim >= 2]
        vectors = [p for p in self.module.parameters() if p.ndim < 2]
        self._optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": optimiser.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=optimiser.learning_rate,
            betas=(optimiser.beta1, optimiser.beta2),
            eps=optimiser.epsilon,
            fused=True,
        )
        for parameter in self.module.parameters():  # as AdamW would in its first step, so that ``state`` is whole
            self._optimiser.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def compile(self) -> None:
        """Fuse the decoder's kernels, which takes about a minute for each shape of a batch. For GPUs: on CPUs it gains
        less than a tenth."""
        self.module.compile(dynamic=False)
        self.row_multiple = COMPILED_ROWS

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes of training run."""
        return devices.autocast(cast(PreTrainedModel, self.module), self._settings.precision)

    def step(
        self,
        losses: Iterable[Callable[[], Tensor]],
        check: Callable[[], None] = lambda: None,
        overlap: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Take one optimiser step on the sum of the losses, each computed and back-propagated in turn. Return the
        gradient's norm before clipping. With data parallelism gradients are averaged over ranks once, with the last
        loss.

        ``overlap`` is called when the device has been given all of its work, before the first wait for it.

        Raises NotFiniteError if a loss or the gradient is not finite, or what ``check`` raises once all losses are
        known; weights and optimiser are untouched then.
        """
        pending = list(losses)
        total = torch.zeros((), device=self.device)
        for position, loss in enumerate(pending):
            last = position == len(pending) - 1
            quiet = nullcontext() if last or self.model is self.module else self.model.no_sync()  # type: ignore[operator]
            with quiet:
                value = loss()
                total += value.detach()
                value.backward()
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        total_norm = nn.utils.get_total_norm(gradients)
        norm = total_norm
        if isinstance(total_norm, DTensor):  # all ranks have to see the same, or some would wait for others in vain
            norm = total_norm.full_tensor()
            torch.distributed.all_reduce(total)
        overlap()
        try:
            self._require_finite(total, norm)
            check()
        except BaseException:
            self._optimiser.zero_grad(set_to_none=True)
            raise
        nn.utils.clip_grads_with_norm_(self.module.parameters(), self._settings.clip_norm, total_norm)
        rate = learning_rate(self._settings, self.completed_steps, self._steps)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.completed_steps += 1
        return norm

    def skip(self, steps: int) -> None:
        """Advance the schedule by ``steps`` updates without making them; weights and optimiser stay as they are."""
        self.completed_steps += steps

    def _require_finite(self, loss: Tensor, norm: Tensor) -> None:
        if torch.isfinite(loss + norm):  # one wait for the device, not two
            return
        if not torch.isfinite(loss):
            raise NotFiniteError(f"the loss is {loss.item()}")
        for name, parameter in self.module.named_parameters():
            if parameter.grad is not None and not _is_finite(parameter.grad):
                raise NotFiniteError(f"the gradient of {name} is not finite")
        raise NotFiniteError(f"the gradient's norm overflows ({norm.item()}), although every gradient is finite")

    @property
    def remedy(self) -> str:
        """Return what may keep the numbers of the next attempt finite, as the end of an error's sentence."""
        lower = f"lower optimiser.learning_rate={self._settings.learning_rate:g}"
        return lower if self._settings.precision == "fp32" else f"{lower}, or use optimiser.precision='fp32'"

    def state(self) -> dict[str, Tensor]:
        """Return all that a continued run needs, by name. Weights and moments are the trainer's own, not copies."""
        weights = {f"{WEIGHTS}{name}": tensor for name, tensor in self.module.state_dict().items()}
        moments = {
            f"{moment}.{name}": tensor
            for name, parameter in self.module.named_parameters()
            for moment, tensor in self._optimiser.state[parameter].items()
        }
        steps = torch.tensor(self.completed_steps)
        return {**weights, **moments, "completed_steps": steps, "generator": torch.get_rng_state()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state`` as if nothing had happened (bitwise on CPU in fp32)."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.completed_steps = int(state["completed_steps"])
        torch.set_rng_state(state["generator"])


def _is_finite(gradient: Tensor) -> bool:
    """Return whether all of a gradient is finite, on whatever rank it lies: all ranks get the same answer."""
    if not isinstance(gradient, DTensor):
        return bool(torch.isfinite(gradient).all())
    finite = torch.isfinite(gradient.to_local()).all().int()
    torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
    return bool(finite)
