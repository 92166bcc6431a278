"""One trial in its own process: run its stages, report their progress, and tell permanent failures from others."""

import platform
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from rayexp import logs
from rayexp.config import RunConfig, canonical_json, explain
from rayexp.errors import PermanentError, StageError, sentence
from rayexp.stages import RolloutStage, parse_stage
from rayexp.store.artifacts import FAILURE, Store
from rayexp.store.filesystem import StoreError
from rayexp.store.leases import LeaseLostError, NotSharedError
from rayexp.sweep import preflight
from rayexp.sweep.plan import Trial

Report = Callable[[dict[str, Any]], None]

SECONDS_BETWEEN_REPORTS = 2.0


def trial_config(trial: Trial, run_config: RunConfig) -> dict[str, Any]:
    """Return the configuration of a trial's process, as values that JSON can hold."""
    return {
        "trial": trial.id,
        "name": trial.name,
        "pool": trial.pool,
        "in_process": preflight.in_process(trial, run_config),
        "stages": [stage.model_dump_json() for stage in trial.stages],
        "run_config": run_config.model_dump_json(),
    }


def run_stages(config: dict[str, Any], report: Report, train_callbacks: Callable[[], Sequence[Any]]) -> None:
    """Run one trial. Permanent errors are reported as a result, so that Tune does not retry; transient errors are
    raised, so that it does. ``train_callbacks`` makes the callbacks by which a Ray Train run reports its progress."""
    logs.configure_worker_logging()
    run_config = RunConfig.model_validate_json(config["run_config"])
    try:
        stages = [parse_stage(text) for text in config["stages"]]
    except ValidationError as error:  # a user's module that this machine lacks, or has another version of
        failure = PermanentError(f"{platform.node()} cannot read its stage: {explain(error)}")
        _record_failure(failure, config["trial"], config["name"], run_config)
        return report({"step": 0, "failed": sentence(failure)})
    try:
        from rayexp.execution import rollout_loop, supervised  # torch and transformers, which the driver does not need

        if config["in_process"]:
            supervised.run_in_process(stages, run_config, _now_and_then(report))
        elif config["pool"] == "train":
            supervised.run(stages, run_config, callbacks=train_callbacks())
        else:
            first, *measurements = stages
            assert isinstance(first, RolloutStage)
            rollout_loop.run(first, measurements, run_config, _now_and_then(report))
    except NotSharedError as error:
        report({"step": 0, "not_shared": sentence(error)})
    except LeaseLostError as error:
        report({"step": 0, "lease_lost": sentence(error)})
    except PermanentError as error:
        _record_failure(error, config["trial"], stages[0].label, run_config)
        report({"step": 0, "failed": sentence(error)})
    except Exception as error:
        _record_failure(error, config["trial"], stages[0].label, run_config)
        raise StageError(sentence(error)) from error
    else:
        with suppress(StoreError):
            Store.of(run_config).files.remove_file(_failure_file(config["trial"]))  # of an attempt before this one


def _record_failure(error: Exception, trial: str, label: str, run_config: RunConfig) -> None:
    """Write the traceback into the store, for readers to whom the sentence does not say enough."""
    story = {"traceback": "".join(traceback.format_exception(error)), "time": time.time()}
    record = {"label": label, "error": sentence(error), **story}
    with suppress(StoreError):  # which may be what failed
        Store.of(run_config).files.write(_failure_file(trial), canonical_json(record).encode())


def _failure_file(trial: str) -> str:
    return f"work/{trial}/{FAILURE}"


def _now_and_then(report: Report) -> Report:
    """Return a function that calls ``report`` at most every two seconds, and at the last step. Each call waits for the
    driver, and a GRPO step can be faster than that."""
    last = 0.0

    def throttled(metrics: dict[str, Any]) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_REPORTS or metrics["step"] == metrics["steps"]:
            report(metrics)
            last = time.monotonic()

    return throttled
