"""The release kit of a study: a folder to publish, with all that is needed to check and load its content.

    stages/<id>/              the artifacts of all its finished stages, byte for byte
    studies/<name>/           results.parquet, the report, plan.json
    records.parquet           one row a stage: id, kind, label, init_id, spec, provenance (the last two as JSON)
    SHA256SUMS                checksums of all these files, for ``sha256sum -c``. Written last: a kit without it is not
                              complete
    README.md

A kit is a store, so every command that reads a store works on it. Artifacts are verified against their manifests while
they are copied, so a kit holds no damaged file.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayexp.config import canonical_json
from rayexp.formatting import one_line
from rayexp.stages import Stage
from rayexp.store.artifacts import STAGED, StoreError
from rayexp.store.filesystem import Files
from rayexp.store.index import Finished, StoreIndex
from rayexp.store.manifest import MANIFEST
from rayexp.store.probe import require_writable

SUMS = "SHA256SUMS"
#: One row a finished stage; spec and provenance are JSON texts.
RECORDS = pa.schema([(name, pa.string()) for name in ("id", "kind", "label", "init_id", "spec", "provenance")])

README = """# {name}

The release kit of the study {name}, written by rayexp {version}: {finished} of its {planned} stages, {size} bytes in
{files} files.

- `stages/<id>/`: one stage each. `spec.json` (every setting, those of what it is built on included), `model/` (a
  decoder), `metrics.parquet` or `results.parquet`, `provenance.json`, and `manifest.json` with size and
  SHA-256 of each of these files.
- `studies/{name}/`: `results.parquet` (one row a test prompt of a measured stage), and the report with its figures,
  `report/index.html`.
- `records.parquet`: one row a stage: id, kind, label, init_id, and spec and provenance as JSON.
- `SHA256SUMS`: of every file but itself.

Verify:

```sh
sha256sum --check --quiet SHA256SUMS
```

Load a decoder. Its tokenizer has the token ids of its task, and adds none by itself: a prompt begins with `<bos>`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("stages/{example}/model")
tokenizer = AutoTokenizer.from_pretrained("stages/{example}/model")
```

That is the whole model, whatever `decoder.positions` of its stage is: `none` is RoPE whose frequencies are divided by
1e9 in `model/config.json`, and `randomised` is about training alone. All were measured at the positions 0, 1, 2, ...,
which transformers and vLLM take by themselves.

Read all results:

```python
import pandas as pd

rows = pd.read_parquet("studies/{name}/results.parquet")
```

The folder is a rayexp store: `rayexp ls --store .`, `rayexp show <id> --store . --verify`,
`rayexp compare {name} OTHER::{name} --store .`
"""


class Release:
    """The release kit of a study. The study and the target are checked before ``write`` writes anything."""

    def __init__(self, index: StoreIndex, name: str, url: str) -> None:
        """Check the study and the target. Raises StoreError if there is no such study, if none of its stages is
        finished, if a stage can't be read, or if ``url`` can't be written or is not empty."""
        self.store, self.name, self.planned = index.store, name, index.study(name)
        self.finished = index.finished(self.planned)
        if not self.finished:
            raise StoreError(f"study={name!r} has no finished stage in the store {self.store.url}")
        self.specs = index.specs(self.finished)
        if unread := self.finished.keys() - self.specs.keys():
            raise StoreError(
                f"{self.store.url}/stages/{min(unread)}/spec.json cannot be read by this version of rayexp; export "
                "with the version that is named in its provenance.json"
            )
        self.files = Files(url)
        if not self.files.empty():
            raise StoreError(f"to={url!r} is not empty; give a folder or URL with nothing in it")
        require_writable(self.files)
        self.sums: dict[str, str] = {}
        self.bytes = 0

    def write(self, version: str, say: Callable[[str], None]) -> None:
        """Write the kit. Call ``say`` with a line about each stage. Raises StoreError if an artifact is damaged."""
        ids = [stage_id for stage_id in self.planned if stage_id in self.finished]
        for number, stage_id in enumerate(ids, start=1):
            say(one_line(f"{number}/{len(ids)}  {stage_id}  {self.finished[stage_id].label}"))
            place = f"stages/{stage_id}"
            with self.store.fetched(place) as folder:
                for file in sorted(file for file in folder.rglob("*") if file.is_file()):
                    self._add(f"{place}/{file.relative_to(folder).as_posix()}", file)
            self._add(f"{place}/{MANIFEST}", self.store.files.read(f"{place}/{MANIFEST}"))
        for path in _below(self.store.files, f"studies/{self.name}"):
            self._add(path, self.store.files.read(path))
        self._add("records.parquet", records([(self.finished[stage_id], self.specs[stage_id]) for stage_id in ids]))
        models = [stage_id for stage_id in ids if "model/config.json" in self.finished[stage_id].files]
        about = {"name": self.name, "version": version, "example": models[-1] if models else "<id>"}
        counts = {"finished": len(ids), "planned": len(self.planned), "files": len(self.sums)}
        self._add("README.md", README.format(**about, **counts, size=f"{self.bytes:,}").encode())
        lines = [f"{digest}  {name}\n" for name, digest in sorted(self.sums.items())]
        self.files.write(SUMS, "".join(lines).encode())

    def _add(self, name: str, content: bytes | Path) -> None:
        """Write a file from bytes, or from a local file of any size, and record its checksum."""
        if isinstance(content, Path):
            with content.open("rb") as stream:
                self.sums[name] = hashlib.file_digest(stream, "sha256").hexdigest()
            self.bytes += content.stat().st_size
            self.files.upload(content, name)
        else:
            self.sums[name] = hashlib.sha256(content).hexdigest()
            self.bytes += len(content)
            self.files.write(name, content)


def records(stages: list[tuple[Finished, Stage]]) -> bytes:
    """Return a Parquet file with a row of ``RECORDS`` for each stage."""
    rows = [
        {
            "id": finished.id,
            "kind": finished.kind,
            "label": finished.label,
            "init_id": spec.parent.id if spec.parent else None,
            "spec": canonical_json(spec.model_dump(mode="json")),
            "provenance": json.dumps(finished.provenance),
        }
        for finished, spec in stages
    ]
    file = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORDS), file)
    return file.getvalue().to_pybytes()


def _below(files: Files, folder: str) -> list[str]:
    """Return the names of all files in a folder and its subfolders."""
    found: list[str] = []
    for name in files.names(folder):
        if name.startswith(STAGED):  # files of a report that is being written
            continue
        path = f"{folder}/{name}"
        found += _below(files, path) if files.is_folder(path) else [path]
    return found
