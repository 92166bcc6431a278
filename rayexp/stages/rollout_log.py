"""Every rollout of a GRPO stage as Parquet, when asked for.

Rows are written to the stage's work folder just before each checkpoint, in a part named by its first step. A continued
stage starts at a checkpoint, so the parts before it are exactly its past.
"""

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayexp.sampling.protocol import Completions
from rayexp.store import Store
from rayexp.world import vocabulary


class RolloutLog:
    """Collects rollouts; ``table`` is all of them, or None when disabled."""

    #: One row a completion. logprobs: of its tokens under the policy that drew it, in nats.
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

    def __init__(self, store: Store, stage_id: str, enabled: bool) -> None:
        self._store = store
        self._folder = f"work/{stage_id}/rollouts"
        self._enabled = enabled
        self._rows: list[dict[str, object]] = []
        self._first_step: int | None = None

    def add(
        self,
        step: int,
        numbers: Sequence[int],
        prompts: Sequence[Sequence[int]],
        completions: Completions,
        rewards_PG: np.ndarray,
    ) -> None:
        """Keep the rollouts of one step."""
        if not self._enabled:
            return
        if self._first_step is None:
            self._first_step = step
        group = rewards_PG.shape[1]
        for i, row in enumerate(completions.rows):
            self._rows.append(
                {
                    "step": step,
                    "prompt_number": numbers[i // group],
                    "member": i % group,
                    "prompt": vocabulary.decode(prompts[i // group]),
                    "completion": vocabulary.decode(row),
                    "reward": float(rewards_PG[i // group, i % group]),
                    "logprobs": completions.logprobs_NC[i, : len(row)].tolist(),
                    "weight_version": completions.weight_version,
                }
            )

    def flush(self) -> None:
        """Write what was collected since the last flush."""
        if self._rows:
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(self._rows, schema=self.SCHEMA), sink)
            self._store.files.write(f"{self._folder}/{self._first_step:09d}.parquet", sink.getvalue())
            self._rows, self._first_step = [], None

    def table(self) -> pa.Table | None:
        """All rollouts of the stage, from its first step to the current one."""
        if not self._enabled:
            return None
        first = self._first_step if self._first_step is not None else 2**62
        files = self._store.files
        parts = [name for name in files.names(self._folder) if int(name.removesuffix(".parquet")) < first]
        past = [pq.read_table(io.BytesIO(files.read(f"{self._folder}/{part}"))) for part in parts]
        return pa.concat_tables([*past, pa.Table.from_pylist(self._rows, schema=self.SCHEMA)])
