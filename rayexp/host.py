"""Cores, memory and GPUs that this process may use. They may be less than the machine's, because a container, a batch
system or the user may set limits.

Plans without a cluster use these numbers, and local clusters are started with them, so the two agree.
"""

import ctypes
import math
import os
import platform
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

#: Share of the memory for the processes of a plan. Ray's object store takes the rest.
SHARE_FOR_WORK = 0.7


def cores(root: Path = Path("/")) -> int:
    """Return the number of whole cores, at least one. ``root``: the folder of proc and sys."""
    there = os.cpu_count() or 1
    if os.environ.get("RAY_USE_MULTIPROCESSING_CPU_COUNT"):  # Ray's switch to count the machine's cores
        return there
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    return max(1, int(min([allowed, *_quotas(root)])))


def memory(root: Path = Path("/")) -> float:
    """Return the bytes of memory, free and in use; infinity if unknown. ``root``: the folder of proc and sys."""
    there = (int(line.split()[1]) * 1024 for line in _lines(root / "proc/meminfo") if line.startswith("MemTotal:"))
    limits = [_limit(folder) for folder in _groups(root, "memory")]
    return min([next(there, math.inf), *limits])


def for_work(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory for the processes of a plan, without Ray's object store; None if unknown."""
    there = memory(root)
    return int(SHARE_FOR_WORK * there) if math.isfinite(there) else None


def _limit(folder: Path) -> float:
    """Return the memory limit of a control group in bytes; infinity if it has none."""
    words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
    return float(words[0]) if words and words[0].isdigit() else math.inf


def processor(root: Path = Path("/")) -> str:
    """Return the model of the processor, or its architecture if the model is unknown. Provenance records it, because
    another processor rounds differently. ``root``: the folder of proc."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def gpus() -> int | None:
    """Return the number of NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves; None without NVIDIA's driver."""
    count = ctypes.c_uint()
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        failed = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    except (OSError, AttributeError):
        return None
    return None if failed else visible(count.value, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(count: int, devices: str | None) -> int:
    """Return how many of ``count`` GPUs a value of CUDA_VISIBLE_DEVICES leaves. CUDA ignores everything from the first
    unknown name on, so -1 hides all GPUs."""
    if devices is None:
        return count

    def known(name: str) -> bool:
        return name.startswith(("GPU-", "MIG-")) or (name.isdigit() and int(name) < count)

    return min(count, sum(1 for _ in takewhile(known, map(str.strip, devices.split(",")))))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas of this process's control group and of its ancestors, in cores."""
    for folder in _groups(root, "cpu"):
        version_1 = (folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
        words = _words(folder / "cpu.max") or [word for file in version_1 for word in _words(file)]
        if len(words) == 2 and all(map(str.isdigit, words)):  # no quota is "max", or -1
            yield int(words[0]) / int(words[1])


def _groups(root: Path, limited: str) -> Iterator[Path]:
    """Yield the folders of the control groups that limit CPUs or memory, as far as they are visible from inside."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and limited not in controllers.split(","):
            continue
        own = Path(path.lstrip("/"))
        mount = root / "sys/fs/cgroup" / (limited if controllers else "")
        yield from (mount / group for group in (own, *own.parents))


def _words(file: Path) -> list[str]:
    return [word for line in _lines(file) for word in line.split()]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
