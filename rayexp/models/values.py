"""Decoders with a value head, for a critic."""

import torch
from torch import nn
from transformers import PreTrainedModel


@torch.no_grad()
def with_value_head(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the output matrix of a decoder, so that its ``logits`` are one number a token, [N, T, 1], at first 0.
    Return the decoder."""
    # skip_init draws no random numbers, which creating a layer otherwise does.
    head = nn.utils.skip_init(nn.Linear, model.config.hidden_size, 1, device=model.device)
    for parameter in head.parameters():
        parameter.zero_()
    model.set_output_embeddings(head)
    return model
