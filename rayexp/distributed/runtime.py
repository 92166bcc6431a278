"""The connection to Ray, made the same way everywhere: cluster, authentication, and Ray's settings."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.worker import global_worker
from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY, JOB_NAME_METADATA_KEY, JobInfoStorageClient
from ray.exceptions import RayError
from ray.job_config import JobConfig

from rayexp import host
from rayexp.distributed import access, surroundings
from rayexp.errors import RefusedError
from rayexp.formatting import one_line

log = logging.getLogger(__name__)

#: Seconds in which Ray has to answer about a job.
ANSWER_S = 10
#: Variables for the driver and every process that it starts, unless they are set already.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # seconds a report may wait; Ray's default of 2 holds small stages up
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C and SIGTERM end a sweep in one way, the job's
    "RAY_TRAIN_V2_ENABLED": "1",  # on nodes that have it switched off, too
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's old reporter can be silenced
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # its warnings, such as of how vLLM binds memory, are for those who build torch
}


def connect(cpus: int | None = None, metadata: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Connect to the cluster of the job or of RAY_ADDRESS, else start a local one with its dashboard on loopback. A
    process that is connected keeps its cluster.

    Return the address of the ``dashboard``, the file of the ``token``, and the cluster's ``resources``. Only this
    account can use a local cluster, and only a local cluster has a ``token`` here: inside a job Ray has set up the
    authentication already. ``cpus`` is for a local cluster only. ``metadata`` is shown with the job, in the dashboard
    and by ``/api/jobs/``; its ``study`` becomes the job's name.
    """
    surroundings.require_train()
    about = {JOB_NAME_METADATA_KEY: metadata["study"], **metadata} if metadata else {}
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "NO_COLOR" in os.environ or not (sys.stdout.isatty() and sys.stderr.isatty()):
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # Ray colours the names of workers in a file as well
    # Tune looks for its own result files, which are switched off, and warns that there are none.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    # Ray refuses a variable that the job sets as well, even to the same value; the job's value holds for all workers.
    of_the_job = _submission().get("runtime_env", {})
    set_there = of_the_job.get("env_vars", {})
    runtime_env: dict[str, Any] = {
        "env_vars": {name: os.environ[name] for name in ENVIRONMENT if name not in set_there}
    }
    if "worker_process_setup_hook" not in of_the_job:
        runtime_env["worker_process_setup_hook"] = _worker_setup()
    if ray.is_initialized():  # by a notebook, or by an earlier run of this process
        node = global_worker.node
        return {"dashboard": node and node.webui_url, "token": "", "resources": ray.cluster_resources()}
    if (address := os.environ.get("RAY_ADDRESS", "local") or "local") != "local":
        surroundings.require_cluster(address)
        try:
            context = ray.init(
                runtime_env=runtime_env, job_config=JobConfig(metadata=dict(about)), logging_level=logging.WARNING
            )
        except (RuntimeError, OSError, RayError) as error:  # the cluster has other versions, or requires another token
            why = one_line(" ".join(str(error).split()), 400)
            raise RefusedError(
                f"RAY_ADDRESS={address!r} names a cluster that cannot be used from here: {why}"
            ) from error
        _change_submission(lambda known: {**about, **known})  # metadata of the submission is kept
        token = ""
    else:
        surroundings.require_folder()
        surroundings.use_plain_path()
        token = access.restrict()
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        context = ray.init(
            address="local",
            num_cpus=host.cores() if cpus is None else cpus,
            num_gpus=host.gpus(),  # None: Ray looks for GPUs of other makes
            _memory=host.for_work(),
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            runtime_env=runtime_env,
            job_config=JobConfig(metadata=dict(about)),
            logging_level=logging.WARNING,
        )
    return {"dashboard": context.dashboard_url, "token": token, "resources": ray.cluster_resources()}


def _submission() -> dict[str, Any]:
    """Return the submission of the job that this process drives, as ``ray job submit`` has it; empty without one."""
    return json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))


def describe_job(metadata: Mapping[str, str]) -> None:
    """Add to the metadata of the job that this process drives. The new entries replace those with the same names, and
    come first, because the dashboard shows the beginning.

    Do nothing if the job was not submitted, because Ray takes the metadata of any other driver only when it connects.
    Warn if Ray does not answer.
    """
    try:
        _change_submission(lambda known: {**metadata, **known, **metadata})
    except (TimeoutError, RayError, OSError, RuntimeError) as error:
        log.warning("the job's metadata could not be changed: %s", one_line(f"{type(error).__name__} {error}"))


def submitted() -> bool:
    """Return whether this process drives a submitted job."""
    return JOB_ID_METADATA_KEY in _submission().get("metadata", {})


def _change_submission(change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Change the metadata of a submitted job. Ray takes it from the submission and nowhere else."""
    if not submitted():
        return
    name = _submission()["metadata"][JOB_ID_METADATA_KEY]
    jobs = JobInfoStorageClient(global_worker.gcs_client)  # pyright: ignore[reportAttributeAccessIssue]

    async def put() -> None:
        if job := await jobs.get_info(name, ANSWER_S):
            job.metadata = change(job.metadata or {})
            await jobs.put_info(name, job, timeout=ANSWER_S)

    asyncio.run(put())


def _worker_setup() -> Callable[[], None]:
    """Return the function that every worker runs first. It gives Ray's State API the worker's own cluster; otherwise
    the API looks for one.

    Ray Train finds its controller through that API. If the API finds another cluster on the machine, or the address
    file of a cluster that is gone, Ray Train does not find the controller, and releases the placement group of its run.
    """

    def name_cluster() -> None:  # nested, so that Ray pickles it whole: a node may lack this package
        import os

        import ray

        os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)

    return name_cluster
