"""Rollout workers, which are samplers as Ray actors, and the manager through which a stage uses them."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError

from rayexp import logs
from rayexp.config import RunConfig
from rayexp.distributed import weight_sync
from rayexp.distributed.rpc import answer, calling, placed, this_call, unique
from rayexp.errors import PermanentError, StageError, first_line
from rayexp.formatting import number
from rayexp.models import devices, factory
from rayexp.models.config import Decoder, PretrainedDecoder
from rayexp.sampling.base import Completions, Sampler, Weights
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.sampling.vllm_sampler import VLLMSampler
from rayexp.stages import RolloutStage
from rayexp.tasks import Vocabulary

log = logging.getLogger(__name__)
ATTEMPTS = 3
#: vLLM's names of precisions.
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class ParityError(PermanentError):
    """Sampler and learner disagree about the probability of the same tokens: the weights did not arrive."""


@dataclass(frozen=True)
class Engine:
    """All settings that the start of a sampler depends on. A running sampler can serve the next stage if that has an
    equal engine."""

    decoder: Decoder | PretrainedDecoder
    vocabulary: Vocabulary
    sequence_tokens: int
    sampler: str
    precision: str
    device: str
    cpus: float
    kv_cache_gib: float | None
    tensor_parallel: int = 1

    @classmethod
    def of(cls, stage: RolloutStage, run_config: RunConfig) -> "Engine":
        root = stage.root
        return cls(
            decoder=root.decoder,
            vocabulary=root.task.vocabulary,
            sequence_tokens=root.sequence_tokens,
            sampler=stage.sampler,
            precision=stage.optimiser.precision,
            device=run_config.device,
            cpus=run_config.rollout_cpus,
            kv_cache_gib=run_config.kv_cache_gib,
            tensor_parallel=run_config.tensor_parallel,
        )


class RolloutWorker:
    """One sampler in one process. A restart loses its weights; the manager sends them again."""

    def __init__(self, engine: Engine) -> None:
        logs.configure_worker_logging(this_call)
        where = devices.resolve_device(engine.device)
        self._sampler: Sampler
        if engine.sampler == "vllm":
            self._sampler = VLLMSampler(
                factory.config(engine.decoder, engine.vocabulary),
                dtype=DTYPES[engine.precision],
                device=where.type,
                sequence_tokens=engine.sequence_tokens,
                kv_cache_gib=engine.kv_cache_gib,
                tensor_parallel=engine.tensor_parallel,
            )
        else:
            model = factory.build(engine.decoder, engine.vocabulary, seed=0, device=where)
            self._sampler = TorchSampler(model, precision=engine.precision)
        devices.use_cores(engine.cpus)  # here, because vLLM sets another number

    def sync(self, weights: Weights, version: int) -> None:
        self._sampler.sync(weights, version)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # weights may be the learner's own tensors, which it frees once this has returned

    def generate(
        self, prompts: list[list[int]], seeds: list[int], group_size: int, max_tokens: list[int], temperature: float
    ) -> Completions:
        return self._sampler.generate(prompts, seeds, group_size, max_tokens, temperature)

    def greedy(self, prompts: list[list[int]], max_tokens: list[int]) -> Completions:
        return self._sampler.greedy(prompts, max_tokens)

    def score(self, sequences: list[list[int]]) -> list[np.ndarray]:
        return self._sampler.score(sequences)


class RolloutManager:
    """All rollout workers of a stage as one sampler. Results do not depend on the number of workers, because seeds
    belong to prompts, and completions come back in the order of the prompts."""

    def __init__(self, stage: RolloutStage, run_config: RunConfig, first_bundle: int = 0) -> None:
        options: dict[str, Any] = {
            "num_cpus": run_config.rollout_cpus,
            "num_gpus": run_config.rollout_gpus or 0,
        }
        kind = weight_sync.actor(RolloutWorker, run_config)
        self._weights: tuple[Any, int] | None = None
        self.begin(stage, run_config)
        self.workers = [
            kind.options(name=unique(f"rollout-{i}"), **placed(first_bundle + i), **options).remote(
                Engine.of(stage, run_config)
            )
            for i in range(run_config.rollout_workers)
        ]

    def begin(self, stage: RolloutStage, run_config: RunConfig) -> None:
        """Prepare for a stage. Until the next ``sync`` the workers hold the weights of the stage before."""
        self._stage = stage
        self._run_config = run_config
        self._weights = None

    def sync(self, parts: Iterable[Any], version: int) -> None:
        """Send all workers the weights behind object references, one part after another.

        Weights that come as one part through the object store are kept for a worker that is restarted. Several parts
        are not kept, because together they would be a copy of all weights on the host.
        """
        kept = not weight_sync.direct(self._run_config)
        for i, weights in enumerate(parts):
            self._weights = (weights, version) if kept and i == 0 else None
            self._call_workers(lambda sync, _, weights=weights: sync.remote(weights, version), "sync")()

    def start(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], group_size: int, max_tokens: Sequence[int]
    ) -> Callable[[], Completions]:
        """Start generating without blocking. Return a function that waits for the completions.

        Call it before the next ``sync``: a restarted worker regenerates with the weights that were synced last.
        """
        return self._shard_prompts(
            len(prompts),
            lambda generate, part: generate.remote(
                prompts[part], seeds[part], group_size, max_tokens[part], self._stage.temperature
            ),
            "generate",
        )

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], group_size: int, max_tokens: Sequence[int]
    ) -> Completions:
        """See ``Sampler.generate``; prompts are dealt out in contiguous shares."""
        return self.start(prompts, seeds, group_size, max_tokens)()

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int]) -> Completions:
        """See ``Sampler.greedy``."""
        return self._shard_prompts(
            len(prompts), lambda greedy, part: greedy.remote(prompts[part], max_tokens[part]), "greedy"
        )()

    def require_parity(self, sequences: list[list[int]], expected: list[np.ndarray]) -> float:
        """Return the largest difference, over all workers and tokens, to the learner's log-probabilities, in nats.

        Raises ParityError above the stated limit.
        """
        scores = self._call_workers(lambda score, _: score.remote(sequences), "score")()
        worst = max(float(np.abs(a - b).max()) for rows in scores for a, b in zip(rows, expected, strict=True))
        limit = self._run_config.mismatch_limit(self._stage.optimiser.precision)
        if not worst <= limit:
            raise ParityError(
                f"sampler and learner differ by {worst:.3g} nats on fixed tokens after a weight sync of "
                f"{self._stage.label}, more than max_logprob_mismatch={number(limit)}; raise that if it is rounding, "
                "or use weight_transfer='object_store' if the weights did not arrive"
            )
        return worst

    def stop(self) -> None:
        """End all workers."""
        for worker in self.workers:
            ray.kill(worker)

    def _shard_prompts(self, prompts: int, ask: Callable[[Any, slice], Any], method: str) -> Callable[[], Completions]:
        """Call each worker with a contiguous share of the prompts, but for workers whose share is empty. Return a
        function that waits for all completions."""
        bounds = np.linspace(0, prompts, len(self.workers) + 1).astype(int)
        shares = [slice(int(first), int(last)) for first, last in pairwise(bounds)]
        busy = [i for i, share in enumerate(shares) if share.start < share.stop]
        answers = self._call_workers(lambda call, i: ask(call, shares[i]), method, busy)
        return lambda: _concat(answers())

    def _call_workers(
        self, ask: Callable[[Any, int], Any], method: str, workers: Sequence[int] | None = None
    ) -> Callable[[], list[Any]]:
        """Call all workers, or only these, at once. Return a function that waits for their answers.

        ``ask`` gets the method and the number of the worker. If a worker dies, Ray restarts it, it gets the weights,
        and the call is made again. The answer is the same, because the seeds are.
        """
        asked = range(len(self.workers)) if workers is None else workers
        references = {i: ask(calling(self.workers[i], method, self._stage), i) for i in asked}
        return lambda: [self._await_with_restart(i, reference, ask, method) for i, reference in references.items()]

    def _await_with_restart(self, i: int, reference: Any, ask: Callable[[Any, int], Any], method: str) -> Any:
        who = f"rollout worker {i} ({method}) of {self._stage.label}"
        for attempt in range(ATTEMPTS):
            try:
                return answer(reference, who, self._run_config.timeout_s)
            except RayActorError as error:
                if attempt == ATTEMPTS - 1:
                    raise StageError(f"{who} died {ATTEMPTS} times: {first_line(error)}") from error
                if self._weights is None:
                    raise StageError(
                        f"{who} died, and no copy of its weights is kept (weight_transfer="
                        f"{self._run_config.weight_transfer!r}); the next attempt goes on from the last checkpoint"
                    ) from error
                log.warning("%s died (%s); restarting it and repeating the call", who, type(error).__name__)
            # Unlike other calls, this one waits until the actor is back, because weights come before anything else.
            sync = calling(self.workers[i], "sync", self._stage, max_task_retries=-1)
            answer(sync.remote(*self._weights), f"{who}, being started again", self._run_config.timeout_s)
            reference = ask(calling(self.workers[i], method, self._stage), i)
        raise AssertionError("unreachable")


def _concat(parts: list[Completions]) -> Completions:
    versions = {part.weight_version for part in parts}
    if len(versions) != 1:
        raise RuntimeError(
            f"rollout workers sampled from different weight versions, {sorted(versions)}; please report this fault of "
            "rayexp, with the stage's failure.json"
        )
    return Completions.concatenate(parts)
