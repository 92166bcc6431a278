"""Every setting of every stage, as frozen values.

A stage holds its whole lineage: ``GRPO(init=SFT(init=Pretrain(...)))``. Its ``id`` is a hash of that value and of
nothing else, so two experiments that share a pretraining run share it without being told. How a stage is run (machines,
paths, workers) is a ``RunConfig``, which no stage contains and which therefore cannot enter an id.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from rayexp.errors import not_among
from rayexp.tasks.strings import World

#: What vLLM's attention kernels serve on CPU and GPU alike.
HEAD_SIZES = (32, 64, 128)

#: Below 2^63, so that a quotient of two is a float and a column of results can hold each.
Count = Annotated[int, Field(ge=1, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Value(BaseModel):
    """A frozen setting: no unknown fields, no coercion (a number in quotes is refused), no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Decoder(Value):
    """Shape of a Llama-style decoder: RoPE, RMSNorm, SwiGLU, untied embeddings."""

    layers: Count
    width: Count
    ff_width: Count
    heads: Count
    kv_heads: Count
    context_tokens: Count = 64

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @model_validator(mode="after")
    def _shape(self) -> Self:
        if self.width % self.heads or self.head_size not in HEAD_SIZES:
            raise ValueError(
                f"decoder.width / decoder.heads is {self.width} / {self.heads} = {self.width / self.heads:g}; allowed "
                f"head sizes, which vLLM can serve: {', '.join(map(str, HEAD_SIZES))}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"decoder.kv_heads is {self.kv_heads}; allowed: divisors of heads = {self.heads}")
        return self

    def parameters(self, vocabulary_size: int) -> int:
        """Trainable numbers, embeddings and output head included."""
        attention = self.width * self.head_size * 2 * (self.heads + self.kv_heads)
        block = attention + 3 * self.width * self.ff_width + 2 * self.width
        return self.layers * block + 2 * vocabulary_size * self.width + self.width


class AdamW(Value):
    """AdamW with linear warm-up, then a cosine to a tenth or a constant rate; gradients clipped by global norm.

    epsilon: what the root of the second moment is increased by. Adam divides any gradient by its own size, rounding
    noise of 1e-9 included; where a gradient may vanish, as in GRPO without a hit, a larger epsilon keeps noise small.
    precision: ``fp32``, or ``bf16`` for autocast over fp32 weights. GRPO's reference is computed as its policy is, so
    that equal weights have a KL of zero; Q is measured in fp32 in either case.
    """

    learning_rate: float = Field(gt=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, ge=1e-30, le=1e-2)  # in fp32 much less is 0, and 0 / 0 no update
    clip_norm: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"


class Stage(Value):
    """One step of a chain. Subclasses add ``kind`` (a literal) and, but for pretraining, ``init`` (the parent)."""

    #: Version of what the stage's code promises; raise it when the same settings would give another result.
    contract: ClassVar[int] = 1
    #: Settings that came after stages had been stored. At its default such a setting is no part of the id, so that what
    #: was made without it is found again; the default has to mean what was done before, and can never change.
    added: ClassVar[frozenset[str]] = frozenset()

    @cached_property
    def id(self) -> str:
        """``kind-`` and 16 hex digits of the SHA-256 of the canonical value, parents included."""
        as_before = {name for name in self.added if getattr(self, name) == type(self).model_fields[name].default}
        fields: dict[str, Any] = {"contract": self.contract, **self.model_dump(exclude={"init", *as_before})}
        if self.parent:
            fields["init"] = self.parent.id
        return f"{fields['kind']}-{hashlib.sha256(canonical_json(fields).encode()).hexdigest()[:16]}"

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed, which are not checked again; it has an id of its own."""
        copy = super().model_copy(update=update, deep=deep)
        vars(copy).pop("id", None)  # pyright: ignore[reportAttributeAccessIssue]
        return copy

    @property
    def parent(self) -> "Stage | None":
        return getattr(self, "init", None)

    @property
    def lineage(self) -> tuple["Stage", ...]:
        """From pretraining to this stage."""
        return (*(self.parent.lineage if self.parent else ()), self)

    @property
    def root(self) -> "Pretrain":
        """The pretraining run that everything in the lineage comes from."""
        root = self.lineage[0]
        assert isinstance(root, Pretrain)
        return root

    @property
    def label(self) -> str:
        """For people: ``composition-r0.01-s0/pretrain/sft/grpo-ood-b0.1``. Not unique; the id is."""
        world, root = self.root.world, self.root
        variant = [part for part in (world.graph, world.traversal, world.samples) if part not in _DEFAULT_WORLD]
        name = "-".join([world.axis, *variant, f"r{number(root.ood_ratio)}", f"s{root.seed}"])
        return "/".join([name, *(stage.short_label for stage in self.lineage)])

    @property
    def short_label(self) -> str:
        return str(getattr(self, "kind", ""))


_DEFAULT_WORLD = ("hidden", "uniform", "answer")


class Pretrain(Stage):
    """Next-token training from scratch on a mixture of ID and OOD samples, at a fixed total budget."""

    contract: ClassVar[int] = 2  # since then bf16 on CPUs has another attention
    kind: Literal["pretrain"] = "pretrain"
    world: World
    decoder: Decoder
    ood_ratio: float = Field(ge=0, le=0.5)
    samples: Count
    batch_samples: Count
    optimiser: AdamW
    seed: Seed

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.world.max_tokens > self.decoder.context_tokens:
            raise ValueError(
                f"decoder.context_tokens is {self.decoder.context_tokens}; allowed: at least "
                f"{self.world.max_tokens}, the longest sample of the axis {self.world.axis}"
            )
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps; the last batch may be smaller."""
        return math.ceil(self.samples / self.batch_samples)


class SFT(Stage):
    """Fine-tuning on ID samples only, with the loss on the completion."""

    contract: ClassVar[int] = 2  # as of pretraining
    kind: Literal["sft"] = "sft"
    init: Pretrain
    samples: Count = 2_000
    epochs: Count = 2
    batch_samples: Count = 64
    optimiser: AdamW
    seed: Seed

    @property
    def steps(self) -> int:
        return math.ceil(self.samples * self.epochs / self.batch_samples)


class GRPO(Stage):
    """Group relative policy optimisation with a binary verifiable reward. The reference policy is ``init``.

    prompts: cells that prompts are drawn from. kl_beta: weight of the KL to the reference (required: a hidden default
    is how other systems lose it). kl_estimator and kl_in: see ``learning.objectives``. advantage: ``group_std`` (GRPO)
    or ``mean_only`` (Dr. GRPO). loss_reduction: ``sequence_mean`` (GRPO) or ``token_sum`` (Dr. GRPO). updates: passes
    over each batch of rollouts; at 1 the update is exactly on-policy. staleness: 1 draws the rollouts of the next step
    while the learner works, from weights that lack its last update; the ratio in the loss then refers to the
    probabilities that the sampler recorded.
    """

    contract: ClassVar[int] = 4  # since then grpo/clipped counts the tokens that the clip cuts, over all updates
    added: ClassVar[frozenset[str]] = frozenset({"staleness"})
    kind: Literal["grpo"] = "grpo"
    init: "Annotated[Pretrain | SFT | GRPO, Field(discriminator='kind')]"
    prompts: Literal["id", "ood", "probe"]
    prompt_count: Count = 1_000
    steps: Count = 60
    prompts_per_step: Count = 64
    group_size: int = Field(default=8, ge=2, le=1024)
    kl_beta: float = Field(ge=0)
    kl_estimator: Literal["exact", "k1", "k2", "k3"] = "exact"
    kl_in: Literal["loss", "reward"] = "loss"
    advantage: Literal["group_std", "mean_only"] = "group_std"
    loss_reduction: Literal["sequence_mean", "token_sum"] = "sequence_mean"
    clip_ratio: float = Field(default=0.2, gt=0, lt=1)
    updates: Count = 1
    staleness: int = Field(default=0, ge=0, le=1)
    sampler: Literal["vllm", "torch"] = "vllm"
    optimiser: AdamW
    seed: Seed

    @model_validator(mode="after")
    def _prompts(self) -> Self:
        if not self.root.world.cells.cells(self.prompts):
            raise ValueError(f"prompts is {self.prompts!r}; allowed: a role that axis {self.root.world.axis} has")
        return self

    @property
    def short_label(self) -> str:
        return f"grpo-{self.prompts}-b{number(self.kl_beta)}" + ("-stale" if self.staleness else "")


class Evaluate(Stage):
    """Exact (and for traces also sampled) measurement of one stage, on every ID, OOD and probe cell.

    The test prompts depend on nothing but the axis, so all stages of a study answer the same ones. seed: of the
    completions sampled for traces.
    """

    contract: ClassVar[int] = 3  # since then samples are drawn as GRPO's are, equal beginnings read once
    kind: Literal["evaluate"] = "evaluate"
    init: Annotated[Pretrain | SFT | GRPO, Field(discriminator="kind")]
    prompts_per_cell: Count = 200
    sampled_completions: Count = 16
    seed: Seed = 0


GRPO.model_rebuild()
AnyStage = Annotated[Pretrain | SFT | GRPO | Evaluate, Field(discriminator="kind")]
_ANY_STAGE: TypeAdapter[Stage] = TypeAdapter(AnyStage)


def parse_stage(text: str | bytes) -> Stage:
    """A stage from its JSON. Raises pydantic's ValidationError on anything that is not exactly a stage."""
    return _ANY_STAGE.validate_json(text)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks. Raises TypeError or ValueError where there is none."""
    return json.dumps(_canonical(value, "value"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(value: Any, where: str) -> Any:
    match value:
        case None | bool() | str():
            return value
        case int() | float() if type(value) in (int, float):
            if not math.isfinite(value):
                raise ValueError(f"{where} is {value}, which has no canonical JSON")
            return value + 0  # -0.0 and 0.0 are one number
        case list() | tuple():
            return [_canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
        case dict() if all(isinstance(name, str) for name in value):
            return {name: _canonical(item, f"{where}.{name}") for name, item in value.items()}
    raise TypeError(f"{where} is a {type(value).__name__}, which has no canonical JSON")


#: Nats by which sampler and learner may differ in a token's log-probability. On CPUs, over some 40,000 tokens of tiny
#: decoders each, vLLM differed by up to 2e-5 in fp32 and 0.45 in bf16 (it keeps activations in bf16, autocast in fp32);
#: weights that did not arrive differ by several nats.
MISMATCH_LIMITS = {"fp32": 0.02, "bf16": 1.0}


class RunConfig(Value):
    """The way stages are run. Nothing here may change a result by more than rounding, and nothing is part of an id."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    store: str = "runs"
    """Folder or fsspec URL for artifacts and results, which every machine reaches."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs where the cluster has any."""
    train_workers: Count = 1
    """Data-parallel ranks of pretraining and SFT."""
    rollout_workers: Count = 1
    """Sampling actors of a GRPO stage."""
    in_process_flop: float = Field(default=1e13, ge=0)
    """Estimated FLOP up to which a chain is pretrained and fine-tuned in its trial's own process, where one rank on a
    CPU does it: a worker group takes longer to start than it takes to train a small decoder. 0: never."""
    train_cpus: float = Field(default=1.0, gt=0)
    """Cores, and threads, of a training rank. Another number of threads or of ranks rounds differently."""
    learner_cpus: float = Field(default=0.5, gt=0)
    """Cores of a GRPO learner. Learner and sampler take turns, so the two together keep one core busy."""
    rollout_cpus: float = Field(default=0.5, gt=0)
    """Cores of a sampling actor."""
    train_gpus: float | None = Field(default=None, ge=0)
    """GPUs of a training rank; by default 1 where the cluster has any."""
    learner_gpus: float | None = Field(default=None, ge=0)
    """GPUs of a GRPO learner; by default 0.5 where the cluster has any."""
    rollout_gpus: float | None = Field(default=None, ge=0)
    """GPUs of a sampling actor; by default 0.5 where the cluster has any."""
    max_concurrent: int = Field(default=0, ge=0)
    """Trials at once; 0: as many as the cluster holds."""
    checkpoint_every_s: float = Field(default=60.0, ge=0)
    """Longest time between two checkpoints of a stage in seconds, rounded up to the next point of its curves; the first
    comes after 5 seconds, each further one after twice as long."""
    weight_transfer: Literal["object_store", "nccl", "cuda_ipc", "gloo"] = "object_store"
    """How weights get to sampling actors. For decoders above a gigabyte: cuda_ipc where they share the learner's GPU,
    nccl where they have others (both untried: no GPU was at hand). gloo is for CPUs and the sampler torch."""
    keep_rollouts: bool = False
    """Write every completion to the stage's rollouts.parquet."""
    parity_every_syncs: Count = 20
    """Weight syncs between two checks that sampler and learner agree on fixed tokens."""
    max_logprob_mismatch: float | None = Field(default=None, gt=0)
    """Largest allowed difference between the two in a token's log-probability, in nats; by default 0.02 in fp32 and 1
    in bf16."""
    timeout_s: float = Field(default=600.0, gt=0, le=1e9)
    """Longest wait for any one answer of an actor, in seconds."""
    worker_failures: int = Field(default=2, ge=0)
    """How often a trial, or the learner within one, is started again after a failure that may pass."""

    lease: str = ""
    """What entitles a trial to write its stages; filled in by the sweep that starts it (rayexp.store.leases)."""
    argv: tuple[str, ...] = ()
    """The command line of the sweep that starts it, without secrets; for the record (rayexp.store.provenance)."""

    def mismatch_limit(self, precision: str) -> float:
        """Return ``max_logprob_mismatch``, by default that of a precision."""
        return self.max_logprob_mismatch or MISMATCH_LIMITS[precision]

    def resolve(self, num_gpus: float) -> "RunConfig":
        """With all defaults filled in for a cluster that has (or may grow to) ``gpus`` GPUs."""
        use = self.device == "cuda" or (self.device == "auto" and num_gpus > 0)
        shares = {"train_gpus": 1.0, "learner_gpus": 0.5, "rollout_gpus": 0.5}
        chosen = {name: share if use else 0.0 for name, share in shares.items() if getattr(self, name) is None}
        return self.model_copy(update={**chosen, "device": "cuda" if use else "cpu"})


def explain(error: ValidationError) -> str:
    """The first refusal of a ValidationError as one sentence: field, value, what is allowed."""
    return one_line(_explained(error.errors(include_url=False)[0]))


def number(value: float) -> str:
    """A setting for people: the shortest text that no other number has, so that two settings never look like one."""
    return str(value) if isinstance(value, int) else repr(float(value) + 0.0).removesuffix(".0")


def one_line(text: str, limit: int = 300) -> str:
    """Text, some of it perhaps from a stranger, as one printable line; of a long one the middle is left out."""
    line = text
    if not text.isprintable():
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return line if len(line) <= limit else f"{line[: limit // 2]} ... {line[5 - limit // 2 :]}"


def _explained(first: Any) -> str:
    kinds = {"pretrain", "sft", "grpo", "evaluate"}
    field = ".".join(str(part) for part in first["loc"] if part not in kinds) or "setting"
    match first["type"]:
        case "value_error":
            return str(first.get("ctx", {}).get("error", first["msg"]))
        case "extra_forbidden":
            return f"{field} is not a setting; it is written by mistake or misspelt"
        case "missing":
            return f"{field} is missing; it has no default"
        case "union_tag_invalid":
            context = first.get("ctx", {})
            return f"{field}.kind is {context.get('tag')!r}; allowed: {context.get('expected_tags')}"
        case "literal_error" if isinstance(first["input"], str):
            return not_among(field, first["input"], re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    allowed = first["msg"].removeprefix("Input should be ")
    return f"{field} is {_shortened(first['input'])}; allowed: {allowed[:1].lower() + allowed[1:]}"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
