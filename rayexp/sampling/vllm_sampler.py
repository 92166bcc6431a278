"""The default sampler of GRPO: vLLM in this process, fed with token ids.

No other module imports vLLM. Three facts about vLLM matter here. Weights enter through ``reload_weights``, because vLLM
packs them for its kernels, and the parameters themselves can't be written. Cached prefixes are stale after that. The
recorded log-probabilities must be those of the distribution sampled from.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from rayexp.errors import RefusedError
from rayexp.sampling.base import Completions, Weights, as_tensors
from rayexp.stages.memory import LEAST_CACHE, VLLM_SEQUENCES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Longest time that vLLM may take to list its architectures; 10 s on an idle core.
LISTING_S = 300.0
INSTALL = 'uv pip install --editable ".[{}]"'


class VLLMMissingError(RefusedError):
    """vLLM is not installed; the message says how to install it."""


def require_vllm(device: str) -> None:
    """Raise VLLMMissingError if vLLM can't be imported, without importing it."""
    if find_spec("vllm") is None:
        command = INSTALL.format(device)
        raise VLLMMissingError(f"vLLM, which GRPO samples with, is not installed; in the checkout, run: {command}")


@lru_cache
def served() -> frozenset[str]:
    """Return the architectures that vLLM lists as supported. vLLM runs in a process of its own here, because importing
    it takes seconds and hundreds of megabytes. Raises RefusedError if that fails."""
    listing = "from vllm import ModelRegistry; print(*ModelRegistry.get_supported_archs())"
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    try:
        found = subprocess.run(
            [sys.executable, "-c", listing],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=LISTING_S,
        )
    except subprocess.SubprocessError as error:
        said = ((getattr(error, "stderr", "") or "").strip() or str(error)).splitlines()
        raise RefusedError(f"vLLM does not say which architectures it has: {said[-1]}") from error
    return frozenset(found.stdout.splitlines()[-1].split())


class VLLMSampler:
    """``Sampler`` over an in-process engine that starts with random weights and waits for ``sync``."""

    def __init__(
        self,
        config: "PreTrainedConfig",
        *,
        sequence_tokens: int,
        dtype: str = "float32",
        device: str = "cpu",
        max_sequences: int = VLLM_SEQUENCES,
        kv_cache_gib: float | None = None,
        tensor_parallel: int = 1,
    ) -> None:
        """config: of the model, whose ``eos_token_id`` ends a completion. sequence_tokens: of prompt and completion.
        kv_cache_gib, tensor_parallel: see ``RunConfig``."""
        require_vllm(device)
        # vLLM reads these when it is imported. The engine runs in this process, so that its exception is this call's
        # exception.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        # vLLM logs before it has set up its own logging, which then takes the same level.
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if device == "cpu":
            os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")  # a compile of 10 s for a decoder of milliseconds
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # Ray decides how many threads there are
        from vllm import LLM, SamplingParams

        self._params: type[Any] = SamplingParams
        self._eos: int = config.eos_token_id
        self.weight_version = -1
        needed = max(LEAST_CACHE, max_sequences * sequence_tokens * cache_bytes(config, dtype))
        with TemporaryDirectory() as folder:
            config.save_pretrained(Path(folder))
            self._llm: Any = LLM(
                model=folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                dtype=dtype,  # pyright: ignore[reportArgumentType]
                max_model_len=sequence_tokens,
                max_num_seqs=max_sequences,
                kv_cache_memory_bytes=int(2**30 * kv_cache_gib if kv_cache_gib else needed) // tensor_parallel,
                tensor_parallel_size=tensor_parallel,
                distributed_executor_backend="mp" if tensor_parallel > 1 else None,  # Ray would place ranks anywhere
                gpu_memory_utilization=0.05,
                enable_prefix_caching=True,
                enforce_eager=device == "cpu",
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                seed=0,
            )

    def sync(self, weights: Weights, version: int) -> None:
        """See ``Sampler.sync``. Drop cached prefixes as well, which were computed with the old weights."""
        named = list(as_tensors(weights).items())
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(named)})
        if not self._llm.reset_prefix_cache():
            raise RuntimeError(f"vLLM did not reset its prefix cache at weight version {version}")
        self.weight_version = version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        group_size: int,
        max_tokens: Sequence[int],
        temperature: float = 1.0,
    ) -> Completions:
        """See ``Sampler.generate``. Completion j of a prompt is drawn with seed + j."""
        params = [
            self._params(n=group_size, seed=seed, temperature=temperature, top_p=1.0, top_k=-1, **self._common(limit))
            for seed, limit in zip(seeds, max_tokens, strict=True)
        ]
        return self._run(prompts, params)

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int]) -> Completions:
        """See ``Sampler.greedy``."""
        return self._run(prompts, [self._params(temperature=0.0, **self._common(limit)) for limit in max_tokens])

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See ``Sampler.score``."""
        params = self._params(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._llm.generate(_token_prompts(sequences), [params] * len(sequences), use_tqdm=False)
        scores = []
        for sequence, output in zip(sequences, outputs, strict=True):
            table = output.prompt_logprobs
            scores.append(np.array([table[t][int(sequence[t])].logprob for t in range(1, len(sequence))], np.float32))
        return scores

    def _common(self, limit: int) -> dict[str, Any]:
        return {
            "max_tokens": int(limit),
            "logprobs": 0,  # of the sampled token only
            "stop_token_ids": [self._eos],
            "detokenize": False,
        }

    def _run(self, prompts: Sequence[Sequence[int]], params: list[Any]) -> Completions:
        outputs = self._llm.generate(_token_prompts(prompts), params, use_tqdm=False)
        tokens: list[list[int]] = []
        logprobs: list[list[float]] = []
        for output in outputs:
            for completion in sorted(output.outputs, key=lambda choice: choice.index):
                ids = list(completion.token_ids)
                tokens.append(ids)
                logprobs.append([entry[i].logprob for i, entry in zip(ids, completion.logprobs, strict=True)])
        return Completions.from_rows(tokens, logprobs, self.weight_version)


def _token_prompts(sequences: Sequence[Sequence[int]]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": [int(token) for token in sequence]} for sequence in sequences]


def cache_bytes(config: "PreTrainedConfig", dtype: str) -> int:
    """Return the bytes of the keys and values of one token."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * (4 if dtype == "float32" else 2)
