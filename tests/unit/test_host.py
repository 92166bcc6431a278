"""The counts of cores and GPUs that this process may use, and the start of a local cluster with as many."""

import math
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rayexp import host
from rayexp.distributed import runtime
from rayexp.sweep.preview import ClusterResources

#: Control groups as files: the content of /proc/self/cgroup and of /sys/fs/cgroup, and the cores that remain of 64.
GROUPS = {
    "no groups": ("", {}, 64),
    "version 2, in a container": ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
    "version 2, no quota": ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
    "version 2, a quota of a group around it": (
        "0::/system.slice/job.scope\n",
        {"system.slice/cpu.max": "250000 100000\n", "system.slice/job.scope/cpu.max": "max 100000\n"},
        2,
    ),
    "version 2, less than a core": ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    "version 1, in a container that sees its host's path": (
        "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "version 1, no quota": ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    "version 1, half of it": ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000\n"}, 64),
    "more than there is": ("0::/\n", {"cpu.max": "9900000 100000\n"}, 64),
}


@pytest.fixture
def sixty_four(monkeypatch):
    """Simulate a machine of 64 cores, all of which this process may use."""
    monkeypatch.delenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


@pytest.mark.parametrize("groups", GROUPS)
def test_a_quota_of_control_groups_limits_the_cores(groups, sixty_four, tmp_path):
    own, files, expected = GROUPS[groups]
    for name, text in {
        "proc/self/cgroup": own,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host.cores(tmp_path) == expected


def test_cores_that_a_process_is_bound_to_are_its_cores(sixty_four, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 17})
    assert host.cores(tmp_path) == 2


def test_rays_own_setting_counts_what_is_there(sixty_four, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    monkeypatch.setenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", "1")
    assert host.cores(tmp_path) == 64


def test_a_processor_says_what_it_is_called(monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert host.processor(tmp_path) == "riscv64"
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nflags\t: fpu\n")
    assert host.processor(tmp_path) == "riscv64"
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nprocessor\t: 1\n")
    assert host.processor(tmp_path) == "Some CPU @ 2 GHz"


@pytest.mark.parametrize(
    ("devices", "left"),
    [
        *[(None, 4), ("", 0), ("-1", 0), ("2", 1), ("3,1", 2), ("0, 1", 2), ("0,-1,1", 1), ("7", 0), ("none", 0)],
        *[("NoDevFiles", 0), ("GPU-8932f937,MIG-1c22", 2), ("0,1,2,3,GPU-8932f937", 4)],
    ],
)
def test_visible_devices_limit_the_gpus(devices, left):
    assert host.visible(4, devices) == left


@pytest.mark.parametrize("gpus", [None, 0, 3])
def test_a_local_cluster_is_started_with_what_a_plan_counts_with(monkeypatch, gpus):
    started = {}
    monkeypatch.setattr(os, "environ", {name: os.environ[name] for name in os.environ if name != "RAY_ADDRESS"})
    monkeypatch.setattr(host, "cores", lambda: 5)
    monkeypatch.setattr(host, "gpus", lambda: gpus)
    fake = {"init": lambda **options: started.update(options) or EMPTY, "cluster_resources": dict}
    monkeypatch.setattr(runtime, "ray", SimpleNamespace(is_initialized=lambda: False, **fake))
    runtime.connect()
    memory = started["_memory"] // 10**9 * 1e9
    assert ClusterResources.here().has == {
        "CPU": started["num_cpus"],
        "GPU": started["num_gpus"] or 0.0,
        "memory": memory,
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"proc/meminfo": "MemTotal: 1000 kB\nMemFree: 1 kB\n"}, 1_024_000),
        ({"proc/meminfo": "MemTotal: 1000 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 1_024_000),
        ({"proc/meminfo": "MemTotal: 1000 kB\n", "sys/fs/cgroup/memory.max": "500000\n"}, 500_000),
    ],
)
def test_memory_is_what_the_machine_has_or_its_control_group_leaves(tmp_path, files, expected):
    for name, text in {"proc/self/cgroup": "0::/\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host.memory(tmp_path) == expected


EMPTY = SimpleNamespace(dashboard_url="")


def test_a_plan_needs_neither_ray_nor_torch(tmp_path):
    program = (
        "import sys; from rayexp.cli import run; assert run.main(['--scale', 'toy', '--plan']) == 0;"
        "assert not {'ray', 'torch'} & set(sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
