"""A stage as a value: the base of every kind of stage.

A stage holds its whole lineage: ``GRPO(init=SFT(init=Pretrain(...)))``. Its ``id`` is a hash of that value and of
nothing else, so two experiments with the same pretraining share it without further settings. A ``RunConfig`` says how a
stage is run (machines, paths, workers). No stage contains one, so it cannot enter an id.

A kind of stage is two files: its value, a subclass of ``Stage`` in a module of this package, and its runner,
``rayexp/execution/<kind>.py``. docs/add-a-stage.md goes through one.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import ValidationInfo, model_validator

from rayexp.config import Value, canonical_json
from rayexp.models.config import AnyDecoder, PretrainedDecoder
from rayexp.parts import STORED
from rayexp.tasks import AnyTask, Task
from rayexp.tasks.text import TextTask
from rayexp.tasks.text.model_tokens import ModelTokens

if TYPE_CHECKING:
    ModelStage: TypeAlias = "Stage"


@dataclass(frozen=True)
class Metric:
    """A number that is logged at a step. name: ``stage/split/metric``, e.g. ``pretrain/ood/loss``."""

    name: str
    unit: str
    meaning: str

    @property
    def exported(self) -> str:
        """Its name in ``ray.util.metrics``."""
        return f"rayexp_{self.name.replace('/', '_')}"


#: Processes that run a stage. train: data-parallel ranks. rollout: a learner and its rollout workers. measure: the
#: process that made the measured model.
Pool = Literal["train", "rollout", "measure"]


class Stage(Value):
    """One step of a chain. Subclasses add ``kind`` (a literal), ``steps``, ``flops`` and are a ``RootStage`` or a
    ``ChildStage``.

    version: of the results; raise it if the same settings give another result than before. metrics: all that it logs.
    name: for people.
    """

    version: ClassVar[int] = 1
    pool: ClassVar[Pool]
    metrics: ClassVar[tuple[Metric, ...]] = ()
    name: ClassVar[str]
    kind: str

    @cached_property
    def id(self) -> str:
        """``kind-`` and 16 hex digits of the SHA-256 of the canonical value, parents included."""
        excluded = {**self.defaults_added_later, "init": True}
        fields: dict[str, Any] = {"version": self.version, **self.model_dump(exclude=excluded)}
        if self.parent:
            fields["init"] = self.parent.id
        return f"{self.kind}-{hashlib.sha256(canonical_json(fields).encode()).hexdigest()[:16]}"

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with some fields changed, and an id of its own. The changed fields are not validated."""
        copy = super().model_copy(update=update, deep=deep)
        vars(copy).pop("id", None)  # pyright: ignore[reportAttributeAccessIssue]
        return copy

    @property
    def parent(self) -> "Stage | None":
        return getattr(self, "init", None)

    @property
    def lineage(self) -> tuple["Stage", ...]:
        """All stages from the root to this one."""
        return (*(self.parent.lineage if self.parent else ()), self)

    @property
    def root(self) -> "RootStage":
        """The stage that the lineage starts from."""
        root = self.lineage[0]
        if not isinstance(root, RootStage):
            raise TypeError(f"{type(root).__name__} has no init, and is no root")
        return root

    @property
    def chain_seed(self) -> int:
        """The seed by which chains of a study differ: that of the first stage in the lineage with a seed."""
        return next((getattr(stage, "seed") for stage in self.lineage if hasattr(stage, "seed")), 0)  # noqa: B009

    @property
    def subject(self) -> "Stage":
        """The stage whose model this one is about: for a measurement its init, else itself."""
        return self.parent if self.pool == "measure" and self.parent else self

    @property
    def rows(self) -> int:
        """Rows of results that it writes; 0 for a stage that makes a model."""
        return 0

    @property
    def label(self) -> str:
        """For people: ``composition-r0.01-s0/pretrain/sft/grpo-ood-b0.1``. Not unique; the id is."""
        return "/".join([self.root.chain_label, *(stage.short_label for stage in self.lineage)])

    @property
    def short_label(self) -> str:
        return self.kind

    if TYPE_CHECKING:  # a field of some kinds, a property of others

        @property
        def steps(self) -> int:
            """Steps until it is done. ``step`` of its metrics counts them."""
            ...

    @property
    def schedule_steps(self) -> int:
        """Steps of its learning-rate schedule: more than ``steps`` if it stops before their end."""
        return self.steps

    @property
    def continues(self) -> bool:
        """True if it continues the steps and the optimiser of its ``init``."""
        return False

    @property
    def keeps_state(self) -> bool:
        """True if its artifact has all that another stage needs to continue it."""
        return False

    @property
    def trained_parameters(self) -> int:
        """Number of trained parameters. A checkpoint has each of them with its optimiser moments."""
        return self.root.parameters

    @property
    @abstractmethod
    def flops(self) -> float:
        """Estimated floating-point operations."""

    def flops_per_pass(self, samples: float) -> float:
        """Return the operations of a forward pass over ``samples`` whole samples: 2 for each parameter and token.
        Embeddings do not count, because they are look-ups. A backward pass costs 4 for each."""
        root = self.root
        embeddings = root.task.vocabulary.size * root.decoder.width
        return 2.0 * (root.parameters - embeddings) * root.task.max_tokens * samples


class ChildStage(Stage):
    """A stage that starts from the model of another one, which may be of any kind that makes a model.

    ``rayexp.stages`` fills in these kinds once all are known. A kind that may start from some of them only narrows the
    type of ``init``.
    """

    init: "ModelStage"


def task_to_fit(stage: Stage, info: ValidationInfo) -> Task | None:
    """Return the task that the settings of a stage have to fit, or None for a stored stage. Its settings did fit when
    it ran, and the parts of its task (a class, a file, a generator) may be missing where it is read."""
    task = stage.root.task
    return task if isinstance(task, Task) and info.context is not STORED else None


class RootStage(Stage):
    """The first stage of a chain: it brings the task and the decoder."""

    task: AnyTask
    decoder: AnyDecoder

    if TYPE_CHECKING:  # a field of some kinds, a property of others

        @property
        def ood_ratio(self) -> float:
            """Share of OOD samples in what it trains the model on."""
            ...

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> Self:
        task = task_to_fit(self, info)
        if task and task.max_tokens > self.decoder.context_tokens:
            raise ValueError(
                f"decoder.context_tokens={self.decoder.context_tokens} should be at least {task.max_tokens}, the "
                f"length of the longest sample of the task {task.label}"
            )
        if task and isinstance(self.decoder, PretrainedDecoder):
            _require_tokens_of(self.decoder, task)
        return self

    @property
    def parameters(self) -> int:
        """Trainable numbers of the model, embeddings and output head included."""
        return self.decoder.parameters(self.task.vocabulary.size)

    @property
    def sequence_tokens(self) -> int:
        """Longest sequence that a sampler has to hold, in tokens: a multiple of 64, or the decoder's whole context."""
        return min(self.decoder.context_tokens, -(-self.task.max_tokens // 64) * 64)

    @property
    def chain_label(self) -> str:
        """First part of the labels of all that is built on it."""
        return self.task.label


def _require_tokens_of(decoder: PretrainedDecoder, task: Task) -> None:
    """Raise ValueError if a task does not use the tokens of the pretrained model."""
    tokens = task.tokens if isinstance(task, TextTask) else None
    if not isinstance(tokens, ModelTokens) or (tokens.source, tokens.revision) != (decoder.source, decoder.revision):
        raise ValueError(
            f"the tokens of the task {task.label} are not those of {decoder.source}; use a task of text with "
            f"tokens=ModelTokens(source={decoder.source!r}, revision={decoder.revision!r})"
        )
