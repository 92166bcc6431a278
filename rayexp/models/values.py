"""Decoders that estimate a value."""

import torch
from torch import nn
from transformers import PreTrainedModel


@torch.no_grad()
def with_value_head(model: PreTrainedModel) -> PreTrainedModel:
    """Let the ``logits`` of a decoder be one number a token, [N, T, 1], and 0 until it is trained; return it."""
    # Draws no random numbers, as the making of a layer otherwise does.
    head = nn.utils.skip_init(nn.Linear, model.config.hidden_size, 1, device=model.device)
    for parameter in head.parameters():
        parameter.zero_()
    model.set_output_embeddings(head)
    return model
