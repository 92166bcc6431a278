"""The learner of a stage as a Ray actor, or as several actors that are its ranks.

It holds weights and optimiser, and saves them to and loads them from the store. All ranks get the same calls; the
result of rank 0 is the answer. The driver owns all else that belongs to a stage: metrics, rollouts, timing, the record
of the run. It passes them as files, which are saved together with the weights under one manifest.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from rayexp import logs
from rayexp.config import RunConfig
from rayexp.distributed import learner_group, weight_sync
from rayexp.distributed.rpc import this_call
from rayexp.evaluation.mass import gold_masses
from rayexp.models import devices, io
from rayexp.rl.learner import Learner
from rayexp.rl.rollouts import RolloutBatch
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.stages import RolloutStage, Stage, parse_stage
from rayexp.store.artifacts import Store
from rayexp.training import checkpoint
from rayexp.training.checkpoint import TRAINER
from rayexp.training.context import ALONE, Ranks
from rayexp.training.parallel import is_spread, spread

#: The other files of a checkpoint or an artifact, by name.
Files = Mapping[str, bytes]


class LearnerActor:
    """An actor that serves one stage after another."""

    def __init__(self) -> None:
        logs.configure_worker_logging(this_call)
        self._ranks: Ranks = ALONE

    def open_meeting_place(self, timeout_s: float) -> tuple[str, int]:
        """See ``learner_group``."""
        return learner_group.open_meeting_place(timeout_s)

    def meet(self, rank: int, ranks: int, place: tuple[str, int], timeout_s: float) -> None:
        """Become one rank of several; see ``learner_group``."""
        self._ranks = learner_group.meet(rank, ranks, place, timeout_s)

    def begin(
        self, stage_json: str, run_config_json: str, make: Callable[..., Learner]
    ) -> tuple[int, dict[str, bytes]]:
        """Load a stage at its last checkpoint, or else at its ``init``. make: makes the learner from the stage and its
        ``models``.

        Return the number of completed steps, and the driver's files in the checkpoint.
        """
        stage = parse_stage(stage_json)
        if not isinstance(stage, RolloutStage):
            raise TypeError(f"a {stage.kind} stage has no learner")
        self._stage = stage
        self._run_config = RunConfig.model_validate_json(run_config_json)
        self._store = Store.of(self._run_config)
        self._store.require_shared()
        devices.use_cores(self._run_config.learner_cpus)
        device = devices.resolve_device(self._run_config.device)
        models = [self._loaded(each, device) for each in stage.models]
        self._learner = make(stage, *models, ranks=self._ranks)
        files: dict[str, bytes] = {}
        with self._store.latest_checkpoint(stage.id, self._ranks) as folder:
            if folder is not None:
                state = self._learner.state()
                checkpoint.load(state, folder / TRAINER, self._ranks.ranks)
                self._learner.restore(state)
                files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        return self._learner.completed, files

    def _loaded(self, stage: Stage, device: torch.device) -> PreTrainedModel:
        """Return a finished model, or this rank's shard of it."""
        if self._ranks.ranks == 1:
            with self._store.model(stage.id) as folder:
                return io.checkpointing(io.load(folder, device), self._run_config)
        whole = None
        if self._ranks.rank == 0:
            with self._store.model(stage.id) as folder:
                whole = io.load(folder)
        part = spread(whole, device, self._stage.optimiser.precision, self._ranks)
        return io.checkpointing(part, self._run_config)

    def ready(self) -> None:
        """Return once all earlier calls are answered."""

    def weight_chunks(self, limit: int) -> list[list[str]]:
        """Return the names of the weights, in parts that are sent one after another; see ``weight_sync.chunks``."""
        weights = self._learner.model.state_dict()
        return weight_sync.chunks({name: tensor.nbytes for name, tensor in weights.items()}, limit)

    def weights(self, names: list[str]) -> dict[str, np.ndarray]:
        """Return the current weights with these names. Ray passes them on by reference."""
        return self._learner.weights(names)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return a copy of the current weights on their device. A copy is needed, because the learner goes on while Ray
        transfers them."""
        return {name: tensor.detach().clone() for name, tensor in self._learner.model.state_dict().items()}

    def update(self, batches: list[RolloutBatch[np.ndarray]]) -> dict[str, float]:
        """Take one step on these rollouts, and return its statistics; see ``Learner.update`` for the errors."""
        with logs.log_context(lambda: f"{self._stage.label}, step {self._learner.completed + 1}"):
            return self._learner.update(batches, self._run_config.mismatch_limit(self._stage.optimiser.precision))

    def score(self, sequences: list[list[int]]) -> list[np.ndarray]:
        """Return log-probabilities of fixed tokens, for the parity check."""
        return TorchSampler(self._learner.model, precision=self._stage.optimiser.precision).score(sequences)

    def gold_mass(self, prompts: list[list[int]], gold: list[list[int]]) -> np.ndarray:
        """Return the probability that the current weights give the gold completion of each prompt."""
        return gold_masses(self._learner.model, prompts, gold, self._stage.temperature)

    def measure(self, evaluation_json: str, measure: Callable[[Any, Any], Any]) -> Any:
        """Return the result of ``measure`` on the weights of the published stage. Of several ranks only rank 0
        measures; it reads the whole model from the store."""
        evaluation = parse_stage(evaluation_json)
        if self._ranks.ranks == 1:
            return measure(self._learner.model, evaluation)
        vars(self).pop("_learner", None)  # training is over, and its memory is needed
        if self._ranks.rank:
            return None
        with self._store.model(self._stage.id) as folder:
            model = io.load(folder, devices.resolve_device(self._run_config.device))
        return measure(model, evaluation)

    def checkpoint(self, files: Files) -> None:
        """Save the state of the learner with the driver's files: all that a continued stage needs."""
        with TemporaryDirectory() as name:
            checkpoint.save(self._learner.state(), Path(name) / TRAINER, self._ranks.ranks)
            if self._ranks.rank == 0:
                _write(files, Path(name))
            self._store.save_checkpoint(self._stage.id, self._learner.completed, Path(name), self._ranks)

    def publish(self, files: Files, provenance: dict[str, Any]) -> None:
        """Publish the finished stage: its weights and the driver's files. Weights that are sharded over ranks come from
        a checkpoint."""
        model, vocabulary = self._learner.model, self._stage.root.task.vocabulary
        if is_spread(model):
            self.checkpoint(files)
        if self._ranks.rank:
            return
        with TemporaryDirectory() as name:
            if is_spread(model):
                with self._store.latest_checkpoint(self._stage.id) as saved:
                    assert saved is not None, "all ranks have just saved it"
                    checkpoint.export_model(model, vocabulary, saved / TRAINER, Path(name) / "model")
            else:
                io.save(model, vocabulary, Path(name) / "model")
            _write(files, Path(name))
            self._store.publish(self._stage, Path(name), provenance)


def _write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
