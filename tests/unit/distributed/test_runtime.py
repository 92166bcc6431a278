"""Connections to Ray: the settings for each kind of cluster."""

import os
from types import SimpleNamespace

import pytest
from ray._private import ray_constants

from rayexp.distributed import runtime


@pytest.fixture
def connected(monkeypatch):
    """Set up an existing cluster. Return the arguments that ``ray.init`` gets, which is not called."""
    given = {}
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    for name, value in {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_USAGE_STATS_ENABLED": "0", **runtime.ENVIRONMENT}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime.ray, "init", lambda **told: given.update(told) or SimpleNamespace(dashboard_url=""))
    monkeypatch.setattr(runtime.ray, "cluster_resources", dict)
    monkeypatch.setattr(runtime.ray, "is_initialized", lambda: False)
    return given


def test_nothing_is_changed_for_a_cluster_that_ray_address_names(connected):
    assert runtime.connect()["token"] == ""
    assert {name for name in os.environ if name.startswith("RAY_AUTH")} == set()
    assert "RAY_TMPDIR" not in os.environ
    assert ray_constants.ENABLE_RAY_CLUSTER
    assert "address" not in connected


def test_variables_that_the_job_has_set_stand(monkeypatch, connected):
    """Set a variable in the job only. Ray refuses one that the driver sets too, even to the same value."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    job = '{"runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "true"}, "working_dir": "gcs://_ray_pkg.zip"}}'
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
    runtime.connect()
    given = connected["runtime_env"]["env_vars"]
    assert given.keys() == runtime.ENVIRONMENT.keys() - {"TOKENIZERS_PARALLELISM"}
    assert given["HF_HUB_OFFLINE"] == "0"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
