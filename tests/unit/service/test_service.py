"""The results service: its pages and JSON show the content of the store, and give nothing else away."""

import io
import json
import shutil
import socket
import threading

import pandas as pd
import pytest
from starlette.testclient import TestClient

from rayexp import cli
from rayexp.cli import serve
from rayexp.errors import RefusedError
from rayexp.service import facts, reader
from rayexp.service.app import application
from rayexp.service.cache import KEPT, Cache
from rayexp.store.index import StoreIndex
from tests.fixtures import stored_study
from tests.fixtures.stored_study import STAGES

HOSTS = ("testserver",)
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store with a study that lacks some stages."""
    folder = tmp_path_factory.mktemp("service")
    found = stored_study.study(folder, finished=len(STAGES) - 4)
    claims = pd.DataFrame([{"title": HOSTILE, "setting": "β = 0.1", "measured": "gain 0.5", "verdict": "holds"}])
    found.files.write("studies/demo-tiny/claims.csv", claims.to_csv(index=False).encode())
    return found


@pytest.fixture(scope="module")
def client(store):
    return TestClient(application(store.url, HOSTS))


def of(client, path) -> dict:
    response = client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


# Its content


def test_studies_are_those_of_the_store_with_progress_and_verdicts(client, store):
    (study,) = of(client, "/api/studies")["studies"]
    ids = {stage.id for stage in STAGES}
    assert study == {
        "name": "demo-tiny",
        "study": "demo",
        "scale": "tiny",
        "stages": len(ids),
        "finished": len(store.finished_ids()),
        "running": 0,
        "verdicts": {"holds": 1},
    }
    page = client.get("/").text
    assert f"{study['finished']} of {study['stages']}" in page
    assert 'href="/studies/demo-tiny"' in page


def test_a_study_says_which_of_its_stages_are_missing(client, store):
    study = of(client, "/api/studies/demo-tiny")
    missing = {each["id"] for each in study["stages"] if each["state"] == "missing"}
    assert missing == {stage.id for stage in STAGES} - store.finished_ids()
    assert study["states"] == {"finished": len(store.finished_ids()), "missing": len(missing)}
    page = client.get("/studies/demo-tiny").text
    assert f"{len(missing)} missing" in page
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page


def test_a_stage_says_what_the_command_says(client, store, capsys):
    """Compare the whole document with that of ``rayexp show --json``."""
    stage_id = next(iter(sorted(each for each in store.finished_ids() if each.startswith("grpo"))))
    assert cli.main(["show", stage_id, "--store", store.url, "--json"]) == 0
    assert of(client, f"/api/stages/{stage_id}") == json.loads(capsys.readouterr().out)
    assert cli.main(["ls", "--study", "demo-tiny", "--store", store.url, "--json"]) == 0
    assert of(client, "/api/stages?study=demo-tiny") == json.loads(capsys.readouterr().out)
    page = client.get(f"/stages/{stage_id}").text
    facts = of(client, f"/api/stages/{stage_id}")
    mean = facts["results"]["cells"][0]["q"]["mean"]
    assert f"{mean:.3g}" in page
    assert all(file["sha256"] in page for file in facts["files"])


def test_results_are_handed_out_as_they_are_and_of_some_values_alone(client, store):
    whole = pd.read_parquet(io.BytesIO(client.get("/api/studies/demo-tiny/results?form=parquet").content))
    kept = store.files.read("studies/demo-tiny/results.parquet")
    pd.testing.assert_frame_equal(whole, pd.read_parquet(io.BytesIO(kept)))
    some = pd.read_csv(io.BytesIO(client.get("/api/studies/demo-tiny/results?ood_ratio=0.01&kind=grpo").content))
    expected = whole[(whole["ood_ratio"] == 0.01) & (whole["kind"] == "grpo")]
    assert len(some) == len(expected) > 0
    assert some["q"].tolist() == pytest.approx(expected["q"].tolist())
    refused = client.get("/api/studies/demo-tiny/results?colour=red")
    assert refused.status_code == 404
    assert "there is no column 'colour'; choose from stage_id" in refused.json()["error"]
    refused = client.get("/api/studies/demo-tiny/rows?page=one")
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("page='one' is refused: it should be a valid integer")
    assert client.get("/studies/demo-tiny/results?page=one").status_code == 422


def test_a_file_of_a_stage_is_what_its_manifest_says(client, store):
    stage_id = min(store.finished_ids())
    (file, *_) = of(client, f"/api/stages/{stage_id}")["files"]
    response = client.get(f"/stages/{stage_id}/files/{file['name']}")
    assert len(response.content) == file["bytes"]
    assert response.headers["content-disposition"].startswith("attachment")
    assert response.headers["content-type"] == "application/octet-stream"


def test_every_path_of_the_api_is_described(client):
    paths = of(client, "/api/openapi.json")["paths"]
    assert set(paths) == {
        "/api/studies",
        "/api/studies/{name}",
        "/api/studies/{name}/results",
        "/api/studies/{name}/rows",
        "/api/compare",
        "/api/stages",
        "/api/stages/{stage}",
        "/api/stages/{stage}/curves",
        "/api/stages/{stage}/differences",
    }
    assert all(path["get"]["description"] for path in paths.values())


# What it keeps back


@pytest.mark.parametrize(
    "path",
    [
        "/studies/..%2f..%2fetc",
        "/studies/%2e%2e",
        "/studies/demo-tiny/files/..%2f..%2f..%2fpasswd",
        "/studies/demo-tiny/files/report",
        "/studies/demo-tiny/files/%00",
        "/studies/nothing",
        "/studies/nothing/report",
        "/studies/nothing/results",
        "/studies/..%2f..%2fetc/results",
        "/studies/demo-tiny/results?colour=red",
        "/studies/demo-tiny/results?token_log_mass=1",
        "/studies/demo-tiny/results?page=0",
        "/studies/demo-tiny/results?page=9999",
        "/api/studies/demo-tiny/results?form=exe",
        "/api/studies/%2e%2e/rows",
        "/compare?a=nothing&b=demo-tiny",
        "/compare?a=demo-tiny&b=..%2f..%2fetc",
        "/compare?a=demo-tiny&b=%2fetc::passwd",
        "/compare?a=demo-tiny&b=file:%2f%2f%2ftmp::demo-tiny",
        "/compare?a=demo-tiny&by=colour",
        "/compare?a=demo-tiny&by=grpo.kl_beta&b=demo-tiny",
        "/api/compare?a=demo-tiny",
        "/api/stages/nothing/curves",
        "/stages/nothing",
        "/stages/pretrain?other=nothing",
        "/stages/..%2f..%2fetc?other=nothing",
        "/stages/grpo-",
        "/api/studies/nothing",
        "/api/studies/..%2fdemo-tiny",
        "/api/stages?study=nothing",
        "/nothing",
    ],
)
def test_a_name_that_is_none_of_the_store_is_refused(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert "root:" not in response.text
    if path.startswith("/api/"):
        assert response.json()["error"]


def test_a_file_of_a_stage_is_one_of_its_manifest(client, store):
    stage_id = min(store.finished_ids())
    for name in ("manifest.json", "../../plan.json", "..%2f..%2fstudies%2fdemo-tiny%2fplan.json"):
        assert client.get(f"/stages/{stage_id}/files/{name}").status_code == 404


def test_a_link_in_the_store_leads_nowhere(tmp_path):
    found = stored_study.study(tmp_path)
    secret = tmp_path / "secret.csv"
    secret.write_text("secret")
    (tmp_path / "store/studies/demo-tiny/summary.csv").symlink_to(secret)
    client = TestClient(application(found.url, HOSTS))
    response = client.get("/studies/demo-tiny/files/summary.csv")
    assert response.status_code == 503
    assert "leads out of the store" in response.text


def test_a_file_that_is_too_large_is_refused_with_where_it_is(client, monkeypatch):
    monkeypatch.setattr(reader, "LARGEST", 10)
    response = client.get("/studies/demo-tiny/files/results.parquet")
    assert response.status_code == 404
    assert "too large to be sent" in response.text


def test_only_reading_is_offered(client):
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)("/studies/demo-tiny").status_code == 405


def test_pages_have_no_scripts_and_a_report_is_a_stranger(client):
    headers = client.get("/studies/demo-tiny").headers
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/studies/demo-tiny/report").headers["content-security-policy"].startswith("sandbox")


def test_another_name_for_this_machine_is_refused(store):
    """Refuse DNS rebinding: a stranger's page, whose host name resolves to this machine, could read through the browser
    of a permitted user."""
    assert TestClient(application(store.url, ("127.0.0.1",))).get("/").status_code == 400


def test_a_store_that_vanishes_is_said_to_be_missing(tmp_path):
    found = stored_study.study(tmp_path)
    client = TestClient(application(found.url, HOSTS))
    shutil.rmtree(tmp_path / "store")
    assert client.get("/studies/demo-tiny").status_code == 404
    assert client.get("/").status_code == 200
    assert "There is no study in this store yet" in client.get("/").text


def test_a_number_that_is_none_is_null_in_json(client, store, monkeypatch):
    monkeypatch.setattr(facts, "stages", lambda *_: {"finished": [{"bytes": float("nan")}]})
    response = client.get("/api/stages?kind=nan")
    assert response.status_code == 200
    assert response.json() == {"finished": [{"bytes": None}]}


# Access


@pytest.fixture
def guarded(store):
    return TestClient(application(store.url, HOSTS, token="let me in"))


def test_elsewhere_a_token_is_asked_for(guarded):
    assert guarded.get("/").status_code == 401
    assert guarded.get("/api/studies").json() == {
        "error": "a token is required; send it as Authorization: Bearer TOKEN"
    }
    for header in ("Bearer wrong", "Bearer ", "let me", ""):
        assert guarded.get("/api/studies", headers={"Authorization": header}).status_code == 401
    assert guarded.get("/api/studies", headers={"Authorization": "Bearer let me in"}).status_code == 200
    assert guarded.get("/style.css").status_code == 200


def test_a_browser_is_asked_once(guarded):
    assert guarded.post("/login", data={"token": "wrong"}).status_code == 401
    assert guarded.post("/login", data={"token": "x" * 10_000}).status_code == 401
    assert guarded.get("/login?token=let+me+in").status_code == 401
    entered = guarded.post("/login", data={"token": "let me in"}, follow_redirects=False)
    assert entered.status_code == 303
    assert {"HttpOnly", "SameSite=strict"} <= set(entered.headers["set-cookie"].split("; "))
    assert guarded.get("/").status_code == 200


def test_an_address_that_others_reach_needs_a_token(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        RefusedError, match=r"host='0.0.0.0' can be reached by others, and there is no token to ask them for"
    ):
        serve._token("0.0.0.0")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("of Ray\n")
    assert serve._token("0.0.0.0") == "of Ray"


def test_a_port_that_is_taken_is_refused(store, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--store", store.url, "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 cannot be opened" in capsys.readouterr().err
    assert cli.main(["serve", "--store", store.url + "-nowhere"]) == 2


# Caching of responses


def test_many_readers_cost_as_much_as_one():
    asked, go = [], threading.Event()
    cache = Cache()

    def find() -> int:
        go.wait(5)
        asked.append(1)
        return len(asked)

    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(cache("page", find))) for _ in range(8)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert answers == [1] * 8


def test_an_answer_is_fresh_and_a_failure_is_not_kept():
    cache = Cache(fresh_s=0.0)
    assert [cache("page", iter([n]).__next__) for n in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        Cache()("page", lambda: 1 // 0)


def test_names_that_lead_nowhere_leave_nothing_behind():
    cache = Cache()
    for n in range(1000):
        with pytest.raises(KeyError):
            cache(n, lambda n=n: {}[n])
        cache(("kept", n), lambda: 1)
    assert len(cache._finding) == len(cache._answers) == KEPT


def test_a_running_study_is_seen_to_grow(tmp_path, monkeypatch):
    found = stored_study.study(tmp_path, finished=4)
    client = TestClient(application(found.url, HOSTS))
    before = of(client, "/api/studies")["studies"][0]["finished"]
    monkeypatch.setattr(StoreIndex, "running", lambda self: {STAGES[5].id})
    again = TestClient(application(found.url, HOSTS))
    (study,) = of(again, "/api/studies")["studies"]
    assert (study["finished"], study["running"]) == (before, 1)
    assert "1 running" in again.get("/studies/demo-tiny").text
