"""The loss of one rank's share of a batch, and its mean over many steps.

Shape suffixes: _N samples, _T tokens, _V vocabulary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional

from rayexp.tasks import TokenBatch
from rayexp.training.loss import next_token_loss
from rayexp.training.trainer import Trainer

LossStart = Callable[[TokenBatch], np.ndarray]


class LossMeter:
    """Mean loss in nats per token, ID and OOD apart, since it was last read. Stays on the device until then."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)  # ID nll, ID tokens, OOD nll, OOD tokens

    def add(self, nll_N: Tensor, tokens_N: Tensor, ood_N: Tensor) -> None:
        """Add samples, each with its summed loss and the number of tokens that this covers."""
        ood, nll, tokens = ood_N.double(), nll_N.double(), tokens_N.double()
        pairs = [(nll * part, tokens * part) for part in (1 - ood, ood)]
        self._sums += torch.stack([number.sum() for pair in pairs for number in pair])

    def read(self, ranks: int) -> dict[str, float]:
        """Return the means over all ranks, and start anew; a split without samples is left out."""
        if ranks > 1:
            torch.distributed.all_reduce(self._sums)
        id_nll, id_tokens, ood_nll, ood_tokens = self._sums.tolist()
        self._sums.zero_()
        pairs = {"id/loss": (id_nll, id_tokens), "ood/loss": (ood_nll, ood_tokens)}
        return {name: nll / tokens for name, (nll, tokens) in pairs.items() if tokens}


def rank_loss(trainer: Trainer, meter: LossMeter, batch: TokenBatch, start_N: np.ndarray, weight: float) -> Tensor:
    """Return the mean next-token loss of this rank's rows, from token ``start_N`` of each on, and add it to the meter.

    DDP averages gradients over ranks: ``weight`` undoes that, so that the step is that of the whole batch, however many
    ranks share it. A rank without rows adds a zero gradient.
    """
    if len(batch.tokens_NT) == 0:
        return _nothing(trainer)
    nll_N = _nll(trainer, batch, start_N)
    counts_N, ood_N = (torch.from_numpy(of).to(trainer.device) for of in (batch.length_N - start_N, batch.ood_N))
    meter.add(nll_N.detach(), counts_N, ood_N)
    return nll_N.sum() * weight


@torch.no_grad()
def culprits(trainer: Trainer, batches: Sequence[TokenBatch], loss_start: LossStart) -> str:
    """Return which samples have a loss that is not finite, as text. All ranks have to call this, each for its own."""
    indices: list[int] = []
    for batch in batches:
        if len(batch.tokens_NT) == 0:
            _nothing(trainer)
            continue
        bad_N = ~torch.isfinite(_nll(trainer, batch, loss_start(batch)))
        indices += batch.index_N[bad_N.cpu().numpy()].tolist()
    return f"sample {', '.join(map(str, indices))}" if indices else "each sample by itself has a finite loss"


def _nothing(trainer: Trainer) -> Tensor:
    """Return a loss of zero from a pass through the whole decoder, which other ranks may wait for."""
    nothing_NT = torch.zeros((1, 1), dtype=torch.int64, device=trainer.device)
    with trainer.precision():
        return trainer.model(input_ids=nothing_NT, use_cache=False).logits.sum() * 0.0


def _nll(trainer: Trainer, batch: TokenBatch, start_N: np.ndarray) -> Tensor:
    """Return the summed next-token loss of each sample, in nats."""
    tokens_NT = torch.from_numpy(batch.tokens_NT.astype(np.int64)).to(trainer.device, non_blocking=True)
    rows = len(tokens_NT)
    inputs_NT = functional.pad(tokens_NT[:, :-1], (0, 0, 0, -rows % trainer.row_multiple))  # these rows are not read
    with trainer.precision():
        logits_NTV = trainer.model(input_ids=inputs_NT, use_cache=False, **_placed(batch, inputs_NT)).logits
    counted_NT = torch.from_numpy(batch.counted_NT(start_N)).to(trainer.device, non_blocking=True)
    return next_token_loss(logits_NTV[:rows], tokens_NT, int(start_N.min()), counted_NT)


def _placed(batch: TokenBatch, inputs_NT: Tensor) -> dict[str, Tensor]:
    """Return a decoder's arguments for the positions of tokens; none if they are 0, 1, 2, ..."""
    if batch.positions_NT is None:
        return {}
    positions_NT = torch.from_numpy(batch.positions_NT[:, :-1]).to(inputs_NT.device, non_blocking=True)
    padded_NT = functional.pad(positions_NT, (0, 0, 0, len(inputs_NT) - len(positions_NT)))
    # Without a mask transformers takes every gap between two positions for the start of another sequence.
    return {"position_ids": padded_NT, "attention_mask": torch.ones_like(inputs_NT)}
