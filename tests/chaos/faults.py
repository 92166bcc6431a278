"""The faults: when each can strike, what it does, what is expected to recover from it, and how that shows."""

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rayexp.store.artifacts import Store
from tests.chaos.bench import Bench, Driver, processes

TRAINING = r"RayTrainWorker(\..*)?"
TRIAL = r"ImplicitFunc\.train"
LEARNING = " (update|checkpoint)"  # calls are named "stage: method"
GENERATING = " generate"
AT_WORK = f"({TRAINING}|{LEARNING})"
#: Seconds between a spot notice and the end of the machine.
NOTICE_S = 8.0


@dataclass
class FaultContext:
    """The things that a fault can see and touch."""

    bench: Bench
    store: Store
    drivers: list[Driver]
    chance: random.Random
    launch: Callable[..., Driver]
    storage_faults: Callable[[str, float], None] | None
    repair: bool = False  # whether the next driver is to repair
    doomed: list[Any] = field(default_factory=list)  # (deadline, node) of machines to be taken away


@dataclass(frozen=True)
class Fault:
    """``find`` returns what to strike, or None while there is nothing; ``strike`` returns how to see the recovery."""

    name: str
    recovered_by: str
    find: Callable[[FaultContext], Any]
    strike: Callable[[FaultContext, Any], Callable[[], bool]]


def _kill(role: str, how: signal.Signals = signal.SIGKILL) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Kill one process of a role; over when another one of that role is at work."""

    def find(scene: FaultContext) -> Any:
        found = processes(role)
        return scene.chance.choice(found) if found else None

    def strike(scene: FaultContext, process: Any) -> Callable[[], bool]:
        before = {other.pid for other in processes(role)}
        process.send_signal(how)
        return lambda: any(other.pid not in before for other in processes(role))

    return find, strike


def _find_driver(scene: FaultContext) -> Driver | None:
    return next((driver for driver in scene.drivers if driver.code is None and processes(TRIAL)), None)


def _end_driver(how: signal.Signals) -> Callable[[FaultContext, Driver], Callable[[], bool]]:
    def strike(scene: FaultContext, driver: Driver) -> Callable[[], bool]:
        before = {process.pid for process in processes(TRIAL)}
        driver.process.send_signal(how)
        driver.process.wait(timeout=60)
        relaunched = scene.launch()
        return lambda: relaunched.code is not None or any(other.pid not in before for other in processes(TRIAL))

    return strike


def _second_driver(scene: FaultContext, driver: Driver) -> Callable[[], bool]:
    second = scene.launch()
    return lambda: second.code is not None


def _find_node(scene: FaultContext) -> Any:
    return scene.bench.busy_node(scene.chance.choice([TRAINING, GENERATING, LEARNING]))


def _lose_node(scene: FaultContext, node: Any) -> Callable[[], bool]:
    """Kill a node. The fault is over when a process works that did not before."""
    before = {process.pid for process in processes(AT_WORK)}
    scene.bench.lose_node(node)
    return lambda: any(other.pid not in before for other in processes(AT_WORK))


def _warn_node(scene: FaultContext, node: Any) -> Callable[[], bool]:
    """Warn a node. The fault is over when the node is gone and a process works that did not before."""
    before = {process.pid for process in processes(AT_WORK)}
    scene.bench.warn_node(node, NOTICE_S)
    scene.doomed.append(node)
    return lambda: not scene.bench.has(node) and any(other.pid not in before for other in processes(AT_WORK))


def _newest_checkpoint(scene: FaultContext) -> str | None:
    """Return the newest checkpoint of a stage whose process is at work."""
    files = scene.store.files
    for stage_id in files.names("work"):
        if processes(LEARNING if stage_id.startswith("grpo") else TRAINING):
            steps = [name for name in files.names(f"work/{stage_id}") if name.startswith("step-")]
            if steps:
                return f"work/{stage_id}/{max(steps)}"
    return None


def _spoil_checkpoint(spoil: Callable[[FaultContext, str], None]) -> Callable[[FaultContext, str], Callable[[], bool]]:
    """Spoil a checkpoint and kill whoever could write a better one."""

    def strike(scene: FaultContext, path: str) -> Callable[[], bool]:
        role = LEARNING if "/grpo" in path else TRAINING
        before = processes(role)
        for process in before:
            process.kill()
        spoil(scene, path)
        pids = {process.pid for process in before}
        return lambda: any(other.pid not in pids for other in processes(role))

    return strike


def _truncate(scene: FaultContext, path: str) -> None:
    (name,) = scene.store.files.names(f"{path}/trainer")
    data = scene.store.files.read(f"{path}/trainer/{name}")
    scene.store.files.write(f"{path}/trainer/{name}", data[: len(data) // 2])


def _find_parent(scene: FaultContext) -> str | None:
    """Return a finished stage that others are still to be built on."""
    finished = scene.store.finished_ids()
    tuned = sorted(name for name in finished if name.startswith("sft"))
    return tuned[0] if tuned and sum(name.startswith("grpo") for name in finished) < len(tuned) else None


def _flip_bit(scene: FaultContext, stage_id: str) -> Callable[[], bool]:
    path = f"stages/{stage_id}/model/model.safetensors"
    data = bytearray(scene.store.files.read(path))
    data[scene.chance.randrange(len(data))] ^= 1 << scene.chance.randrange(8)
    scene.store.files.write(path, bytes(data))
    scene.repair = True
    return lambda: stage_id not in scene.store.damaged([stage_id]) and scene.store.finished(stage_id)


def _find_storage(scene: FaultContext) -> Any:
    return scene.storage_faults if processes(AT_WORK) else None


def _upset_storage(scene: FaultContext, upset: Callable[[str, float], None]) -> Callable[[], bool]:
    for kind in ("500", "reset", "slow"):
        upset(kind, 3.0)
    before = scene.store.finished_ids()
    return lambda: scene.store.finished_ids() > before


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("rank exits", "a new worker group, from the last checkpoint", *_kill(TRAINING, signal.SIGTERM)),
        Fault("Train worker killed", "a new worker group, from the last checkpoint", *_kill(TRAINING)),
        Fault("rollout actor killed", "a new actor, weights first, the same seeds", *_kill(GENERATING)),
        Fault("learner killed", "a new learner, from the last checkpoint", *_kill(LEARNING)),
        Fault("trial killed", "Tune starts the trial again", *_kill(TRIAL)),
        Fault("driver killed", "the same command; leases expire", _find_driver, _end_driver(signal.SIGKILL)),
        Fault("driver stopped", "the same command", _find_driver, _end_driver(signal.SIGTERM)),
        Fault("second driver", "leases: each trial is run once", _find_driver, _second_driver),
        Fault("node lost", "the trial starts on another node", _find_node, _lose_node),
        Fault("spot notice", "a checkpoint, then another node", _find_node, _warn_node),
        Fault("checkpoint truncated", "the one before it", _newest_checkpoint, _spoil_checkpoint(_truncate)),
        Fault(
            "checkpoint deleted",
            "the one before it",
            _newest_checkpoint,
            _spoil_checkpoint(lambda scene, path: scene.store.files.remove(path)),
        ),
        Fault("bit flipped", "refused on read, rebuilt by --repair", _find_parent, _flip_bit),
        Fault("storage errors", "retries with growing pauses", _find_storage, _upset_storage),
    )
}
