"""A study for the Hugging Face hub: the dry run, the upload, and the refusals before it."""

import base64
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi, ModelCard, constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayexp import cli
from rayexp.evaluation.metrics import cluster_bootstrap, wilson
from rayexp.models import io
from rayexp.models.config import PretrainedDecoder
from rayexp.reports import cards, hub
from rayexp.stages import GRPO, SFT, Evaluate, Pretrain
from rayexp.store.artifacts import Store
from rayexp.store.index import StoreIndex
from tests.fixtures.simulated_study import study_stages
from tests.fixtures.stored_models import add_model
from tests.fixtures.stored_study import study

STAGES = study_stages(seeds=(0,), kl_betas=(0.1,), ood_ratios=(0.0,))
ROOT, OTHER, GRPO_STAGE = (next(each for each in STAGES if isinstance(each, kind)) for kind in (Pretrain, SFT, GRPO))
MEASUREMENT = next(each for each in STAGES if isinstance(each, Evaluate))
MODEL = "org/demo-composition-r0-s0-grpo-ood-b0.1"
LICENCE = "Do what you like.\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Return the store of a finished study with a report. Three of its decoders have models. Tests only read it."""
    whole = study(tmp_path_factory.mktemp("store"), STAGES)
    for stage in (ROOT, GRPO_STAGE, OTHER):
        add_model(whole, stage, **({"LICENSE": LICENCE} if stage is ROOT else {}))
    whole.files.write("studies/demo-tiny/claims.csv", b"claim,verdict,note\nC1,holds,\n")
    for number in (1, 2, 10):
        whole.files.write(f"studies/demo-tiny/report/figure-{number}.png", b"png")
    return whole


@pytest.fixture(scope="module")
def written(store, tmp_path_factory) -> Path:
    """Return the folder of a dry run, with results and one model."""
    folder = tmp_path_factory.mktemp("hub")
    assert export(store, "--to", "hf://org/demo", "--models", GRPO_STAGE.label, "--dry-run", folder) == 0
    return folder


@pytest.fixture
def copy(store, tmp_path) -> Store:
    """Return a copy of the store, which tests may damage."""
    shutil.copytree(store.url, tmp_path / "copy")
    return Store(str(tmp_path / "copy"))


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")


def export(store: Store, *arguments: object) -> int:
    return cli.main(["export", "demo-tiny", "--store", store.url, *map(str, arguments)])


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


# The folders


def test_a_model_is_that_of_the_store_for_stock_tools(store, written):
    # vLLM reads it, too.
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} < (
        files(written / MODEL)
    )
    loaded = AutoModelForCausalLM.from_pretrained(written / MODEL)
    assert json.loads((written / MODEL / "config.json").read_bytes())["architectures"] == ["LlamaForCausalLM"]
    with store.model(GRPO_STAGE.id) as folder:
        for name, weight in io.load(folder).state_dict().items():
            assert torch.equal(weight, loaded.state_dict()[name])
    assert AutoTokenizer.from_pretrained(written / MODEL)("<bos> a1", add_special_tokens=False).input_ids[0] == 1


def test_the_programs_of_the_cards_run(written, monkeypatch, capsys):
    """Resolve the names of repositories to folders of the dry run. Do not start vLLM."""
    monkeypatch.chdir(written)
    ran = [_run(code) for name in (MODEL, "org/demo") for code in _programs(written / name / "README.md")]
    assert ran == [True, False, True]
    assert str(GRPO_STAGE.label) in capsys.readouterr().out


def _programs(card: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)


def _run(code: str) -> bool:
    compiled = compile(code, "<a card>", "exec")
    if "vllm" not in code:
        exec(compiled, {})
    return "vllm" not in code


def test_a_card_has_the_results_of_its_stage_by_role(store, written):
    card = ModelCard.load(written / MODEL / "README.md")
    found = {(each.dataset_split, each.metric_name): each for each in card.data.get("eval_results") or []}
    rows = pd.read_parquet(written / "org/demo/results.parquet")
    rows = rows[rows.stage_id == GRPO_STAGE.id]
    assert len(found) == 5 * rows.role.nunique() == 15
    for role, some in rows.groupby("role"):
        q, greedy = cluster_bootstrap([some.q.to_numpy()]), wilson(int(some.greedy_correct.sum()), len(some))
        passed = cluster_bootstrap([some.pass_at_64.to_numpy()])
        for name, mean in (("mean correct mass Q", q), ("greedy accuracy", greedy), ("pass@64", passed)):
            each = found[str(role), name]
            assert each.metric_value == mean.mean
            assert each.metric_args == {"interval_95": [mean.low, mean.high], "prompts": len(some)}
            assert each.dataset_type == "org/demo"
            assert f"{mean}" in card.text


def test_a_card_has_settings_provenance_and_licence(written):
    card = ModelCard.load(written / MODEL / "README.md")
    assert card.data.get("library_name") == "transformers"
    assert card.data.get("tags") == ["rayexp", "pretrain", "sft", "grpo", "demo-tiny"]
    assert card.data.get("base_model") is None
    assert (card.data.get("license"), card.data.get("license_link")) == ("other", "LICENSE")
    assert (written / MODEL / "LICENSE").read_text() == LICENCE  # from the pretraining at its root
    for row in ("| grpo | `kl_beta` | `0.1` |", "| pretrain | `ood_ratio` | `0` |", "| torch | `2.13.0` |"):
        assert row in card.text
    assert "commit abc" in card.text
    assert "somewhere" not in card.text  # the host


def test_a_data_set_has_a_configuration_for_each_table(written, tmp_path):
    folder = written / "org/demo"
    figures = {f"figures/figure-{number}.png" for number in (1, 2, 10)}
    assert files(folder) == {"README.md", "results.parquet", "claims.csv", "claims.parquet"} | figures
    read = partial(load_dataset, str(folder), split="train", cache_dir=str(tmp_path))
    assert len(read()) == len(read("results")) == len(pd.read_parquet(folder / "results.parquet"))
    assert list(read("claims")) == [{"claim": "C1", "verdict": "holds", "note": None}]
    card = DatasetCard.load(folder / "README.md")
    assert "(figures/figure-1.png)" in card.text
    assert "docs/results.md" in card.text


def test_no_decoder_is_published_that_is_not_named(store, tmp_path, capsys):
    assert export(store, "--to", "hf://org/demo", "--dry-run", tmp_path) == 0
    assert [folder.name for folder in (tmp_path / "org").iterdir()] == ["demo"]
    assert capsys.readouterr().out == f"{tmp_path}/org/demo\n"


def test_a_model_without_results_or_licence_says_so(store):
    finished = StoreIndex(store).finished([OTHER.id])[OTHER.id]
    rows = pd.DataFrame(columns=pd.Index(cards.COLUMNS))
    card = cards.model_card(cards.PublishedModel(MODEL, "org/demo", "demo-tiny", finished, OTHER, rows, []))
    assert card.data.get("eval_results") is card.data.get("license") is None
    assert "The study has not measured this stage." in card.text
    assert card.text.rstrip().endswith("None is stated.")
    assert len(re.findall("```python", card.text)) == 2


@pytest.mark.parametrize(("revision", "base"), [("0" * 40, "org/base"), ("0" * 64, None)])
def test_the_base_of_a_card_is_a_model_of_the_hub(store, revision, base):
    """Include a folder with the name of a model, which a SHA-256 pins."""
    shape = {"layers": 1, "width": 8, "vocabulary_size": 8, "context_tokens": 8, "parameter_count": 8}
    decoder = PretrainedDecoder.model_validate(
        {"source": "org/base", "revision": revision, "architecture": "LlamaForCausalLM", **shape}
    )
    finished = StoreIndex(store).finished([ROOT.id])[ROOT.id]
    rows, stage = pd.DataFrame(columns=pd.Index(cards.COLUMNS)), ROOT.model_copy(update={"decoder": decoder})
    card = cards.model_card(cards.PublishedModel(MODEL, "org/demo", "demo-tiny", finished, stage, rows, []))
    assert card.data.get("base_model") == base


def test_names_of_models_are_short_and_no_two_are_alike():
    labels = {"grpo-0123456789": "a-r0-s0/pretrain/grpo", "grpo-9876543210": "a-r0-s0/pretrain/sft/grpo"}
    assert hub.model_repositories("org/demo", labels) == {
        "grpo-0123456789": "org/demo-a-r0-s0-grpo-01234567",
        "grpo-9876543210": "org/demo-a-r0-s0-grpo-98765432",
    }
    labels = {"sft-1": "ä..b--c/sft", "sft-2": "a/pretrain/grpo-b1e-05", "sft-3": "plain"}
    assert list(hub.model_repositories("org/demo", labels).values()) == [
        "org/demo-b-c-sft",
        "org/demo-a-grpo-b1e-05",
        "org/demo-plain-plain",
    ]


# The upload


class Recorded(HfApi):
    """A client that records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str, object]] = []

    def whoami(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.calls.append(("whoami", "", None))
        return {"name": "org"}

    def create_repo(self, repo_id: str, *, repo_type: str, exist_ok: bool) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert exist_ok
        self.calls.append(("create", repo_id, repo_type))
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, repo_type: str, **about: str) -> None:  # pyright: ignore
        assert "demo-tiny" in about["commit_message"]
        self.calls.append((f"upload {repo_type}", repo_id, files(folder_path)))


@pytest.fixture
def api(online, monkeypatch) -> Recorded:
    recorded = Recorded()
    monkeypatch.setattr(hub, "HfApi", lambda: recorded)
    return recorded


def test_what_a_dry_run_writes_is_uploaded_once_all_repositories_are_there(store, written, api, capsys):
    assert export(store, "--to", "hf://org/demo", "--models", GRPO_STAGE.id) == 0
    assert api.calls == [
        ("whoami", "", None),
        ("create", "org/demo", "dataset"),
        ("create", MODEL, "model"),
        ("upload dataset", "org/demo", files(written / "org/demo")),
        ("upload model", MODEL, files(written / MODEL)),
    ]
    assert capsys.readouterr().out.splitlines() == ["https://hub/org/demo", f"https://hub/{MODEL}"]


def test_of_what_is_damaged_nothing_is_uploaded(copy, api, capsys):
    copy.files.write(f"stages/{GRPO_STAGE.id}/model/model.safetensors", b"half")
    assert export(copy, "--to", "hf://org/demo", "--models", GRPO_STAGE.id) == 1
    failed = capsys.readouterr().err.splitlines()[-1]
    assert failed.startswith("failed: ")
    assert "model.safetensors is damaged" in failed
    assert [name for name, *_ in api.calls] == ["whoami"]


@contextmanager
def stand_in(allowed: bool = True) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Run a hub on this machine that supports uploads. Yield its address, and the files that are committed to it."""
    committed: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = {"/api/whoami-v2": {"name": "org"}}
            if "/tree/" in self.path:  # the tree of a repository that was just created
                self._answer([])
            else:
                self._answer(known.get(self.path, {}), 200 if self.path in known else 404)

        def do_POST(self) -> None:
            body = self._body()
            assert self.headers["Authorization"] == "Bearer hf_of_a_test"
            if "/preupload/" in self.path:
                paths = [{"path": file["path"]} for file in json.loads(body)["files"]]
                self._answer({"files": [{**path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        place = f"{self.path.split('/commit/')[0]}/{line['value']['path']}"
                        committed[place] = base64.b64decode(line["value"]["content"])
                self._answer({"commitUrl": f"http://{self.headers['Host']}/org/demo/commit/1", "commitOid": "1"})
            elif self.path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif allowed:
                self._answer({"url": f"http://{self.headers['Host']}/org/{json.loads(body)['name']}"})
            else:
                self._answer({"error": "You don't have the rights"}, 403)

        def _body(self) -> bytes:
            if length := self.headers["Content-Length"]:
                return self.rfile.read(int(length))
            chunks = []  # a commit is sent in chunks
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def _answer(self, what: object, code: int = 200) -> None:
            data = json.dumps(what).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", committed
        server.shutdown()


def test_the_hub_receives_every_file(store, written, online, monkeypatch):
    with stand_in() as (url, committed):
        monkeypatch.setattr(hub, "HfApi", partial(HfApi, endpoint=url))
        assert export(store, "--to", "hf://org/demo", "--models", GRPO_STAGE.id) == 0
    places = {"/api/datasets/org/demo": written / "org/demo", f"/api/models/{MODEL}": written / MODEL}
    assert committed == {
        f"{place}/{name}": (folder / name).read_bytes() for place, folder in places.items() for name in files(folder)
    }


def test_who_may_not_write_there_is_told_so(store, online, monkeypatch, capsys):
    with stand_in(allowed=False) as (url, committed):
        monkeypatch.setattr(hub, "HfApi", partial(HfApi, endpoint=url))
        assert export(store, "--to", "hf://org/demo") == 1
    assert not committed
    failed = capsys.readouterr().err.splitlines()[-1]
    assert failed.startswith(f"failed: the Hugging Face hub at {url} did not make the repository org/demo (")
    assert "403" in failed


# Refusals


def refused(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("refused: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "hf://demo"], "to='hf://demo' should be hf://ORG/NAME"),
        (["--to", "hf://datasets/org/demo"], "to='hf://datasets/org/demo' should be hf://ORG/NAME"),
        (["--to", "hf://org/a b"], "to='org/a b': Repo id must use alphanumeric chars"),
        (["--to", f"hf://org/{'x' * 80}", "--models", GRPO_STAGE.id], f"the repository of {GRPO_STAGE.id}='org/xxx"),
        (["--to", "hf://org/demo", "--models", "no-such"], "of a finished stage of demo-tiny that has a model"),
        (["--to", "hf://org/demo", "--models", MEASUREMENT.id], "of a finished stage of demo-tiny that has a model"),
        (["--to", "hf://org/demo", "--dry-run", "."], "dry_run='.' should be a new or empty folder"),
        (["--to", "hf://org/demo", "--dry-run", "memory://x"], "dry_run='memory://x' should be a new or empty folder"),
        (["--to", "kit", "--dry-run", "x"], "dry_run needs to='hf://ORG/NAME', not 'kit'"),
        (["--to", "kit", "--models", "x"], "models needs to='hf://ORG/NAME', not 'kit'"),
    ],
)
def test_refused_in_one_sentence(store, api, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert export(store, *arguments) == 2
    assert said in refused(capsys)
    assert api.calls == []
    assert files(tmp_path) == {"file"}


def test_a_study_without_results_is_refused(copy, tmp_path, capsys):
    copy.files.remove_file("studies/demo-tiny/results.parquet")
    assert export(copy, "--to", "hf://org/demo", "--dry-run", tmp_path / "hub") == 2
    assert "study='demo-tiny' has no results.parquet in the store" in refused(capsys)


def test_a_table_that_cannot_be_read_is_refused_with_the_command_that_writes_it(copy, tmp_path, capsys):
    copy.files.write("studies/demo-tiny/results.parquet", b"torn")
    assert export(copy, "--to", "hf://org/demo", "--dry-run", tmp_path / "hub") == 1
    command = f"`rayexp report demo --scale tiny --name demo-tiny --store {copy.url}`"
    assert f"write it again with {command}" in capsys.readouterr().err


def test_nothing_is_asked_of_a_hub_that_is_offline(store, capsys):
    assert export(store, "--to", "hf://org/demo") == 2
    assert "HF_HUB_OFFLINE is set, so the Hugging Face hub cannot be reached; unset it, or give" in refused(capsys)


def test_without_a_token_nothing_is_asked(store, api, monkeypatch, capsys):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert export(store, "--to", "hf://org/demo") == 2
    assert "there is no token for the Hugging Face hub; set HF_TOKEN" in refused(capsys)
    assert api.calls == []


def test_a_hub_that_cannot_be_reached_is_refused(store, online, monkeypatch, capsys):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub, "HfApi", partial(HfApi, endpoint=url))
    assert export(store, "--to", "hf://org/demo") == 2
    assert f"the Hugging Face hub at {url} did not accept the token of HF_TOKEN or `hf auth login` (" in refused(capsys)
