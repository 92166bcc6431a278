"""The next-token loss of pretraining and SFT.

Shape suffixes: _N sequences, _T tokens, _V vocabulary.
"""

from torch import Tensor
from torch.nn import functional


def next_token_loss(logits_NTV: Tensor, tokens_NT: Tensor, start: int = 1, counted_NT: Tensor | None = None) -> Tensor:
    """Return the negative log-likelihood of tokens ``start ..`` of each row, summed over the row: nll_N, in nats.

    ``logits_NTV[:, t]`` predicts ``tokens_NT[:, t + 1]``; the logits of the last token may be left out. counted_NT:
    bool, which of these tokens count; by default all.
    """
    targets_NT = tokens_NT[:, start:]
    predictions_NTV = logits_NTV[:, start - 1 : tokens_NT.shape[1] - 1]
    nll = functional.cross_entropy(predictions_NTV.flatten(0, 1).float(), targets_NT.flatten(), reduction="none")
    nll_NT = nll.view(targets_NT.shape)
    return (nll_NT if counted_NT is None else nll_NT * counted_NT[:, start:]).sum(dim=1)
