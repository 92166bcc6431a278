"""A check, before any training, that every node of a cluster can read what the driver writes into the store.

A node that joins later is not checked here, but by the first process of a trial on it (``Lease.require_shared``).
"""

import logging
import secrets

from rayexp.errors import first_line, sentence
from rayexp.store.filesystem import Files, StoreError
from rayexp.store.leases import SHARED

log = logging.getLogger(__name__)

#: Longest wait for the nodes, all together.
TIMEOUT_S = 60.0


def require_shared(files: Files) -> None:
    """Raise StoreError if a node of the cluster can't read what is written here. Warn of nodes that do not answer."""
    import ray

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    probe = f".probe-{secrets.token_hex(8)}"
    files.write(probe, probe.encode())
    try:
        problems = _problems(nodes, files.url, probe)
    finally:
        files.remove_file(probe)
    if problems:
        node, why = problems[0]
        raise StoreError(
            f"store={files.url!r} is not shared by {len(problems)} of {len(nodes)} nodes, such as {node}: {why}; "
            f"{SHARED}"
        )


def find_problem(url: str, probe: str) -> str:
    """Return why this process does not see the probe; an empty string if it does."""
    try:
        found = Files(url).read(probe)
    except FileNotFoundError:
        return "what was written here is not there"
    except (StoreError, OSError) as error:
        return first_line(error)
    return "" if found == probe.encode() else "there is something else"


def _problems(nodes: dict[str, str], url: str, probe: str) -> list[tuple[str, str]]:
    """Look for the probe on every node. Return address and reason for each node that does not see it."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def asked(node: str) -> "ray.ObjectRef":
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        return ray.remote(find_problem).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(url, probe)

    answers = {asked(node): address for node, address in nodes.items()}
    done, _ = ray.wait(list(answers), num_returns=len(answers), timeout=TIMEOUT_S)
    problems: list[tuple[str, str]] = []
    for answer, address in answers.items():
        try:
            if answer not in done:
                raise TimeoutError(f"no answer within {TIMEOUT_S:g} s")
            if why := ray.get(answer):
                problems.append((address, why))
        except (RayError, TimeoutError) as error:
            log.warning("cannot tell whether the node %s shares the store: %s", address, sentence(error))
    return problems
