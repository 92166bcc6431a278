"""The fit of trials into nodes: whether all parts of a trial fit together, and how many trials fit at once.

Ray places a part on one node, and a share of a GPU on one GPU, so a trial may fit the sum of all nodes and yet no node.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Bundle = Mapping[str, float]
GB = 1e9
#: GB of a GPU by Ray's name of its kind; the largest where there are several of a name.
GPU_MEMORY = {
    "T4": 16,
    "P4": 8,
    "P100": 16,
    "V100": 32,
    "L4": 24,
    "A10G": 24,
    "L40S": 48,
    "A100": 80,
    "A100-40G": 40,
    "A100-80G": 80,
    "H20": 141,
    "H100": 80,
    "H200": 141,
    "B200": 192,
    "B300": 288,
}
_KIND = "accelerator_type:"
#: The bytes of one GPU that a part asks for, as a part of a bundle that Ray is not told of.
ON_GPU = "of a GPU"


@dataclass(frozen=True)
class Node:
    """The free part of a node: CPUs, the share of each GPU (smallest first), GB of memory, and GB of one GPU's memory
    (infinity if unknown)."""

    cpus: float
    gpus: tuple[float, ...] = ()
    memory: float = math.inf
    gpu_memory: float = math.inf

    @classmethod
    def of(cls, resources: Bundle) -> "Node":
        """Return a node with nothing placed on it."""
        memory = math.floor(resources["memory"] / GB) if resources.get("memory") else math.inf
        kinds = [name.removeprefix(_KIND) for name in resources if name.startswith(_KIND)]
        gpu_memory = GPU_MEMORY.get(kinds[0], math.inf) if kinds else math.inf
        return cls(resources.get("CPU", 0.0), (1.0,) * int(resources.get("GPU", 0.0)), memory, gpu_memory)

    @property
    def has(self) -> dict[str, float]:
        gpu_memory = self.gpu_memory * GB if self.gpus else 0.0
        return {"CPU": self.cpus, "GPU": sum(self.gpus), "memory": self.memory * GB, ON_GPU: gpu_memory}

    @property
    def size(self) -> tuple[float, float]:
        return sum(self.gpus), self.cpus

    def without(self, part: Bundle) -> "Node | None":
        """Return the node after a part is placed on it; None if the part does not fit."""
        cpus = round(self.cpus - part.get("CPU", 0.0), 4)  # as finely as Ray counts
        gpus = _taken(self.gpus, part.get("GPU", 0.0))
        memory = self.memory - part.get("memory", 0.0) / GB
        share = min(1.0, part.get("GPU", 0.0))
        if cpus < 0 or gpus is None or memory < 0 or part.get(ON_GPU, 0.0) / GB > share * self.gpu_memory:
            return None
        return Node(cpus, gpus, memory, self.gpu_memory)


Nodes = Counter[Node]


def nodes_of(resources: Iterable[Bundle]) -> Nodes:
    """Return empty nodes, counted by kind."""
    return Counter(map(Node.of, resources))


def total(nodes: Nodes) -> dict[str, float]:
    """Return the CPUs, GPUs and bytes of memory of all nodes together."""
    each = [(node.has, count) for node, count in nodes.items()]
    return {name: math.fsum(has[name] * count for has, count in each) for name in ("CPU", "GPU", "memory")}


def fits(part: Bundle, nodes: Nodes) -> bool:
    """Return whether some node has room for a part."""
    return any(node.without(part) for node in nodes)


def fit_together(parts: Sequence[Bundle], nodes: Nodes) -> bool:
    """Return whether all parts fit at once. Equal parts have to stand side by side, as those of a trial do."""
    first, others = parts[0], parts[1:]
    if first == parts[-1]:
        return _room(first, nodes, len(parts))
    lefts = ((node, left) for node in nodes if (left := node.without(first)))
    return any(fit_together(others, _moved(nodes, node, left)) for node, left in lefts)


def how_many(parts: Sequence[Bundle], nodes: Nodes, at_most: int) -> int:
    """Return how many trials with these parts fit at once, each part placed where the least is left."""
    for placed in range(at_most):
        for part in parts:
            lefts = [(left.size, node, left) for node in nodes if (left := node.without(part))]
            if not lefts:
                return placed
            _, node, left = min(lefts, key=lambda found: found[0])
            nodes = _moved(nodes, node, left)
    return at_most


def _room(part: Bundle, nodes: Nodes, needed: int) -> bool:
    """Return whether ``needed`` copies of one part fit."""
    for node, count in nodes.items():
        copies, left = 0, node.without(part)
        while left and copies < needed:
            copies, left = copies + 1, left.without(part)
        needed -= copies * count
        if needed <= 0:
            return True
    return False


def _moved(nodes: Nodes, node: Node, left: Node) -> Nodes:
    """Return the nodes with one of them replaced by ``left``."""
    changed = Counter(nodes)
    changed[node] -= 1
    changed[left] += 1
    return +changed


def _taken(gpus: tuple[float, ...], share: float) -> tuple[float, ...] | None:
    """Return the GPUs without whole ones, or without a share of the GPU that has the least left; None if none fits."""
    if share > 1:  # Ray gives more than one only whole
        whole = gpus.count(1.0) - math.ceil(share)
        return None if whole < 0 else (*(gpu for gpu in gpus if gpu < 1), *[1.0] * whole)
    if not share:
        return gpus
    enough = [gpu for gpu in gpus if gpu >= share]
    if not enough:
        return None
    rest = list(gpus)
    rest.remove(enough[0])
    return tuple(sorted([*rest, round(enough[0] - share, 4)]))
