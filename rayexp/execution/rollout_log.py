"""The rollouts of a stage as Parquet, if ``keep_rollouts`` is set.

Rows are written to the stage's work folder just before each checkpoint, in a part named by its first step. An attempt
starts at a checkpoint, or at step 0 if every checkpoint is lost. Parts that begin before its first step are kept. Later
parts were written by an attempt that was abandoned; they are removed when the new attempt starts, even if it keeps no
rollouts.
"""

import io
import logging
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayexp.rl.prompts import PromptBatch
from rayexp.sampling.base import Completions
from rayexp.stages import Stage
from rayexp.store.artifacts import Store

log = logging.getLogger(__name__)

_PART = re.compile(r"(\d{9})\.parquet")  # excludes files that a killed process left half written


class RolloutLog:
    """The rollouts that are kept of a stage."""

    #: One row a completion. prompt: with its hint. logprobs: of its tokens under the policy that drew it, in nats.
    SCHEMA = pa.schema(
        [
            ("step", pa.int64()),
            ("prompt_number", pa.int64()),
            ("member", pa.int64()),
            ("prompt", pa.string()),
            ("completion", pa.string()),
            ("reward", pa.float32()),
            ("logprobs", pa.list_(pa.float32())),
            ("weight_version", pa.int64()),
        ]
    )

    def __init__(self, store: Store, stage: Stage, enabled: bool, first_step: int = 0) -> None:
        """``first_step``: where this attempt starts."""
        self._store = store
        self._stage_id = stage_id = stage.id
        self._decode = stage.root.task.vocabulary.decode
        self._enabled = enabled
        self._rows: list[dict[str, object]] = []
        self._first_step: int | None = None
        for name in store.work_names(stage_id, "rollouts"):
            if not ((part := _PART.fullmatch(name)) and int(part[1]) < first_step):
                store.remove_work(stage_id, f"rollouts/{name}")

    def add(self, step: int, batch: PromptBatch, completions: Completions, rewards_PG: np.ndarray) -> None:
        """Keep the rollouts of one step."""
        if not self._enabled:
            return
        if self._first_step is None:
            self._first_step = step
        group, contexts = rewards_PG.shape[1], batch.contexts
        for i, row in enumerate(completions.rows):
            self._rows.append(
                {
                    "step": step,
                    "prompt_number": batch.numbers[i // group],
                    "member": i % group,
                    "prompt": self._decode(contexts[i // group]),
                    "completion": self._decode(row),
                    "reward": float(rewards_PG[i // group, i % group]),
                    "logprobs": completions.logprobs_NC[i, : len(row)].tolist(),
                    "weight_version": completions.weight_version,
                }
            )

    def flush(self) -> None:
        """Write what was collected since the last flush."""
        if self._rows:
            part = _written(pa.Table.from_pylist(self._rows, schema=self.SCHEMA))
            self._store.save_work(self._stage_id, f"rollouts/{self._first_step:09d}.parquet", part)
            self._rows, self._first_step = [], None

    def files(self, steps: int) -> dict[str, bytes]:
        """Return all rollouts of the stage's ``steps`` steps as ``rollouts.parquet``; no file if rollouts are not kept.
        Warn of steps that ran without keeping theirs."""
        if not self._enabled:
            return {}
        parts = filter(_PART.fullmatch, self._store.work_names(self._stage_id, "rollouts"))
        past = [pq.read_table(io.BytesIO(self._store.work(self._stage_id, f"rollouts/{part}"))) for part in parts]
        whole = pa.concat_tables([*past, pa.Table.from_pylist(self._rows, schema=self.SCHEMA)])
        if missing := sorted(set(range(steps)) - set(whole["step"].to_pylist())):
            log.warning(
                "rollouts.parquet lacks %d of %d steps (the first is %d), which were run without keep_rollouts",
                *(len(missing), steps, missing[0]),
            )
        return {"rollouts.parquet": _written(whole)}


def _written(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
