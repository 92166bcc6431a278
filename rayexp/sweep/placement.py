"""The fit of trials into nodes: all parts of one together, and the number of trials at once.

Ray places a part on one node, and a share of a GPU on one GPU: what fits the sum of all nodes may fit none of them.
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
    """CPUs that are left of a node, of each of its GPUs the share, smallest first, GB of memory, and GB of a GPU's own;
    infinity where nobody knows."""

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
        """Return what is left when a part is placed here; None where it has no room."""
        cpus = round(self.cpus - part.get("CPU", 0.0), 4)  # as finely as Ray counts
        gpus = _taken(self.gpus, part.get("GPU", 0.0))
        memory = self.memory - part.get("memory", 0.0) / GB
        share = min(1.0, part.get("GPU", 0.0))
        if cpus < 0 or gpus is None or memory < 0 or part.get(ON_GPU, 0.0) / GB > share * self.gpu_memory:
            return None
        return Node(cpus, gpus, memory, self.gpu_memory)


Nodes = Counter[Node]


def nodes_of(resources: Iterable[Bundle]) -> Nodes:
    """Return nodes that have nothing placed on them, by how many are alike."""
    return Counter(map(Node.of, resources))


def total(nodes: Nodes) -> dict[str, float]:
    """Return the CPUs, GPUs and bytes of memory of all nodes together; of a GPU's memory the most that one has."""
    each = [(node.has, count) for node, count in nodes.items()]
    largest = max((has[ON_GPU] for has, _ in each), default=0.0)
    return {name: math.fsum(has[name] * count for has, count in each) for name in ("CPU", "GPU", "memory")} | {
        ON_GPU: largest
    }


def fits(part: Bundle, nodes: Nodes) -> bool:
    """Return whether some node has room for a part."""
    return any(node.without(part) for node in nodes)


def fit_together(parts: Sequence[Bundle], nodes: Nodes) -> bool:
    """Return whether all parts have room at once. Those that are alike stand together, as a trial's do: each but the
    last kind is tried on every kind of node."""
    first, others = parts[0], parts[1:]
    if first == parts[-1]:
        return _room(first, nodes, len(parts))
    lefts = ((node, left) for node in nodes if (left := node.without(first)))
    return any(fit_together(others, _moved(nodes, node, left)) for node, left in lefts)


def how_many(parts: Sequence[Bundle], nodes: Nodes, at_most: int) -> int:
    """Return how many trials with these parts have room at once, each placed where the least is left."""
    for placed in range(at_most):
        for part in parts:
            lefts = [(left.size, node, left) for node in nodes if (left := node.without(part))]
            if not lefts:
                return placed
            _, node, left = min(lefts, key=lambda found: found[0])
            nodes = _moved(nodes, node, left)
    return at_most


def _room(part: Bundle, nodes: Nodes, needed: int) -> bool:
    """Return whether as many copies of one part as are needed have room."""
    for node, count in nodes.items():
        copies, left = 0, node.without(part)
        while left and copies < needed:
            copies, left = copies + 1, left.without(part)
        needed -= copies * count
        if needed <= 0:
            return True
    return False


def _moved(nodes: Nodes, node: Node, left: Node) -> Nodes:
    """Return the nodes with one of them replaced by what is left of it."""
    changed = Counter(nodes)
    changed[node] -= 1
    changed[left] += 1
    return +changed


def _taken(gpus: tuple[float, ...], share: float) -> tuple[float, ...] | None:
    """Return what is left of GPUs: whole ones are taken, or a share of the GPU that has the least left."""
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
