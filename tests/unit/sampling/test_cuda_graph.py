"""A decoding step over fixed memory, as a CUDA graph captures it; here on a CPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaForCausalLM

from rayexp.models import factory
from rayexp.sampling.cuda_graph import StaticStep
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import MICRO


@pytest.mark.parametrize("spare_rows", [0, 5])
def test_a_step_on_fixed_memory_is_a_step_of_a_growing_cache(model, spare_rows):
    """Run the captured step twice over the same memory. The second prompt sees nothing of the first."""
    group, limit, length = 3, 4, 7
    fixed = StaticStep(model, 4 * group + spare_rows, length, limit)
    for seed in range(2):
        random = torch.Generator().manual_seed(seed)
        prompts_PT = torch.randint(VOCABULARY.size, (4, length), generator=random)
        tokens_NC = torch.randint(VOCABULARY.size, (4 * group, limit), generator=random)
        cache = DynamicCache()
        with torch.no_grad():
            model(input_ids=prompts_PT, past_key_values=cache, use_cache=True)
            step = fixed.begin(cache, group)
            whole_NT = torch.cat([prompts_PT.repeat_interleave(group, dim=0), tokens_NC], dim=1)
            expected_NTV = model(input_ids=whole_NT, use_cache=False).logits
            for position in range(limit):
                torch.testing.assert_close(step(tokens_NC[:, position]), expected_NTV[:, length + position])


def test_a_step_in_bf16_sees_weights_that_were_written_in_place(model):
    """Stay inside one autocast context. It caches copies of weights, which a graph would continue to read."""
    fixed, cache, token_N = StaticStep(model, 4, 7, 4), DynamicCache(), torch.arange(4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.zeros((4, 7), dtype=torch.int64), past_key_values=cache, use_cache=True)
        before_NV = fixed.begin(cache, 1)(token_N)
        model.lm_head.weight.mul_(2)
        torch.testing.assert_close(fixed.begin(cache, 1)(token_N), 2 * before_NV)


class NothingFromTheHost(TorchDispatchMode):
    """A mode that refuses tensors made of Python numbers, which a CUDA graph can't copy to its device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket is not torch.ops.aten.lift_fresh, "a tensor of the host's numbers"
        return func(*args, **(kwargs or {}))


def test_a_step_neither_waits_for_a_value_nor_takes_one_from_the_host():
    """Use tensors without values, so that reading a value fails. Capturing needs a step without such reads."""
    with FakeTensorMode(), torch.no_grad():
        model = LlamaForCausalLM(factory.config(MICRO, VOCABULARY))
        cache, fixed, token_N = DynamicCache(), StaticStep(model, 8, 7, 4), torch.zeros(8, dtype=torch.int64)
        model(input_ids=torch.zeros((4, 7), dtype=torch.int64), past_key_values=cache, use_cache=True)
        step = fixed.begin(cache, 2)
        with NothingFromTheHost():
            assert step(token_N).shape == (8, VOCABULARY.size)
        with pytest.raises(AssertionError, match="numbers"), NothingFromTheHost():
            torch.tensor([1])
        with pytest.raises(DataDependentOutputException):
            step(token_N).max().item()
