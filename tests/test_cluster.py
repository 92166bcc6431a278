"""cluster.yaml is what Ray accepts, and says what its comments promise. Nothing here talks to a cloud."""

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parent.parent / "cluster.yaml"


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """The file as it stands."""
    return yaml.safe_load(CLUSTER.read_text())


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    """The file as ``ray up`` reads it: validated, with Ray's defaults filled in."""
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
    needed = {"pyproject.toml", project["project"]["readme"], *packages}
    mounted = {local: remote for remote, local in prepared["file_mounts"].items() if not local.startswith("~")}
    assert mounted == {local: f"/home/ray/rayexp/{local}" for local in needed}
    assert all((CLUSTER.parent / local).exists() for local in needed)
