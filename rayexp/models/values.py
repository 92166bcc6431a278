"""Decoders that estimate a value."""

import copy

import torch
from torch import nn
from transformers import PreTrainedModel


def value_model(policy: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a decoder whose ``logits`` are one number a token, [N, T, 1], and 0 until it is trained."""
    model = copy.deepcopy(policy)
    # Draws no random numbers, as the making of a layer otherwise does.
    head = nn.utils.skip_init(nn.Linear, policy.config.hidden_size, 1, device=policy.device)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    model.set_output_embeddings(head)
    return model
