"""The next-token loss against its definition."""

import pytest
import torch

from rayexp.training.loss import next_token_loss


@pytest.mark.parametrize("start", [1, 3])
@pytest.mark.parametrize("last_logits", [True, False])
def test_next_token_loss_is_the_negative_log_likelihood_of_each_row(start, last_logits):
    generator = torch.Generator().manual_seed(2)
    logits_NTV = torch.randn(4, 6, 5, generator=generator)
    tokens_NT = torch.randint(5, (4, 6), generator=generator)
    by_hand_N = [
        -torch.stack([logits_NTV[n, t - 1].double().softmax(0)[tokens_NT[n, t]].log() for t in range(start, 6)]).sum()
        for n in range(4)
    ]
    nll_N = next_token_loss(logits_NTV if last_logits else logits_NTV[:, :-1], tokens_NT, start)
    torch.testing.assert_close(nll_N.double(), torch.stack(by_hand_N), rtol=1e-6, atol=1e-6)
