"""A study on the Hugging Face hub: its results as a data set, and chosen decoders as models.

    ORG/NAME                data set: results.parquet, the other tables as CSV and Parquet, figures/, README.md
    ORG/NAME-<short name>   model: what the artifact of a finished stage has in model/, LICENSE, README.md

``write`` makes a folder for each, from artifacts that are verified while they are copied; ``upload`` sends these
folders. So nothing is uploaded before everything is verified.
"""

import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  of whichever client it is built on
)
from huggingface_hub.utils import validate_repo_id

from rayexp.errors import PermanentError, first_line
from rayexp.formatting import one_line
from rayexp.reports.cards import COLUMNS, TABLES, PublishedModel, dataset_card, model_card
from rayexp.stages import Stage
from rayexp.store.artifacts import StoreError
from rayexp.store.filesystem import Files
from rayexp.store.index import StoreIndex, find
from rayexp.studies.presets import SCALES

SCHEME = "hf://"
RESULTS = "results.parquet"
FIGURES = "figures"
LICENCE = "model/LICENSE"
#: The end of a refusal: what to do instead.
INSTEAD = "or give --dry-run FOLDER"


class HubError(PermanentError):
    """A failure to reach the Hugging Face hub, or its refusal."""


class Publication:
    """A study to publish. All that can be checked is checked before anything is written.

    models: repositories of decoders, by id of their stage.
    """

    def __init__(self, index: StoreIndex, study: str, to: str, models: Sequence[str] = ()) -> None:
        """Raise ValueError or StoreError, with one sentence, if ``to`` is not ``hf://ORG/NAME``, if the store has no
        such study or no results of it, or if one of ``models`` is not a readable decoder of it."""
        self.dataset = repository_of(to)
        self.store, self.study, self.planned = index.store, study, index.study(study)
        self.finished = index.finished(self.planned)
        files = self.store.files
        self.tables = [name for name in TABLES if name in files.names(f"studies/{study}")]
        if RESULTS not in self.tables:
            raise StoreError(f"study={study!r} has no {RESULTS} in the store {self.store.url} yet")
        self.figures = [name for name in files.names(f"studies/{study}/report") if name.endswith(".png")]
        self.figures.sort(key=lambda name: (len(name), name))
        labels = {each.id: each.label for each in self.finished.values() if "model/config.json" in each.files}
        wanted = [find(text, labels, f"a finished stage of {study} that has a model") for text in models]
        names = model_repositories(self.dataset, labels)
        self.models = {stage_id: _valid(names[stage_id], f"the repository of {stage_id}") for stage_id in wanted}
        self.specs = index.specs(self.models)
        if unread := self.models.keys() - self.specs.keys():
            raise StoreError(
                f"{self.store.url}/stages/{min(unread)}/spec.json cannot be read by this version of rayexp; publish "
                "with the version that is named in its provenance.json"
            )

    @property
    def repositories(self) -> dict[str, str]:
        """Return the type of each repository, by its id."""
        return {self.dataset: "dataset", **dict.fromkeys(self.models.values(), "model")}

    def write(self, folder: Path, version: str, say: Callable[[str], None]) -> None:
        """Write the content of each repository into the folder of its id. ``say`` is called with a line about each.
        Raises StoreError if an artifact is damaged."""
        say(f"{self.dataset}  results of {self.study}")
        rows = self._write_results(folder / self.dataset, version)
        for stage_id, repository in self.models.items():
            say(one_line(f"{repository}  {stage_id}  {self.finished[stage_id].label}"))
            self._write_model(stage_id, folder / repository, rows[rows["stage_id"] == stage_id])

    def upload(self, folder: Path, say: Callable[[str], None]) -> list[str]:
        """Upload the folders of ``write``, and return the addresses. All missing repositories are made before the first
        file is sent. Raises HubError."""
        api, urls = HfApi(), []
        for repository, kind in self.repositories.items():
            with _asked(api, f"make the repository {repository}"):
                urls.append(str(api.create_repo(repository, repo_type=kind, exist_ok=True)))
        for repository, kind in self.repositories.items():
            say(f"uploading {repository}")
            with _asked(api, f"take the files of {repository}"):
                api.upload_folder(
                    repo_id=repository,
                    repo_type=kind,
                    folder_path=folder / repository,
                    commit_message=f"Publish the study {self.study}",
                    delete_patterns=f"{FIGURES}/*",  # a page may have had more of them
                )
        return urls

    @property
    def report_command(self) -> str:
        """Return the command that writes tables and page of the study again, as far as its plan.json has it."""
        about = StoreIndex(self.store).about(self.study)
        if about.get("scale") not in SCALES:
            return "`rayexp report` and the options that the study was run with"
        asked = [str(about["study"]), "--scale", about["scale"], "--name", self.study, "--store", self.store.url]
        return f"`rayexp report {shlex.join(asked)}` and the other options that the study was run with, if any"

    def _write_results(self, folder: Path, version: str) -> pd.DataFrame:
        """Write the data set. Return the columns of its rows that model cards use."""
        place, files = f"studies/{self.study}", self.store.files
        for name in self.tables:
            files.download(f"{place}/{name}", folder / name)
            if name != RESULTS:  # configurations of a data set have to be of one format
                pd.read_csv(folder / name).to_parquet((folder / name).with_suffix(".parquet"), index=False)
        for name in self.figures:
            files.download(f"{place}/report/{name}", folder / FIGURES / name)
        figure = f"{FIGURES}/{self.figures[0]}" if self.figures else ""
        stages = len(self.finished), len(self.planned)
        dataset_card(self.dataset, self.study, self.tables, figure, stages, version).save(folder / "README.md")
        try:
            return pq.ParquetFile(folder / RESULTS).read(COLUMNS).to_pandas()[COLUMNS]
        except (OSError, KeyError, pa.ArrowException) as error:
            raise StoreError(
                f"{RESULTS} of the study {self.study} is not a table of this version; write it again with "
                f"{self.report_command}"
            ) from error

    def _write_model(self, stage_id: str, folder: Path, rows: pd.DataFrame) -> None:
        stage, finished = self.specs[stage_id], self.finished[stage_id]
        with self.store.model(stage_id) as model:
            shutil.copytree(model, folder)
        licences = self._write_licences(stage, folder)
        about = PublishedModel(
            self.models[stage_id], self.dataset, self.study, finished, stage, rows, [file.name for file in licences]
        )
        model_card(about).save(folder / "README.md")

    def _write_licences(self, stage: Stage, folder: Path) -> list[Path]:
        """Write the licence of the model that a lineage starts from. The store has it only beside that model, but it
        covers everything that is trained from it. Return the files."""
        root = self.finished.get(stage.root.id)
        if root and any(name.startswith(LICENCE) for name in root.files):
            with self.store.fetched(f"stages/{root.id}", prefix=LICENCE) as found:
                shutil.copytree(found / "model", folder, dirs_exist_ok=True)
        return sorted(folder.glob("LICENSE*"))


def repository_of(to: str) -> str:
    """Return the repository of ``hf://ORG/NAME``. Raises ValueError on anything else."""
    name = to.removeprefix(SCHEME)
    if not re.fullmatch(r"[^/]+/[^/]+", name):
        raise ValueError(f"to={to!r} should be {SCHEME}ORG/NAME")
    return _valid(name, "to")


def model_repositories(dataset: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the repository of each decoder of a study by the id of its stage: the name of the data set, then the first
    and last part of the label, then a prefix of the id if several decoders have the same parts."""
    words = {stage_id: _short(label) for stage_id, label in labels.items()}
    same = Counter(words.values())
    return {
        stage_id: "-".join([dataset, word, *([stage_id.rpartition("-")[2][:8]] if same[word] > 1 else [])])
        for stage_id, word in words.items()
    }


def require_access() -> None:
    """Raise HubError unless the hub answers and accepts the token of this machine."""
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"HF_HUB_OFFLINE is set, so the Hugging Face hub cannot be reached; unset it, {INSTEAD}")
    if get_token() is None:
        raise HubError(f"there is no token for the Hugging Face hub; set HF_TOKEN, run `hf auth login`, {INSTEAD}")
    api = HfApi()
    with _asked(api, "accept the token of HF_TOKEN or `hf auth login`"):
        api.whoami()


def empty_folder(path: str) -> Path:
    """Return a new or empty folder of this machine. Raises ValueError if it is anything else."""
    files = Files(path)
    if not files.local or not files.empty():
        raise ValueError(f"dry_run={path!r} should be a new or empty folder of this machine")
    return Path(files.root)


@contextmanager
def _asked(api: HfApi, what: str) -> Iterator[None]:
    """Turn errors of the hub into HubErrors of one sentence."""
    try:
        yield
    except (OSError, HTTPError) as error:
        raise HubError(f"the Hugging Face hub at {api.endpoint} did not {what} ({first_line(error)})") from error


def _valid(name: str, field: str) -> str:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{field}={name!r}: {first_line(error)}") from error
    return name


def _short(label: str) -> str:
    """Return the first and last part of a label, without characters that repository names can't have."""
    ends = f"{label.partition('/')[0]}-{label.rpartition('/')[2]}"
    return re.sub(r"[^A-Za-z0-9._]+|\.{2,}", "-", ends).strip("-.")
