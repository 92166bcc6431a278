"""The release kit of a study: a folder to publish, from which everything can be checked and loaded.

    stages/<id>/              the artifacts of all its finished stages, byte for byte
    studies/<name>/           results.parquet, the report, plan.json
    records.parquet           one row a stage: id, kind, label, init_id, spec, provenance (the last two as JSON)
    SHA256SUMS                of all of that; ``sha256sum -c`` reads it. Written last: a kit without it is not whole
    README.md

A kit is a store: every command that takes one works on it. Artifacts are verified against their manifests while they
are copied, so nothing that is damaged gets into a kit.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from rayexp.config import canonical_json
from rayexp.formatting import one_line
from rayexp.stages import Stage
from rayexp.store.artifacts import MANIFEST, STAGED, Store, StoreError
from rayexp.store.filesystem import Files
from rayexp.store.index import Finished, StoreIndex
from rayexp.store.probe import require_writable

SUMS = "SHA256SUMS"
#: One row a finished stage; spec and provenance are JSON texts.
RECORDS = pa.schema([(name, pa.string()) for name in ("id", "kind", "label", "init_id", "spec", "provenance")])

README = """# {name}

The release kit of the study {name}, written by rayexp {version}: {finished} of its {planned} stages, {size} bytes in
{files} files.

- `stages/<id>/`: one stage each. `spec.json` (every setting, those of what it is built on included), `model/` (a
  Llama-style decoder), `metrics.parquet` or `results.parquet`, `provenance.json`, and `manifest.json` with size and
  SHA-256 of each of these files.
- `studies/{name}/`: `results.parquet` (one row a test prompt of a measured stage), and the report with its figures,
  `report/index.html`.
- `records.parquet`: one row a stage: id, kind, label, init_id, and spec and provenance as JSON.
- `SHA256SUMS`: of every file but itself.

Verify:

```sh
sha256sum --check --quiet SHA256SUMS
```

Load a decoder. Its tokens are those of `vocabulary.symbols` of its task, `rayexp.stages.parse_stage(...).root.task`:

```python
from transformers import LlamaForCausalLM

model = LlamaForCausalLM.from_pretrained("stages/{example}/model")
```

Read all results:

```python
import pandas as pd

rows = pd.read_parquet("studies/{name}/results.parquet")
```

The folder is a rayexp store: `rayexp ls --store .`, `rayexp show <id> --store . --verify`,
`rayexp compare {name} OTHER::{name} --store .`
"""


class ReleaseBundle:
    """A release kit that is being written, and the checksums of what it has so far."""

    def __init__(self, url: str) -> None:
        """Raises StoreError if ``url`` can't be written, or is a folder that has anything in it."""
        self.files = Files(url)
        if not self.files.empty():
            raise StoreError(f"to is {url!r}, which is not empty; allowed: a folder or URL with nothing in it")
        require_writable(self.files)
        self.sums: dict[str, str] = {}
        self.bytes = 0

    def add(self, name: str, data: bytes) -> None:
        """Write one file."""
        self.files.write(name, data)
        self._count(name, hashlib.sha256(data).hexdigest(), len(data))

    def add_folder(self, local: Path, name: str) -> None:
        """Copy every file of a local folder."""
        for file in sorted(local.rglob("*")):
            if file.is_file():
                path = f"{name}/{file.relative_to(local).as_posix()}"
                with file.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                self.files.upload(file, path)
                self._count(path, digest, file.stat().st_size)

    def seal(self) -> None:
        """Write the checksums of all the rest."""
        lines = [f"{digest}  {name}\n" for name, digest in sorted(self.sums.items())]
        self.files.write(SUMS, "".join(lines).encode())

    def _count(self, name: str, digest: str, size: int) -> None:
        self.sums[name] = digest
        self.bytes += size


@dataclass(frozen=True)
class Release:
    """A study that is to be published, and the kit for it, which is still empty."""

    store: Store
    name: str
    planned: Collection[str]
    finished: Mapping[str, Finished]
    specs: Mapping[str, Stage]
    kit: ReleaseBundle

    @classmethod
    def of(cls, index: StoreIndex, name: str, url: str) -> "Release":
        """Look at both ends. Raises StoreError if there is no such study, if nothing of it is finished or something
        can't be read, or if something is at ``url``."""
        store, planned = index.store, index.study(name)
        finished = index.finished(planned)
        if not finished:
            raise StoreError(f"study is {name!r}, of which nothing is finished in the store {store.url}")
        specs = index.specs(finished)
        if unread := finished.keys() - specs.keys():
            raise StoreError(f"{store.url}/stages/{min(unread)}/spec.json is none that this version can read")
        return cls(store, name, planned, finished, specs, ReleaseBundle(url))

    def write(self, version: str, say: Callable[[str], None]) -> ReleaseBundle:
        """Fill the kit. ``say`` hears of every stage. Raises StoreError if an artifact is damaged."""
        store, finished, kit = self.store, self.finished, self.kit
        ids = [stage_id for stage_id in self.planned if stage_id in finished]
        for number, stage_id in enumerate(ids, start=1):
            say(one_line(f"{number}/{len(ids)}  {stage_id}  {finished[stage_id].label}"))
            with store.fetched(f"stages/{stage_id}") as folder:
                kit.add_folder(folder, f"stages/{stage_id}")
            kit.add(f"stages/{stage_id}/{MANIFEST}", store.files.read(f"stages/{stage_id}/{MANIFEST}"))
        for path in _below(store.files, f"studies/{self.name}"):
            kit.add(path, store.files.read(path))
        kit.add("records.parquet", records([(finished[stage_id], self.specs[stage_id]) for stage_id in ids]))
        models = [stage_id for stage_id in ids if "model/config.json" in finished[stage_id].files]
        about = {"finished": len(ids), "planned": len(self.planned), "size": f"{kit.bytes:,}", "files": len(kit.sums)}
        example = models[-1] if models else "<id>"
        kit.add("README.md", README.format(name=self.name, version=version, example=example, **about).encode())
        kit.seal()
        return kit


def records(stages: list[tuple[Finished, Stage]]) -> bytes:
    """Rows of ``RECORDS`` as a Parquet file."""
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
    with TemporaryDirectory() as folder:
        path = Path(folder) / "records.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=RECORDS), path)
        return path.read_bytes()


def _below(files: Files, folder: str) -> list[str]:
    """Names of all files in a folder and its folders."""
    found: list[str] = []
    for name in files.names(folder):
        if name.startswith(STAGED):  # of a page that is being written
            continue
        path = f"{folder}/{name}"
        found += _below(files, path) if files.is_folder(path) else [path]
    return found
