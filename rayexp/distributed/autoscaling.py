"""Limits to which a cluster may grow, from its autoscaler's configuration. Ray keeps no record of them for drivers.

``ray up`` and ``ray start --autoscaling-config`` run the autoscaler beside the head's other processes. KubeRay runs it
in the head's pod and configures it by the cluster's Kubernetes resource. A driver elsewhere can read neither, and
counts the nodes there are.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayexp.errors import sentence

log = logging.getLogger(__name__)

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

NodeTypes = list[tuple[Mapping[str, float], int]]


def node_types(gcs_address: str) -> NodeTypes:
    """Return resources and maximum number of each kind of node that the autoscaler of a cluster may start."""
    try:
        config = _of_kuberay() if "RAY_CLUSTER_NAME" in os.environ and NAMESPACE.exists() else _of_monitor(gcs_address)
        return types_in(config or {})
    except Exception as error:  # of a file, of YAML, or of the network
        log.warning("cannot read how far the cluster may grow (%s); counting the present nodes", sentence(error))
        return []


def types_in(config: Mapping[str, Any]) -> NodeTypes:
    """Return resources and maximum number of each kind of node in an autoscaler's configuration, but for the head."""
    most = config.get("max_workers", 0)
    return [
        (kind.get("resources", {}), min(most, kind.get("max_workers", most)))
        for name, kind in config.get("available_node_types", {}).items()
        if name != config.get("head_node_type")
    ]


def _of_monitor(gcs_address: str) -> Mapping[str, Any] | None:
    """Read the configuration of the cluster's autoscaler, if the autoscaler runs on this machine."""
    import psutil  # comes with Ray
    import yaml

    for process in psutil.process_iter(["cmdline"]):
        options = dict(word.split("=", 1) for word in process.info["cmdline"] or [] if "=" in word)
        if options.get("--gcs-address") == gcs_address and (file := options.get("--autoscaling-config")):
            return yaml.safe_load(Path(file).expanduser().read_text())
    return None


def _of_kuberay() -> Mapping[str, Any] | None:
    """Read the cluster's resource from Kubernetes, if the cluster scales; KubeRay lets the head's pod read it then."""
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    client = node_provider.KubernetesHttpApiClient(namespace=NAMESPACE.read_text(encoding="utf-8").strip())
    cluster = client.get(f"rayclusters/{os.environ['RAY_CLUSTER_NAME']}")
    grows = cluster["spec"].get("enableInTreeAutoscaling")
    return autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster) if grows else None
