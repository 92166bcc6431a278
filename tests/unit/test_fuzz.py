"""Hostile specs, command lines, manifests and results. Each is refused in one sentence, or ignored.

There is never a traceback, a start of Ray or an unwanted write. Every test counts the kinds of its examples, so that no
kind can go missing without being noticed.
"""

import contextlib
import functools
import hashlib
import inspect
import io
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rayexp.cli import report
from rayexp.cli import run as sweep
from rayexp.config import explain
from rayexp.distributed import runtime
from rayexp.experiment import Experiment
from rayexp.parts import unread_parts
from rayexp.reports import page, table
from rayexp.stages import parse_stage
from rayexp.store.artifacts import Store, StoreError
from rayexp.store.index import StoreIndex
from rayexp.sweep.plan import Plan
from rayexp.tasks.strings import StringTask
from tests.fixtures.factories import tiny_chain
from tests.fixtures.simulated_study import HOSTILE, published

#: Examples of each kind.
SPECS, LINES, MANIFESTS, TABLES = 500, 300, 150, 300

NASTY = ["\0", "a\nb\r\u2028c", "\u202e\x1b[31m", "💥" * 3000, "../../etc/passwd", "/etc/passwd", HOSTILE, "\udcff"]
NUMBERS = [-1, 0, 0.5, 2**31, 2**63, -(2**63) - 1, 10**400, 10**4299, 5e-324, 1e308, math.nan, math.inf, -math.inf]
LEAVES = st.sampled_from([None, True, False, "", *NASTY, *NUMBERS]) | st.integers() | st.floats() | st.text()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
NAMES = st.sampled_from([*NASTY, "", "x" * 5000, ".", "a/..", "a\\b", "a/", "kind", "init"]) | st.text()
BRACKETS = st.sampled_from([("[", "]"), ('{"a":', "}"), ('{"kind":"grpo","init":', "}"), ('[{"files":', "}]")])
MUTATIONS = {"bytes", "other", "cut", "spliced", "nested", "drop", "add", "rename", "change"}


def fuzz(check: Callable[[st.DataObject], list[str]], examples: int, kinds: Collection[str]) -> None:
    """Run a check on so many examples. It returns the kinds of each example, and all ``kinds`` have to occur."""
    seen: Counter[str] = Counter()

    @settings(max_examples=examples)
    @given(st.data())
    def counted(data: st.DataObject) -> None:
        seen.update(check(data))

    counted()
    assert seen.total() >= examples
    assert set(seen) == set(kinds)
    assert min(seen.values()) >= examples / 125


def is_a_sentence(text: str, longest: float = math.inf) -> bool:
    """Return whether a text is one printable line, long enough for a sentence and at most ``longest``."""
    return text.isprintable() and 10 < len(text) <= longest and text[0] not in " -;"


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything inside a JSON value."""
    for name, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, name)
        yield from paths(item, (*path, name))


def mutant(draw: st.DrawFn, good: Any) -> tuple[str, bytes]:
    """Return a kind of change and a JSON text with it. By chance the text may still be valid."""
    value = json.loads(text := json.dumps(good).encode())
    how, path = draw(st.sampled_from(sorted(MUTATIONS))), draw(st.sampled_from(list(paths(value))))
    inner, at = functools.reduce(lambda outer, name: outer[name], path[:-1], value), draw(st.integers(0, len(text) - 1))
    match how:
        case "bytes":
            return how, draw(st.binary(max_size=50))
        case "cut":
            return how, text[:at]
        case "spliced":
            return how, text[:at] + draw(st.binary(min_size=1, max_size=3)) + text[at + 1 :]
        case "nested":
            (opening, closing), times = draw(BRACKETS), draw(st.sampled_from([150, 300, 980, 5000, 100_000]))
            inner[path[-1]] = "@"
            outer = json.dumps(draw(st.sampled_from([value, "@"])))
            return how, outer.replace('"@"', opening * times + "0" + closing * times).encode()
        case "other":
            value = draw(JSON)
        case "drop":
            del inner[path[-1]]
        case "add" if isinstance(inner, dict):
            inner[draw(NAMES)] = draw(JSON | st.just(inner[path[-1]]))
        case "rename" if isinstance(inner, dict):
            inner[draw(NAMES)] = inner.pop(path[-1])
        case _:
            inner[path[-1]] = draw(JSON)
    return how, json.dumps(value).encode()


# Specs


@pytest.mark.slow
def test_a_hostile_spec_is_refused_in_one_line():
    store = Store(f"memory://{uuid4().hex}")
    chain = [json.loads(stage.model_dump_json()) for stage in tiny_chain(StringTask(axis="composition"))]

    def check(data):
        how, text = mutant(data.draw, data.draw(st.sampled_from(chain)))
        line = None
        try:
            parse_stage(text)
        except ValidationError as error:
            line = explain(error)
        assume(line is not None)  # else it was still a valid stage
        assert is_a_sentence(str(line), longest=300)
        said = (
            " should ",
            "is not one of",
            " is missing",
            "is not a setting",
            "has no kind",
            "cannot be imported",
            "JSON",
        )
        assert any(part in str(line) for part in said)
        store.files.write("stages/x/spec.json", text)
        assert all(unread_parts(stage) for stage in StoreIndex(store).specs(["x"]).values())  # "str:ings"
        return [how]

    fuzz(check, SPECS, MUTATIONS)


# Command lines

COUNTS = ["train_workers", "rollout_workers", "parity_every_syncs"]
INTEGERS = ["seeds", "max_concurrent", "worker_failures", *COUNTS]
POSITIVE = ["train_cpus", "learner_cpus", "rollout_cpus", "max_logprob_mismatch", "timeout_s"]
FLOATS = ["ood_ratios", "kl_betas", "train_gpus", "learner_gpus", "rollout_gpus", "checkpoint_every_s", *POSITIVE]
WORDS = ["study", "scale", "graph", "traversal", "completion_format", "device"]
NO_NUMBERS = ["", " ", "one", "0x10", "1,5", "½", "1.5.5", "[]", "1;2", "9" * 4301 + ".5.", *NASTY]
#: Valid words to put around a mistake.
AROUND = [["--scale", "toy"], ["--study", "depth"], ["--seeds", "0", "1"], ["--repair"], ["--graph", "printed"]]
AROUND += [["--train-cpus", "2"], ["--device", "cpu"], ["--ood-ratios", "0", "0.5"], ["--keep-rollouts"]]


def mistakes(text: str, folder: Path) -> dict[str, list[tuple[str, ...]]]:
    """Return wrong words of a command line, by kind; the last element is the text that the refusal has to name."""
    strange = [*NASTY, text]
    stores = ["nosuch://x", "/proc/no/such/place", f"{folder}/file/below", "x" * 5000, "a\0b", "a\nb://"]
    return {
        "option": [(f"--{name}", "") for name in ("lease", "colour", "study ", "Seeds", "no-repair", *strange)],
        "stray": [(word, "") for word in ("extra", "-", "-x", "sweep.py", *strange)],
        "flag": [(word, "") for word in ("--repair=1", "--plan=x", "--fail-fast=yes", "--keep-rollouts=\n")],
        "no value": [(f"--{name}", name) for name in (*WORDS, *POSITIVE, *COUNTS, "store")],
        "no number": [(f"--{name}", word, name) for name in INTEGERS + FLOATS for word in NO_NUMBERS],
        "no integer": [(f"--{name}", word, name) for name in INTEGERS for word in ("1.5", "1e3", "nan")],
        "not finite": [(f"--{name}", word, name) for name in FLOATS for word in ("nan", "inf", "-inf", "1e999")],
        "too small": [(f"--{name}", "-1", name) for name in INTEGERS + FLOATS]
        + [(f"--{name}", "0", name) for name in POSITIVE + COUNTS],
        "too large": [("--ood-ratios", "0.51", "ood_ratio"), ("--timeout-s", "1e10", "timeout_s")]
        + [("--seeds", word, "seed") for word in (str(2**31), "9" * 4000)]
        + [(f"--{name}", str(2**63), name) for name in COUNTS],
        "word": [(f"--{name}", word, name) for name in WORDS for word in ("Demo", "demo ", "0", "", *strange)],
        "store": [("--store", url, "store") for url in stores],
    }


@pytest.mark.slow
def test_a_hostile_command_line_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "connect", lambda: pytest.fail("Ray was started"))
    monkeypatch.setattr(inspect, "getsource", functools.cache(inspect.getsource))  # tyro calls it again for every line
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    kinds = mistakes("", tmp_path).keys()

    def check(data):
        wrong = data.draw(st.sampled_from(sorted(kinds)))
        *mistake, named = data.draw(st.sampled_from(mistakes(data.draw(st.text(min_size=9)), tmp_path)[wrong]))
        # A correct repetition of an option after the mistake would count. tyro takes _ and - as one letter.
        others = [words for words in AROUND if words[0] != mistake[0].replace("_", "-")]
        around = data.draw(st.lists(st.sampled_from(others), max_size=3, unique_by=tuple))
        around.insert(data.draw(st.integers(0, len(around))), mistake)
        line = [word for words in around for word in words]
        if wrong != "store":
            line += ["--store", str(tmp_path / "store")]
        assert data.draw(st.sampled_from([sweep, report])).main(line) == 2
        said = capsys.readouterr()
        assert "Traceback" not in said.out
        assert said.err.startswith("refused: ")
        assert said.err.endswith("\n")
        assert is_a_sentence(said.err[9:-1], longest=300)
        assert named.removesuffix("s") in said.err.replace("-", "_")
        assert ("no finished stage" in said.err) <= (wrong == "store")
        assert [file.name for file in tmp_path.iterdir()] == ["file"]
        return [wrong]

    fuzz(check, LINES, kinds)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_gets_the_same_sentence(capsys, monkeypatch, encoding):
    """Include tyro's box around it, in colour."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with contextlib.redirect_stdout(terminal):
        assert sweep.main(["--seeds", "x"]) == 2
    why = "Error parsing --seeds: Could not find valid parse for arguments: ['x']"
    assert capsys.readouterr().err == f"refused: {why}; --help lists what is allowed\n"


# Reports

#: One chain of six stages.
CHAIN = Experiment(scale="toy", ood_ratios=(0.0,), kl_betas=(0.1,), seeds=(0,))
STAGES = Plan.of("demo", CHAIN.stages(), ()).stages
PRETRAINED, MEASURED, TUNED = STAGES[:3]
PAGE = "studies/demo-toy/report/index.html"


@pytest.fixture
def reported(tmp_path, monkeypatch, capsys):
    """Return a function that writes the report of CHAIN from the store in tmp_path. It returns the exit code, and the
    refusal if there is no report."""
    asked = sweep.Sweep(experiment=CHAIN, resources=sweep.Options(store=str(tmp_path / "store")))
    monkeypatch.setattr(report, "parse_args", lambda *_: asked)
    monkeypatch.setattr(page, "_template", functools.cache(page._template))
    monkeypatch.setattr(runtime, "connect", lambda: pytest.fail("Ray was started"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def run() -> tuple[int, str]:
        code, said = report.main([]), capsys.readouterr()
        assert not any((tmp_path / "temporary").iterdir())
        assert "Traceback" not in said.out + said.err
        if code == 0:
            assert not said.err
            return 0, ""
        kind, _, sentence = said.err.partition(": ")
        assert kind == {1: "failed", 2: "refused"}[code]
        assert is_a_sentence(sentence[:-1], longest=300)
        return code, said.err

    return run


def put(store: Store, stage_id: str, name: str, content: bytes) -> dict[str, Any]:
    """Publish another content of a file, like anybody with write access. Return the manifest."""
    place = Path(store.url, "stages", stage_id)
    manifest = json.loads((place / "manifest.json").read_bytes())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (place / name).parent.mkdir(exist_ok=True)
    (place / name).write_bytes(content)
    (place / "manifest.json").write_text(json.dumps(manifest))
    return manifest


# Manifests


def snapshot(*folders: Path) -> dict[Path, bytes]:
    """Return the content of everything in some folders, by path. Do not follow links."""
    everything = [file for folder in folders for file in folder.rglob("*")]
    return {
        file: os.readlink(file).encode() if file.is_symlink() else b"folder" if file.is_dir() else file.read_bytes()
        for file in everything
    }


def attempt(read: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a read, or the StoreError that refused it. Any other exception fails the test."""
    try:
        found = read(*arguments)
        if isinstance(found, contextlib.AbstractContextManager):
            with found as folder:
                return list(snapshot(folder))
        return found
    except StoreError as error:
        return error if is_a_sentence(str(error)) else pytest.fail(f"{error} is no sentence")


def read_only(plan: Plan, store: Store, folder: Path) -> page.Report:
    """Read the data of a report from the store. Figures and claims, which take most of the time, are left out."""
    assert len(table.curves(plan, store)) + len(table.results(plan, store)) > 0
    page.provenance(plan, store)
    (folder / "claims.csv").write_text("")
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("")
    return page.Report(folder / "report" / "index.html", [])


@pytest.mark.slow
def test_a_hostile_manifest_is_refused_or_means_unfinished(tmp_path, monkeypatch, reported):
    monkeypatch.setattr(page, "write", read_only)
    stage_id, outside, whole = PRETRAINED.id, tmp_path / "outside", tmp_path / "whole"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    store = published(tmp_path, [PRETRAINED, TUNED])
    good = put(store, stage_id, "model/weights", b"secret")
    root, place = Path(store.url), Path(store.url, "stages", stage_id)
    shutil.copytree(root, whole)
    names = ["../../../outside/new", f"{outside}/new", "model/../../../../outside/secret", "metrics.parquet/x", "~/x"]
    names += ["model", "model/weights/x", "metrics.parquet/../../x", "a/" * 2000 + "x", "x" * 300, *NASTY]
    targets = [outside / "secret", outside, outside / "none", place, "../../..", "spec.json"]

    def check(data):
        shutil.rmtree(root)
        shutil.copytree(whole, root)
        how = data.draw(st.sampled_from(["JSON", "JSON", "name", "content", "link", "folder", "gone"]))
        file = place / data.draw(
            st.sampled_from(["manifest.json", "metrics.parquet", "provenance.json", "model/weights"])
        )
        file.unlink()
        match how:
            case "JSON":
                how, text = mutant(data.draw, good)
                shutil.copytree(whole, root, dirs_exist_ok=True)
                (place / "manifest.json").write_bytes(text)
            case "name":
                shutil.copytree(whole, root, dirs_exist_ok=True)
                entry = {data.draw(st.sampled_from(names)): data.draw(st.sampled_from(list(good["files"].values())))}
                files = data.draw(st.sampled_from([entry, entry | good["files"], good["files"] | entry]))
                (place / "manifest.json").write_text(json.dumps({**good, "files": files}))
            case "content":
                file.write_bytes(data.draw(st.binary(max_size=20)))
            case "link":
                file.symlink_to(data.draw(st.sampled_from(targets)))
            case "folder":
                (file / "x").mkdir(parents=True)
        before = snapshot(root, outside)
        finished, ids = attempt(store.finished, stage_id), attempt(store.finished_ids)
        found = attempt(store.table, stage_id, "metrics.parquet")
        for read in (store.provenance, store.model):
            attempt(read, stage_id)
        attempt(store.damaged, [stage_id])
        assert snapshot(root, outside) == before
        code, line = reported()
        assert snapshot(outside).items() <= before.items()
        if isinstance(ids, StoreError):
            assert code
        else:
            assert ids == {TUNED.id} | ({stage_id} if finished else set())
        if finished is not True:
            assert isinstance(found, StoreError)
            assert code == 0 or isinstance(finished, StoreError)
        if isinstance(found, StoreError) and finished is True:
            assert code
        assert code == 0 or stage_id in line or "in a store" in line or "inside a store" in line
        return [how]

    fuzz(check, MANIFESTS, MUTATIONS | {"name", "content", "link", "folder", "gone"})


# Results

COLUMNS = ["role", "cell", "prompt_index", "log_mass", "greedy_correct", "sampled", "step", "metric", "value"]
TABLE_MUTATIONS = {
    "no table",
    "cut",
    "spliced",
    "drop",
    "twice",
    "type",
    "empty cell",
    "value",
    "rows",
    "names",
    "nested",
}


def mutant_table(draw: st.DrawFn, good: pa.Table) -> tuple[str, bytes]:
    """Return a kind of change, and a Parquet file with it. By chance the table may still be valid."""
    how = draw(st.sampled_from(sorted(TABLE_MUTATIONS)))
    name = draw(st.sampled_from([name for name in COLUMNS if name in good.column_names]))
    at, row = good.column_names.index(name), draw(st.integers(0, len(good) - 1))
    column = good.column(name)
    match how:
        case "no table":
            return how, draw(st.sampled_from([b"PAR1", b"", b"PAR1" * 3]) | st.binary(max_size=99))
        case "cut" | "spliced":
            data = as_parquet(good)
            place = draw(st.integers(0, len(data) - 1))
            rest = b"" if how == "cut" else draw(st.binary(min_size=1, max_size=4))
            return how, data[:place] + rest + (data[place + len(rest) :] if rest else b"")
        case "drop":
            good = good.remove_column(at)
        case "twice":
            good = good.append_column(name, column)
        case "type":
            kinds = [pa.string(), pa.float32(), pa.float64(), pa.int32(), pa.bool_(), pa.binary()]
            kind = draw(st.sampled_from([kind for kind in kinds if kind != column.type]))
            text = [str(value) for value in column.to_pylist()]
            values = text if kind == pa.string() else [value.encode() for value in text]
            good = good.set_column(
                at, name, pa.array(values if kind in (pa.string(), pa.binary()) else [0] * len(good)).cast(kind)
            )
        case "empty cell":
            good = good.set_column(at, name, pa.array(changed(column.to_pylist(), row, None), column.type))
        case "value":
            strange = {"double": [math.nan, math.inf, -math.inf, 1.0, 1e308], "int64": [-1, 2**62, -(2**63)]}
            value = draw(
                st.sampled_from(strange.get(str(column.type), [True] if name == "greedy_correct" else NASTY[:-1]))
            )
            good = good.set_column(at, name, pa.array(changed(column.to_pylist(), row, value), column.type))
        case "rows":
            good = draw(st.sampled_from([good.slice(0, 0), pa.concat_tables([good, good]), good.slice(row, 1)]))
        case "names":
            good = good.rename_columns(
                [draw(st.sampled_from(NASTY[:-1])) if n == name else n for n in good.column_names]
            )
        case "nested":
            good = good.set_column(at, name, pa.array([[value] for value in column.to_pylist()]))
    return how, as_parquet(good)


def changed(values: list[Any], place: int, value: Any) -> list[Any]:
    return [*values[:place], value, *values[place + 1 :]]


def as_parquet(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink)
    return sink.getvalue()


@pytest.mark.slow
def test_a_hostile_table_is_refused_in_one_line(tmp_path, monkeypatch, reported):
    monkeypatch.setattr(page, "write", read_only)
    store = published(tmp_path, [PRETRAINED, MEASURED])
    good = {
        stage.id: store.table(stage.id, name)
        for stage, name in ((MEASURED, "results.parquet"), (PRETRAINED, "metrics.parquet"))
    }
    refused = Counter()

    def check(data):
        stage_id = data.draw(st.sampled_from(sorted(good)))
        name = "results.parquet" if stage_id == MEASURED.id else "metrics.parquet"
        how, content = mutant_table(data.draw, good[stage_id])
        put(store, stage_id, name, content)
        before = snapshot(Path(store.url, "stages"))
        code, line = reported()
        assert snapshot(Path(store.url, "stages")) == before
        assert code == 0 or f"{stage_id}/{name}" in line
        if how in ("no table", "drop", "twice", "type", "empty cell", "nested", "names"):
            assert code, how
        refused[how] += code != 0
        put(store, stage_id, name, as_parquet(good[stage_id]))
        return [how]

    fuzz(check, TABLES, TABLE_MUTATIONS)
    assert all(refused[how] for how in TABLE_MUTATIONS)


def test_a_table_with_hostile_texts_makes_a_harmless_page(tmp_path, reported):
    """Check that none of them becomes markup; see also test_reports."""
    store = published(tmp_path, [PRETRAINED, MEASURED])
    rows = store.table(MEASURED.id, "results.parquet")
    at = rows.column_names.index("cell")
    for text in (HOSTILE, "a\0b", "\u202e\x1b[31m"):
        cells = [f"{text}{value}" for value in rows.column("cell").to_pylist()]
        put(store, MEASURED.id, "results.parquet", as_parquet(rows.set_column(at, "cell", pa.array(cells))))
        code, _ = reported()
        written = Path(store.url, PAGE)
        assert code or HOSTILE not in written.read_text()
