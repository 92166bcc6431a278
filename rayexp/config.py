"""Settings as frozen values: their base class, the settings of a run, and the wording of a refusal."""

import importlib
import json
import math
import pkgutil
import re
from collections.abc import Collection, Iterable
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from rayexp.errors import not_among
from rayexp.formatting import one_line, shortened

#: Below 2^63, so that a quotient of two is a float and a column of results can hold each.
Count = Annotated[int, Field(ge=1, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Value(BaseModel):
    """A frozen setting: no unknown fields, no coercion (a number in quotes is refused), no NaN.

    kinds: the ``kind`` of every subclass that has one. pydantic puts the kind of a union's member into the location of
    an error, where it is not part of the field's name. fields_added_later: settings that were added after stages had
    been stored. At its default such a setting is not part of an id, so that older artifacts are found again; the
    default has to mean what was done before, and can never change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    kinds: ClassVar[set[str]] = set()
    fields_added_later: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: Any) -> None:
        if name := kind_of(cls):
            Value.kinds.add(name)

    @property
    def defaults_added_later(self) -> dict[str, Any]:
        """All of ``fields_added_later`` that are at their defaults, here and in the values that this one holds, in the
        form that pydantic excludes fields in."""
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in self.fields_added_later and value == field.default:
                found[name] = True
            elif inside := _defaults_inside(value):
                found[name] = inside
        return found


def _defaults_inside(value: Any) -> dict[Any, Any]:
    if isinstance(value, Value):
        return value.defaults_added_later
    parts = enumerate(value) if isinstance(value, tuple) else ()
    return {i: inside for i, part in parts if (inside := _defaults_inside(part))}


T = TypeVar("T", bound=Value)


def kind_of(value: type[Value]) -> str:
    """Return the ``kind`` of a class; empty for one that is only a base of others."""
    field = value.model_fields.get("kind")
    return field.default if field and isinstance(field.default, str) else ""


def kinds_in(package: Iterable[str], name: str, base: type[T]) -> dict[str, type[T]]:
    """Return the subclasses of ``base`` that have a ``kind``, by kind, from all modules of a package, so that no list
    has to name them. ``package`` and ``name`` are its ``__path__`` and ``__name__``."""
    found: dict[str, type[T]] = {}
    for module in sorted(each.name for each in pkgutil.iter_modules(package)):
        for value in vars(importlib.import_module(f"{name}.{module}")).values():
            if not (isinstance(value, type) and issubclass(value, base)):
                continue
            kind = kind_of(value)
            if kind and found.setdefault(kind, value) is not value:
                raise TypeError(f"{value.__module__} defines the kind {kind!r}, as does {found[kind].__module__}")
    return found


def one_of(kinds: Collection[type[Value]]) -> Any:
    """Return the type of a field that holds a value of any of these classes, told apart by ``kind``."""
    return Annotated[Union[tuple(kinds)], Field(discriminator="kind")]  # noqa: UP007


def name_in(registry: Iterable[str]) -> AfterValidator:
    """Return a validator that accepts only the names in ``registry``."""

    def check(value: str, info: ValidationInfo) -> str:
        if value not in registry:
            raise ValueError(not_among(str(info.field_name), value, registry))
        return value

    return AfterValidator(check)


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no blanks. Raises TypeError or ValueError if it has none."""
    return json.dumps(_canonical(value, "value"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_record(text: str | bytes) -> dict[str, Any] | None:
    """Return the object in an untrusted JSON text; None if the text is torn, is not an object, or is nested too
    deeply."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _canonical(value: Any, where: str) -> Any:
    match value:
        case None | bool() | str():
            return value
        case int() | float() if type(value) in (int, float):
            if not math.isfinite(value):
                raise ValueError(f"{where}={value} should be a finite number")
            return value + 0  # -0.0 and 0.0 are one number
        case list() | tuple():
            return [_canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
        case dict() if all(isinstance(name, str) for name in value):
            return {name: _canonical(item, f"{where}.{name}") for name, item in value.items()}
    raise TypeError(
        f"{where} is a {type(value).__name__}, which JSON does not have; give a text, number, list or dict of them"
    )


#: Nats by which sampler and learner may differ in a token's log-probability. On CPUs, over some 40,000 tokens of tiny
#: decoders each, vLLM differed by up to 2e-5 in fp32 and 0.45 in bf16 (it keeps activations in bf16, autocast in fp32);
#: weights that did not arrive differ by several nats.
MISMATCH_LIMITS = {"fp32": 0.02, "bf16": 1.0}


class RunConfig(Value):
    """Settings of a run. None changes a result by more than rounding, and none is part of an id."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    store: str = "runs"
    """Folder or fsspec URL for artifacts and results; every machine has to reach it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of training and sampling; auto takes GPUs if the cluster has any."""
    train_workers: Count = 1
    """Data-parallel ranks of pretraining and SFT."""
    sharding: Literal["none", "full", "auto"] = "auto"
    """full: split weights, gradients and moments among the training ranks (FSDP2), for decoders that do not fit on one
    device. none: every rank holds all of them. auto: full only where none would not fit."""
    learner_workers: Count = 1
    """Ranks of a GRPO learner. Several divide weights, gradients and moments among them (FSDP2), and the groups of a
    step, for decoders that do not fit on one device."""
    rollout_workers: Count = 1
    """Sampling actors of a GRPO stage."""
    tensor_parallel: Count = 1
    """Ranks that a vLLM engine divides every weight among, for decoders that do not fit on one GPU. All are on the node
    of the engine's actor, with a GPU each."""
    in_process_flop: float = Field(default=1e13, ge=0)
    """Estimated FLOP up to which a single rank on a CPU pretrains and fine-tunes a chain in the trial's own process,
    because a worker group takes longer to start than a small decoder takes to train. 0: never."""
    train_cpus: float = Field(default=1.0, gt=0)
    """Cores and threads of a training rank. Another number of threads or ranks rounds differently."""
    micro_batch_tokens: Count | None = None
    """Tokens, with padding and prompts, whose gradient a training rank or a learner computes at once; by default those
    of the whole step. Lower it if the activations of a step do not fit; the sum is the same up to rounding."""
    gradient_checkpointing: bool = False
    """Keep the activations of one layer at a time and compute the others again for the gradient: a third more work, for
    decoders that would not fit otherwise."""
    learner_cpus: float = Field(default=0.5, gt=0)
    """Cores of a rank of a GRPO learner. Learner and sampler take turns, so the two together keep one core busy."""
    rollout_cpus: float = Field(default=0.5, gt=0)
    """Cores of a sampling actor."""
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """Size of a vLLM engine's KV cache in GiB; by default room for 256 completions of the longest prompts, and at least
    an eighth."""
    train_gpus: float | None = Field(default=None, ge=0)
    """GPUs of a training rank; by default 1 if the cluster has any."""
    learner_gpus: float | None = Field(default=None, ge=0)
    """GPUs of a rank of a GRPO learner; by default 0.5 if the cluster has any."""
    rollout_gpus: float | None = Field(default=None, ge=0)
    """GPUs of a sampling actor; by default 0.5 if the cluster has any, or one for each rank of its engine."""
    max_concurrent: int = Field(default=0, ge=0)
    """Trials at once; 0: as many as fit on the cluster."""
    checkpoint_every_s: float = Field(default=60.0, ge=0)
    """Longest time between two checkpoints of a stage in seconds, rounded up to the next logged step. The first comes
    after 5 seconds; the time doubles from one to the next, and is at least twenty times what writing one took."""
    weight_transfer: Literal["object_store", "nccl", "cuda_ipc", "gloo"] = "object_store"
    """Route of weights to sampling actors. For decoders above a gigabyte: cuda_ipc where they share the learner's GPU,
    nccl where they have others (neither has been run on a GPU yet). gloo is for CPUs and the sampler torch."""
    keep_rollouts: bool = False
    """Write every completion to the stage's rollouts.parquet."""
    parity_every_syncs: Count = 20
    """Weight syncs between two checks that sampler and learner agree on fixed tokens."""
    max_logprob_mismatch: float | None = Field(default=None, gt=0)
    """Largest difference between sampler and learner in a token's log-probability, in nats; a larger one stops the
    stage. By default 0.02 in fp32 and 1 in bf16."""
    timeout_s: float = Field(default=600.0, gt=0, le=1e9)
    """Longest wait for one answer of an actor, in seconds."""
    worker_failures: int = Field(default=2, ge=0)
    """Restarts of a trial, or of its learner, after failures that may be transient."""

    lease: str = ""
    """Lease under which a trial writes its stages; set by the sweep that starts it (rayexp.store.leases)."""
    argv: tuple[str, ...] = ()
    """Command line of that sweep without secrets, for the record (rayexp.store.provenance)."""

    def mismatch_limit(self, precision: str) -> float:
        """Return ``max_logprob_mismatch``, or the default for a precision."""
        return self.max_logprob_mismatch or MISMATCH_LIMITS[precision]

    def resolve(self, num_gpus: float) -> "RunConfig":
        """Return these settings with all defaults filled in for a cluster that has, or may grow to, that many GPUs."""
        use = self.device == "cuda" or (self.device == "auto" and num_gpus > 0)
        of_engine = 0.5 if self.tensor_parallel == 1 else float(self.tensor_parallel)
        shares = {"train_gpus": 1.0, "learner_gpus": 0.5, "rollout_gpus": of_engine}
        chosen = {name: share if use else 0.0 for name, share in shares.items() if getattr(self, name) is None}
        return self.model_copy(update={**chosen, "device": "cuda" if use else "cpu"})


#: Names that pydantic gives to members of a union in the location of an error.
_MEMBER = re.compile(r"int|float|str|bool|literal\[.*\]").fullmatch
_QUOTED = re.compile(r"'([^']*)'")


def explain(error: ValidationError) -> str:
    """Return the first refusal of a ValidationError as one sentence: field, value, and what it should be."""
    first, *others = error.errors(include_url=False)
    # Where a field may be of several types, each of them refused it.
    of_field = [_predicate(other).lstrip(": ") for other in others if _field(other) == _field(first)]
    return one_line(", or ".join([_explained(first), *of_field]))


def _field(error: Any) -> str:
    """Return the dotted name of what an error is about, without the members of unions that pydantic tried."""
    parts = (str(part) for part in error["loc"])
    return ".".join(part for part in parts if part not in Value.kinds and not _MEMBER(part)) or "setting"


def _predicate(error: Any) -> str:
    """Return what pydantic says of a value, as it goes on after the value."""
    said = error["msg"]
    return f" {said.removeprefix('Input ')}" if said.startswith("Input ") else f": {said[:1].lower()}{said[1:]}"


def _explained(first: Any) -> str:
    field = _field(first)
    match first["type"]:
        case "value_error":
            return str(first.get("ctx", {}).get("error", first["msg"]))
        case "extra_forbidden":
            return f"{field} is not a setting; remove it, or correct its name"
        case "missing":
            return f"{field} is missing; it has no default"
        case "union_tag_invalid":
            return not_among(f"{field}.kind", first["ctx"]["tag"], _QUOTED.findall(first["ctx"]["expected_tags"]))
        case "union_tag_not_found":
            return f"{field}.kind is missing; it has no default"
        case "literal_error" if isinstance(first["input"], str):
            return not_among(field, first["input"], _QUOTED.findall(first["ctx"]["expected"]))
    return f"{field}={shortened(first['input'])}{_predicate(first)}"
