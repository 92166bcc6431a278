"""Refuse, before anything starts, a plan that the cluster can never run."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product

from rich import filesize

from rayexp.config import RunConfig
from rayexp.distributed import autoscaling
from rayexp.errors import RefusedError
from rayexp.models.config import PretrainedDecoder
from rayexp.parts import own_parts
from rayexp.rewards.payment import RewardError, group_payments
from rayexp.sampling.vllm_sampler import require_vllm, served
from rayexp.stages import Evaluate, Pool, Pretrain, RolloutStage, memory
from rayexp.sweep import placement
from rayexp.sweep.placement import ON_GPU, Node, Nodes
from rayexp.sweep.plan import Plan, Trial
from rayexp.tasks import ROLES, Task
from rayexp.tasks.contract import ContractError, require_contract
from rayexp.terminal import Column, table

NODES_SHOWN = 3
#: Values of micro_batch_tokens to suggest where memory is short.
SMALLER_TOKENS = (65_536, 16_384, 4_096, 1_024)
TRIAL_NAMES: dict[Pool, str] = {"train": "training trial", "rollout": "rollout trial"}


class PreflightError(RefusedError):
    """A plan that needs something that the cluster can never have."""


Bundle = dict[str, float]


def bundles(trial: Trial, run_config: RunConfig) -> list[Bundle]:
    """Return the resources that each process of a trial asks Ray for, on one node each."""
    if trial.pool == "train":
        return [_bundle(run_config.train_cpus, run_config.train_gpus)] * run_config.train_workers
    parts = rollout_bundles(run_config)
    return [total(parts)] if on_one_node(run_config) else parts


def with_memory(trial: Trial, run_config: RunConfig) -> list[Bundle]:
    """Return ``bundles`` with the memory of each process, in bytes: of its node, and of a GPU."""
    held: dict[str, Bundle] = {}
    for stage in trial.stages:
        for name, process in memory.processes(stage, run_config).items():
            takes = {"memory": process.on_host(run_config.device), ON_GPU: process.on_gpu(run_config.device)}
            held[name] = _most([held.get(name, {}), takes])
    worker = held.pop("rollout worker", {})
    first = _most(held.values())
    if trial.pool == "train":
        return [part | first for part in bundles(trial, run_config)]
    first["memory"] += memory.PROCESS  # the trial itself, which calls learner and workers
    learners = run_config.learner_workers
    parts = [part | (first if i < learners else worker) for i, part in enumerate(rollout_bundles(run_config))]
    return [total(parts)] if on_one_node(run_config) else parts


def _most(bundles: Iterable[Bundle]) -> Bundle:
    """Return the most of everything that one of the bundles asks for."""
    found: Bundle = {}
    for bundle in bundles:
        found |= {name: max(found.get(name, 0.0), amount) for name, amount in bundle.items()}
    return found


def on_one_node(run_config: RunConfig) -> bool:
    """Return whether the actors of a rollout stage have to share a node, because they share the memory of a GPU."""
    return run_config.weight_transfer == "cuda_ipc"


def in_process(trial: Trial, run_config: RunConfig) -> bool:
    """Return whether a training trial is small enough to train in its own process."""
    alone = run_config.train_workers == 1 and not run_config.train_gpus
    return trial.pool == "train" and alone and trial.flops <= run_config.in_process_flop


def rollout_bundles(run_config: RunConfig) -> list[Bundle]:
    """Return the resources of each rank of the learner, then those of each rollout worker."""
    learner = _bundle(run_config.learner_cpus, run_config.learner_gpus)
    return [learner] * run_config.learner_workers + [
        _bundle(run_config.rollout_cpus, run_config.rollout_gpus)
    ] * run_config.rollout_workers


def total(parts: Sequence[Bundle]) -> Bundle:
    """Sum up bundles."""
    return {name: sum(part.get(name, 0.0) for part in parts) for name in sorted({n for part in parts for n in part})}


def _bundle(cpus: float, gpus: float | None) -> Bundle:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def require_software(plan: Plan, run_config: RunConfig) -> None:
    """Raise VLLMMissingError if a stage to run needs vLLM and it is not installed, PreflightError if
    ``weight_transfer`` does not work with the device."""
    transfer = run_config.weight_transfer
    if transfer in ("nccl", "cuda_ipc") and run_config.device != "cuda":
        raise PreflightError(f"weight_transfer={transfer!r} needs GPUs; use object_store or gloo")
    if transfer != "object_store" and run_config.learner_workers > 1:
        raise PreflightError(
            f"learner_workers={run_config.learner_workers} does not work with weight_transfer={transfer!r}, because no "
            "rank has the whole weights; use object_store"
        )
    if transfer == "gloo" and run_config.device == "cuda":
        raise PreflightError("weight_transfer='gloo' is for CPUs; use object_store, nccl or cuda_ipc")
    together = (run_config.learner_gpus or 0.0) + run_config.rollout_workers * (run_config.rollout_gpus or 0.0)
    if transfer == "cuda_ipc" and together > 1:
        raise PreflightError(
            f"weight_transfer='cuda_ipc' puts learner and rollout workers on one GPU, and they ask for {together:g}; "
            "lower learner_gpus or rollout_gpus"
        )
    with_vllm = any(isinstance(stage, RolloutStage) and stage.sampler == "vllm" for stage in plan.to_run)
    if transfer == "gloo" and with_vllm:  # each wants to be the only one that sets up torch.distributed
        raise PreflightError("weight_transfer='gloo' does not work with vLLM; use object_store")
    _require_tensor_parallel(plan, run_config)
    if with_vllm:
        require_vllm("cuda" if run_config.device == "cuda" else "cpu")
        _require_served(plan)


def _require_tensor_parallel(plan: Plan, run_config: RunConfig) -> None:
    """Raise PreflightError if an engine can't be divided among its ranks."""
    ranks, gpus = run_config.tensor_parallel, run_config.rollout_gpus or 0.0
    if ranks == 1:
        return
    if run_config.device == "cuda" and gpus < ranks:
        raise PreflightError(
            f"tensor_parallel={ranks} needs a GPU for each rank; set rollout_gpus={ranks} instead of {gpus:g}"
        )
    for stage in plan.to_run:
        if not isinstance(stage, RolloutStage):
            continue
        if stage.sampler != "vllm":
            raise PreflightError(
                f"tensor_parallel={ranks} needs the sampler vllm, but {stage.label} has sampler={stage.sampler!r}"
            )
        heads = getattr(stage.root.decoder, "heads", ranks)
        if heads % ranks:
            raise PreflightError(
                f"tensor_parallel={ranks} should be a divisor of {heads}, the number of heads of the decoder of "
                f"{stage.label}"
            )


def _require_served(plan: Plan) -> None:
    """Raise PreflightError if vLLM would have to sample from a pretrained model of an architecture that it lacks."""
    for stage in plan.to_run:
        decoder = stage.root.decoder
        if not isinstance(decoder, PretrainedDecoder) or not isinstance(stage, RolloutStage):
            continue
        if stage.sampler == "vllm" and decoder.architecture not in served():
            raise PreflightError(
                f"the model {decoder.source} is a {decoder.architecture}, which vLLM does not serve; use "
                "sampler='torch', or a model of another architecture"
            )


def require_own_parts(plan: Plan) -> None:
    """Raise PreflightError if a user's task or reward, or a task with questions from outside, breaks its contract on
    some samples. So the user learns of it before hours of training."""
    given = {
        stage.root.task.model_dump_json(): stage.root.task for stage in plan.to_run if stage.root.task.from_outside
    }
    try:
        for part in (*own_parts(plan.to_run), *given.values()):
            if isinstance(part, Task):
                require_contract(part)
        rollouts = [stage for stage in plan.to_run if isinstance(stage, RolloutStage) and any(own_parts([stage]))]
        for stage in {(stage.root.task, stage.rewards, stage.prompt_roles): stage for stage in rollouts}.values():
            _require_payments(stage)
    except (ContractError, RewardError) as error:
        raise PreflightError(str(error)) from error
    for stage in plan.to_run:
        task = stage.root.task
        if isinstance(stage, Evaluate) and task.from_outside:
            _require_test_samples(task, "prompts_per_cell", stage.prompts_per_cell, ROLES)
        if isinstance(stage, Pretrain) and stage.copied_items and task.from_outside:
            _require_test_samples(task, "copied_items", stage.copied_items, ("ood",))


def _require_test_samples(task: Task, field: str, asked: int, roles: Sequence[str]) -> None:
    for cell in (cell for role in roles for cell in task.cells(role)):
        if (there := task.test_samples(cell, asked)) < asked:
            raise PreflightError(
                f"{field}={asked} should be at most {there}, because the cell {cell} of {task.label} holds no more "
                "different questions out for tests"
            )


def _require_payments(stage: RolloutStage) -> None:
    """Raise RewardError if a reward can't judge a right completion, or a truncated one."""
    task = stage.root.task
    for cell in (cell for role in stage.prompt_roles for cell in task.cells(role)):
        prompt, solution = task.example("grpo", stage.seed, cell)
        gold = list(solution.completion)
        group_payments(task, stage.rewards, prompt, solution, (gold, gold[:-1], gold[:1]), seeds=range(3))


def require_resources(plan: Plan, run_config: RunConfig, nodes: Nodes | None = None) -> None:
    """Raise PreflightError, with a table of what is needed and what there is, if some trial does not fit the nodes that
    the cluster has or may start (``capacity``)."""
    for field in ("train_gpus", "learner_gpus", "rollout_gpus"):
        share = getattr(run_config, field) or 0.0
        if share > 1 and share != int(share):
            raise PreflightError(f"{field}={share:g} should be at most 1 or a whole number, because Ray splits one GPU")
    nodes = capacity() if nodes is None else nodes
    trials = _largest(plan, run_config).values()
    crowded = [trial for trial in trials if not placement.fit_together(with_memory(trial, run_config), nodes)]
    if not crowded:
        return
    parts = {name: part for trial in crowded for name, part in _parts(trial, run_config).items()}
    alone = [f"a {name}" for name, part in parts.items() if not placement.fits(part, nodes)]
    room = (
        f"no node has room for {' or '.join(alone)}" if alone else f"no room for a whole {TRIAL_NAMES[crowded[0].pool]}"
    )
    rows = [row for trial in trials for row in _needs(trial, run_config)] + _has(nodes)
    columns = [Column(""), *(Column(name, right=True) for name in ("CPU", "GPU", "memory"))]
    cells = [
        [name, f"{part.get('CPU', 0.0):g}", f"{part.get('GPU', 0.0):g}", _bytes(part["memory"])] for name, part in rows
    ]
    if run_config.device == "cuda":
        columns.append(Column(ON_GPU, right=True))
        cells = [[*cell, _bytes(part[ON_GPU])] for cell, (_, part) in zip(cells, rows, strict=True)]
    needs = f"the plan needs more than the cluster can ever have: {room}\n{table(columns, cells)}"
    raise PreflightError("\n".join([needs, *_smaller(plan, run_config, nodes)]))


def _smaller(plan: Plan, run_config: RunConfig, nodes: Nodes) -> list[str]:
    """Return a line with the smallest change of settings with which every trial fits; none if there is no such
    change."""
    kept = (run_config.gradient_checkpointing, run_config.micro_batch_tokens)
    for checkpointing, tokens in product((kept[0], True), (kept[1], *SMALLER_TOKENS)):
        smaller = run_config.model_copy(
            update={"gradient_checkpointing": checkpointing, "micro_batch_tokens": tokens, "sharding": "auto"}
        )
        trials = _largest(plan, smaller).values()
        if all(placement.fit_together(with_memory(trial, smaller), nodes) for trial in trials):
            options = ["--gradient-checkpointing"] * (checkpointing and not kept[0])
            options += [f"--micro-batch-tokens {tokens}"] * (tokens != kept[1])
            options += ["--sharding auto"] * (run_config.sharding != "auto")
            return [f"it fits with {' '.join(options)}"]
    return []


def _bytes(count: float) -> str:
    return filesize.decimal(int(count)) if math.isfinite(count) else "unknown"


def _largest(plan: Plan, run_config: RunConfig) -> dict[Pool, Trial]:
    """Return the trial of each kind that takes the most memory."""
    return _largest_as(plan, run_config.model_dump_json())


@lru_cache(maxsize=1)  # a sweep wants to know it three times, and of 100,000 stages it takes seconds
def _largest_as(plan: Plan, run_config_json: str) -> dict[Pool, Trial]:
    run_config = RunConfig.model_validate_json(run_config_json)
    found: dict[Pool, Trial] = {}
    taken: dict[Pool, float] = {}
    for trial in plan.trials:
        most = sum(part["memory"] for part in with_memory(trial, run_config))
        if most > taken.get(trial.pool, 0.0):
            found[trial.pool], taken[trial.pool] = trial, most
    return found


def _parts(trial: Trial, run_config: RunConfig) -> dict[str, Bundle]:
    """Return the parts that are placed as one, by name; of equal parts only one."""
    parts = with_memory(trial, run_config)
    if trial.pool == "train":
        return {"training rank": parts[0]}
    if on_one_node(run_config):
        return {"learner with its rollout workers": parts[0]}
    return {
        "learner" if run_config.learner_workers == 1 else "rank of a learner": parts[0],
        "rollout worker": parts[-1],
    }


def _needs(trial: Trial, run_config: RunConfig) -> list[tuple[str, Bundle]]:
    parts = [(f"  a {name}", part) for name, part in _parts(trial, run_config).items()]
    bundles = with_memory(trial, run_config)
    together = total(bundles) | {ON_GPU: _most(bundles)[ON_GPU]}
    return [(f"{TRIAL_NAMES[trial.pool]} needs", together), *parts]


def _has(nodes: Nodes) -> list[tuple[str, Bundle]]:
    """Return rows for the whole cluster and for its largest nodes."""
    largest = sorted(nodes, key=lambda node: node.size, reverse=True)[:NODES_SHOWN]
    each = [("  a node" if nodes[node] == 1 else f"  each of {nodes[node]} nodes", node.has) for node in largest]
    return [("cluster has", placement.total(nodes) | {ON_GPU: _most(node.has for node in nodes)[ON_GPU]}), *each]


def concurrency(plan: Plan, run_config: RunConfig, nodes: Nodes | None = None) -> int:
    """Return how many trials run at once: the setting, or the number of the largest kind that fits, but no more than
    the plan has."""
    if run_config.max_concurrent:
        return run_config.max_concurrent
    nodes = capacity() if nodes is None else nodes
    kinds = {pool: with_memory(trial, run_config) for pool, trial in _largest(plan, run_config).items()}
    fits = [placement.how_many(parts, nodes, len(plan.trials)) for parts in kinds.values()]
    return max(1, min(fits, default=1))


def capacity() -> Nodes:
    """Return the nodes of the cluster, and those that its autoscaler may start."""
    import ray  # seconds, which a mere plan does not have to wait

    there = placement.nodes_of(node["Resources"] for node in ray.nodes() if node["Alive"])
    may_be: Nodes = Counter()
    for resources, most in autoscaling.node_types(ray.get_runtime_context().gcs_address):
        kind = Node.of(resources)
        known = (node for node in there if math.isinf(kind.memory) and node.size == kind.size)
        may_be[next(known, kind)] += most  # a present node of the same size tells the memory of its kind
    return there | may_be
