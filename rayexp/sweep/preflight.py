"""Refuse a plan that the cluster can never run, before anything starts."""

from collections.abc import Sequence

from rayexp.errors import RefusedError
from rayexp.sampling.vllm_sampler import require_vllm
from rayexp.spec import GRPO, Execution
from rayexp.sweep.plan import Plan, Trial


class PreflightError(RefusedError):
    """The plan needs more than there can ever be."""


Bundle = dict[str, float]


def bundles(trial: Trial, execution: Execution) -> list[Bundle]:
    """What the processes of a trial ask Ray for, all together."""
    if trial.kind == "supervised":
        return [_bundle(execution.train_cpus, execution.train_gpus)] * execution.train_workers
    return grpo_bundles(execution)


def in_process(trial: Trial, execution: Execution) -> bool:
    """Whether a supervised trial is so small that it trains in its own process."""
    alone = execution.train_workers == 1 and not execution.train_gpus
    return trial.kind == "supervised" and alone and trial.flops <= execution.in_process_flop


def grpo_bundles(execution: Execution) -> list[Bundle]:
    """The learner, then the rollout workers."""
    learner = _bundle(execution.learner_cpus, execution.learner_gpus)
    return [learner] + [_bundle(execution.rollout_cpus, execution.rollout_gpus)] * execution.rollout_workers


def total(parts: Sequence[Bundle]) -> Bundle:
    """Sum of bundles."""
    return {name: sum(part.get(name, 0.0) for part in parts) for name in sorted({n for part in parts for n in part})}


def _bundle(cpus: float, gpus: float | None) -> Bundle:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def require_software(plan: Plan, execution: Execution) -> None:
    """Raise VLLMMissingError if a stage that is to run samples with vLLM and there is none, or PreflightError if
    weights are to go in a way that is not for the device."""
    transfer = execution.weight_transfer
    if transfer in ("nccl", "cuda_ipc") and execution.device != "cuda":
        raise PreflightError(f"weight_transfer is {transfer!r}; allowed without GPUs: object_store, gloo")
    if transfer == "gloo" and execution.device == "cuda":
        raise PreflightError("weight_transfer is 'gloo', which is for CPUs; allowed: object_store, nccl, cuda_ipc")
    with_vllm = any(isinstance(stage, GRPO) and stage.sampler == "vllm" for stage in plan.to_run)
    if transfer == "gloo" and with_vllm:  # each wants to be the only one that sets up torch.distributed
        raise PreflightError("weight_transfer is 'gloo'; allowed where vLLM samples: object_store, nccl, cuda_ipc")
    if with_vllm:
        require_vllm("cuda" if execution.device == "cuda" else "cpu")


def require_resources(plan: Plan, execution: Execution) -> None:
    """Raise PreflightError, with needs and has side by side, if some trial does not fit the cluster as it may grow."""
    has = capacity()
    needs = {trial.kind: total(bundles(trial, execution)) for trial in plan.trials}
    names = sorted({name for need in needs.values() for name in need})
    if all(need.get(name, 0.0) <= has.get(name, 0.0) + 1e-9 for need in needs.values() for name in names):
        return
    header = f"{'resource':<10}" + "".join(f"{kind + ' trial needs':>24}" for kind in needs) + f"{'cluster has':>14}"
    rows = [
        f"{name:<10}" + "".join(f"{need.get(name, 0.0):>24g}" for need in needs.values()) + f"{has.get(name, 0.0):>14g}"
        for name in names
    ]
    raise PreflightError("the plan needs more than the cluster can ever have:\n" + "\n".join([header, *rows]))


def concurrency(plan: Plan, execution: Execution, has: Bundle | None = None) -> int:
    """Trials at once: the setting, or as many of the largest kind as there is room for in ``has``, by default in what
    the cluster has or may grow to."""
    if execution.max_concurrent:
        return execution.max_concurrent
    has = capacity() if has is None else has
    fits = [
        int((has.get(name, 0.0) + 1e-9) // amount)
        for trial in {trial.kind: trial for trial in plan.trials}.values()
        for name, amount in total(bundles(trial, execution)).items()
        if amount
    ]
    return max(1, min(fits, default=1))


def capacity() -> Bundle:
    """What the cluster has, or may grow to if an autoscaler said how far."""
    import ray  # seconds, which a mere plan does not have to wait
    from ray._private.state import state as cluster_state

    has = dict(ray.cluster_resources())
    limits = cluster_state.get_max_resources_from_cluster_config() or {}
    return {name: max(has.get(name, 0.0), float(limits.get(name, 0.0))) for name in {*has, *limits}}
