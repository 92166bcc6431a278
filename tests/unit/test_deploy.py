"""Descriptions of clusters: Ray accepts them, and their comments are true. No test connects to a cloud."""

import copy
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient
from ray.autoscaler._private.util import prepare_config, validate_config

from rayexp.distributed import autoscaling
from tests.fixtures import shell
from tests.fixtures.checkout import ROOT

CLUSTER = ROOT / "cluster.yaml"


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """Return the content of the file."""
    return yaml.safe_load(CLUSTER.read_text())


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    """Return the file as ``ray up`` reads it: validated, with Ray's defaults filled in."""
    config = prepare_config(copy.deepcopy(written))
    validate_config(config)
    return config


def test_schema_refuses_a_misspelt_setting(written: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="idle_timeout_minuets"):
        validate_config(prepare_config(written | {"idle_timeout_minuets": 5}))


def test_image_has_the_installed_ray(prepared: dict[str, Any]) -> None:
    repository, tag = prepared["docker"]["image"].split(":")
    version, python, platform = tag.split("-")
    assert repository == "rayproject/ray"
    assert version == ray.__version__
    assert python == "py311"
    assert platform.startswith("cu")


def test_limits_are_consistent(prepared: dict[str, Any]) -> None:
    for name, node in prepared["available_node_types"].items():
        assert node["min_workers"] <= node["max_workers"] <= prepared["max_workers"], name


def test_head_offers_no_cpu(prepared: dict[str, Any]) -> None:
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0, "the autoscaler would start more heads"


def test_spot_machines_are_labelled_and_only_they(prepared: dict[str, Any]) -> None:
    market = {
        name: node["node_config"].get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
        for name, node in prepared["available_node_types"].items()
        if name != prepared["head_node_type"]
    }
    assert set(market.values()) == {"on-demand", "spot"}
    assert market == {name: prepared["available_node_types"][name]["labels"]["market-type"] for name in market}


def test_every_node_authenticates_with_the_token(prepared: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in prepared["docker"]["run_options"]
    assert prepared["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_dashboard_listens_on_loopback_only(prepared: dict[str, Any]) -> None:
    (start,) = [command for command in prepared["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in CLUSTER.read_text()


def test_mounts_are_what_the_package_is_built_from(prepared: dict[str, Any]) -> None:
    project = tomllib.loads((CLUSTER.parent / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    metadata = project["project"]
    needed = {"pyproject.toml", metadata["readme"], *metadata["license-files"], *packages}
    mounted = {local: remote for remote, local in prepared["file_mounts"].items() if not local.startswith("~")}
    assert mounted == {local: f"/home/ray/rayexp/{local}" for local in needed}
    assert all((CLUSTER.parent / local).exists() for local in needed)


# Kubernetes


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    """Return the RayJob, whose fields are listed in KubeRay's API reference."""
    return yaml.safe_load((ROOT / "deploy/kuberay.yaml").read_text())


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_job_runs_a_sweep_that_can_be_planned(job: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    monkeypatch.chdir(tmp_path)
    shell.prove(shlex.split(job["spec"]["entrypoint"]))


def test_the_job_cleans_up_and_asks_for_tokens(job: dict[str, Any]) -> None:
    spec = job["spec"]
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode")
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert all(pod["restartPolicy"] == "Never" for pod in pods(job)), "a sidecar and autoscaler v2 ask for it"


def test_all_pods_have_one_image_and_the_installed_ray(job: dict[str, Any], written: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert len({container["image"] for pod in pods(job) for container in pod["containers"]}) == 1
    recipe = (ROOT / "docs/cluster.md").read_text()
    assert f"FROM {written['docker']['image']}\n" in recipe, "the image is built from that of cluster.yaml"
    assert written["setup_commands"][-1].partition("&& ")[2].removesuffix(" boto3") in recipe


def test_a_trial_fits_a_pod(job: dict[str, Any]) -> None:
    """Check that the head offers no CPU, and that a worker has as many as the entrypoint asks for."""
    _, worker = pods(job)
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    asked = dict(re.findall(r"--(train|learner|rollout)-cpus (\d+)", job["spec"]["entrypoint"]))
    limits = worker["containers"][0]["resources"]["limits"]
    assert max(int(asked["train"]), int(asked["learner"]) + int(asked["rollout"])) <= int(limits["cpu"])
    assert limits["nvidia.com/gpu"] == "1"


def test_a_sweep_counts_the_pods_that_may_be_started(job: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    """Fake KubeRay's API for the head's pod, with a cluster that may grow and one that may not."""
    cluster = {"metadata": {"name": "rayexp-x", "namespace": "jobs"}, "spec": job["spec"]["rayClusterSpec"]}
    asked: list[str] = []
    (tmp_path / "namespace").write_text("jobs\n")
    monkeypatch.setattr(autoscaling, "NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("RAY_CLUSTER_NAME", "rayexp-x")
    monkeypatch.setattr(KubernetesHttpApiClient, "get", lambda self, path: asked.append(path) or cluster)
    ((resources, most),) = autoscaling.node_types("anywhere")
    assert (resources["CPU"], resources["GPU"], most) == (7, 1, 4)
    assert asked == ["rayclusters/rayexp-x"]
    cluster["spec"] = cluster["spec"] | {"enableInTreeAutoscaling": False}
    assert autoscaling.node_types("anywhere") == []


# Slurm


def test_the_script_for_slurm_uses_options_that_there_are() -> None:
    script = ROOT / "deploy/slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^srun --.* (ray symmetric-run .*)$", text, re.MULTILINE)
    shell.prove(shlex.split(command))
    assert "RAY_AUTH_MODE=token" in text
    assert '-- env RAY_ADDRESS="$address" python jobs/sweep.py "$@"' in re.sub(r" +", " ", command)


def test_the_script_for_slurm_gives_ray_all_cores_and_nobody_else_the_token(tmp_path: Path) -> None:
    """Run the script with fakes of the commands of Slurm and Ray."""
    stubs = {
        "scontrol": "echo n1",
        "getent": "echo 10.0.0.1 STREAM n1",
        "ray": "mkdir -p ~/.ray && echo secret > ~/.ray/auth_token",
        "srun": 'printf "%s\\n" "$@"',
    }
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        **{"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "64"},
    }
    done = subprocess.run(
        ["bash", ROOT / "deploy/slurm.sh", "--store", "/shared/a place"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        umask=0o022,
    )
    words = done.stdout.splitlines()
    job = ["env", "RAY_ADDRESS=10.0.0.1:6379", "python", "jobs/sweep.py", "--store", "/shared/a place"]
    assert words[: words.index("ray")] == ["--cpu-bind=none", "--cpus-per-task=64"]
    assert words[words.index("--") + 1 :] == job
    assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
