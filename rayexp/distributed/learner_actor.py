"""The learner of a GRPO stage as a Ray actor: a ``PolicyLearner`` that can read and write the store."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayexp.distributed.rpc import this_call
from rayexp.evaluation.measure import measure
from rayexp.models import decoder
from rayexp.rl.learner import PolicyLearner
from rayexp.rl.rollouts import RolloutBatch
from rayexp.sampling.base import Completions
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.spec import GRPO, Evaluate, RunConfig, parse_stage
from rayexp.store.artifacts import Store
from rayexp.telemetry import logs
from rayexp.telemetry.metric_log import MetricLog


class Learner:
    """Turns to one stage after the other; ``completed`` says which step of it comes next."""

    def __init__(self) -> None:
        logs.configure_worker_logging(this_call)

    def begin(self, stage: str, run_config: str) -> None:
        """Turn to a stage (both arguments are JSON): at its last checkpoint, or at its ``init``."""
        spec = parse_stage(stage)
        assert isinstance(spec, GRPO)
        self._spec = spec
        self._execution = RunConfig.model_validate_json(run_config)
        self._store = Store.of(self._execution)
        self._store.require_shared()
        self._journal = MetricLog()
        self._drawn: Completions | None = None
        decoder.use_cores(self._execution.learner_cpus)
        device = decoder.resolve_device(self._execution.device)
        with self._store.model(spec.init.id) as folder:
            self._policy = PolicyLearner(spec, decoder.load(folder, device))
        with self._store.latest_checkpoint(spec.id) as folder:
            if folder is not None:
                state = torch.load(folder / "trainer.pt", map_location=device, weights_only=True)
                self._policy.trainer.restore(state)
                self._journal.load(folder)
                if drawn := state["drawn"]:
                    arrays = {name: tensor.cpu().numpy() for name, tensor in drawn["arrays"].items()}
                    self._drawn = Completions(**arrays, weight_version=drawn["weight_version"])

    def completed(self) -> int:
        """GRPO steps done so far."""
        return self._policy.trainer.completed_steps // self._spec.updates

    def drawn(self) -> Completions | None:
        """Completions of the next step, where the checkpoint that the stage goes on from has them."""
        return self._drawn

    def weights(self) -> dict[str, np.ndarray]:
        """Current weights, to be handed on by reference."""
        return self._policy.weights()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Current weights where they are; a copy, for what Ray hands on directly is not to change on the way."""
        return {name: tensor.detach().clone() for name, tensor in self._policy.model.state_dict().items()}

    def update(self, batches: list[RolloutBatch[np.ndarray]], rollout_statistics: dict[str, float]) -> dict[str, float]:
        """One GRPO step on these rollouts; see ``PolicyLearner.update`` for what it raises."""
        with logs.log_context(lambda: f"{self._spec.label}, step {self.completed() + 1}"):
            statistics = self._policy.update(batches, self._execution.mismatch_limit(self._spec.optimiser.precision))
        self._journal.log(self.completed(), grpo=statistics, rollout=rollout_statistics)
        return statistics

    def score(self, sequences: list[list[int]]) -> list[np.ndarray]:
        """Log-probabilities of fixed tokens, for the parity probe."""
        return TorchSampler(self._policy.model, precision=self._spec.optimiser.precision).score(sequences)

    def checkpoint(self, drawn: Completions | None) -> None:
        """Save everything that a continued stage needs; the prompt cursor is the step count. ``drawn``: completions of
        the next step that were drawn with weights which are gone by now (staleness)."""
        saved = None
        if drawn is not None:
            arrays = {name: getattr(drawn, name) for name in ("tokens_NC", "logprobs_NC", "length_N")}
            tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
            saved = {"arrays": tensors, "weight_version": drawn.weight_version}
        with TemporaryDirectory() as folder:
            torch.save(self._policy.trainer.state() | {"drawn": saved}, Path(folder) / "trainer.pt")
            self._journal.save(Path(folder))
            self._store.save_checkpoint(self._spec.id, self.completed(), Path(folder))

    def measure(self, evaluate: str) -> pa.Table:
        """Rows of ``measure.SCHEMA`` for the current weights."""
        spec = parse_stage(evaluate)
        assert isinstance(spec, Evaluate)
        return measure(self._policy.model, self._spec.root.world, spec)

    def publish(self, rollouts: pa.Table | None, seconds: dict[str, float]) -> None:
        """Make the finished stage's artifact. ``seconds``: how long each part of the loop took."""
        with TemporaryDirectory() as name:
            folder = Path(name)
            decoder.save(self._policy.model, folder / "model")
            self._journal.save(folder)
            if rollouts is not None:
                pq.write_table(rollouts, folder / "rollouts.parquet")
            self._store.publish(self._spec, folder, self._journal.provenance(self._execution, seconds))
