"""Log-probabilities of groups whose common prefixes are read once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rayexp.config import RunConfig
from rayexp.models import factory, io
from rayexp.models.cache import padded
from rayexp.rl.scoring import UniquePrefixes, completion_logprobs, group_hidden, group_logits, group_logprobs
from rayexp.studies.presets import DECODERS
from rayexp.tasks.strings.symbols import VOCABULARY


def gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


@pytest.mark.parametrize(("completion_tokens", "symbols"), [(1, 60), (5, 60), (5, 10)])
def test_what_a_group_shares_changes_neither_value_nor_gradient(completion_tokens, symbols):
    """Compare with each completion read after its own prompt. With only two symbols, many completions begin alike."""
    model = factory.build(DECODERS["tiny"], VOCABULARY, seed=5)
    generator = torch.Generator().manual_seed(0)
    prompts_PT = torch.randint(8, 60, (3, 7), generator=generator)
    tokens_NC = torch.randint(8, symbols, (60, completion_tokens), generator=generator)
    weights_NCV = torch.randn((60, completion_tokens, 64), generator=generator)
    prefixes = UniquePrefixes.of(prompts_PT.numpy(), tokens_NC.numpy())
    different = {(1, 60): 3, (5, 60): 60, (5, 10): 29}[completion_tokens, symbols]
    assert len(prefixes.row_N.unique()) == different
    whole_NT = torch.cat([prompts_PT.repeat_interleave(20, dim=0), tokens_NC[:, :-1]], dim=1)
    found = []
    for logprobs_NCV in (group_logprobs(model, prefixes), completion_logprobs(model, whole_NT, completion_tokens)):
        (logprobs_NCV * weights_NCV).sum().backward()
        found.append([logprobs_NCV.detach(), *map(gradient, model.parameters())])
        model.zero_grad()
    for shared, alone in zip(*found, strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("read", [group_logits, group_hidden])
def test_activations_that_are_computed_again_change_neither_value_nor_gradient(read):
    model = factory.build(DECODERS["tiny"], VOCABULARY, seed=5)
    generator = torch.Generator().manual_seed(0)
    prompts_PT, tokens_NC = (torch.randint(8, 60, shape, generator=generator) for shape in ((3, 7), (24, 5)))
    prefixes = UniquePrefixes.of(prompts_PT.numpy(), tokens_NC.numpy())
    calls, found = [], []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for again in (False, True):
        io.checkpointing(model, RunConfig(gradient_checkpointing=again))
        values_UCX = read(model, prefixes)
        read_once = len(calls)
        values_UCX.square().sum().backward()
        assert len(calls) == read_once + again
        used = [parameter for parameter in model.parameters() if parameter.grad is not None]
        found.append([values_UCX.detach(), *map(gradient, used)])
        model.zero_grad()
        calls.clear()
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(kept, again, rtol=1e-4, atol=1e-3)


@given(
    tokens_NC=arrays(np.int64, st.tuples(st.sampled_from([6, 96]), st.integers(1, 4)), elements=st.integers(0, 2)),
    group=st.sampled_from([1, 2, 6]),
)
def test_beginnings_are_those_of_the_completions_and_each_there_once(tokens_NC, group):
    prompts_PT = np.arange(len(tokens_NC) // group)[:, None] + np.arange(5)
    prefixes = UniquePrefixes.of(prompts_PT, tokens_NC)
    assert torch.equal(prefixes.prompts_PT, torch.from_numpy(prompts_PT))
    owner_N = np.arange(len(tokens_NC)) // group
    assert (prefixes.tokens_UC[prefixes.row_N].numpy() == tokens_NC[:, :-1]).all()
    assert (prefixes.prompt_U[prefixes.row_N].numpy() == owner_N).all()
    different = {(int(owner), *row[:-1].tolist()) for owner, row in zip(owner_N, tokens_NC, strict=True)}
    assert len(prefixes.row_N.unique()) == len(different)
    assert len(prefixes.tokens_UC) == padded(len(different))
