"""The most memory that each process of a stage takes, in bytes, by arithmetic.

The numbers that training keeps of a token were counted and measured on Llama decoders (`python -m benchmarks memory`).
Each layer keeps the numbers that its gradient is made from. One layer at a time needs more during its backward pass.

Symbols: L layers of width W with a feed-forward network of width F, V symbols, P parameters.
"""

import math
from dataclasses import dataclass
from typing import Any

from rayexp.config import RunConfig
from rayexp.stages.base import RootStage, Stage
from rayexp.stages.rollouts import RolloutStage

#: Log-probabilities over the vocabulary that are held at once: 128 MiB in fp32. A gradient has some eight such arrays
#: at a time. Arrays below 32 MiB would be taken from a heap that grows with the number of parts: 20 GB instead of 1.4
#: for 512 completions.
HELD, ARRAYS = 2**25, 8
#: A process with Python, torch and Ray in it, before it has a model; and one with vLLM besides.
PROCESS, VLLM_PROCESS = 0.65e9, 0.9e9
#: Memory of a GPU that CUDA takes for each process.
CUDA_CONTEXT = 0.5e9
FP32, BF16 = 4, 2
#: Sequences that vLLM has under way at once, and the least cache that it is given (sampling.vllm_sampler).
VLLM_SEQUENCES, LEAST_CACHE = 256, 2**27
#: Bytes of weights that are sent from a learner to its samplers at a time.
CHUNK = 2**30
#: Numbers that training keeps of a token: multiples of W and of F in each layer, then multiples of W and of V once.
LAYER_WIDTHS, LAYER_FF_WIDTHS, WIDTHS, LOGITS = 10.4, 4.0, 7.0, 3.0


@dataclass(frozen=True)
class Memory:
    """The memory of one process, in bytes. activations: the numbers that gradients are made from, and distributions.
    cache: a sampler's keys and values. process: memory without a model."""

    weights: float = 0.0
    gradients: float = 0.0
    optimiser: float = 0.0
    activations: float = 0.0
    cache: float = 0.0
    process: float = PROCESS

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.cache + self.process

    def on_host(self, device: str) -> float:
        """Return the bytes of the machine's own memory. On a GPU this is the process and one copy of the weights."""
        return self.total if device != "cuda" else self.process + self.weights

    def on_gpu(self, device: str) -> float:
        """Return the bytes of a GPU's memory."""
        return self.total - self.process + CUDA_CONTEXT if device == "cuda" else 0.0


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder that determine its memory."""

    parameters: float
    layers: int
    width: int
    vocabulary: int

    @classmethod
    def of(cls, root: RootStage) -> "Shape":
        """Return the shape of a lineage's decoder."""
        return cls(root.parameters, root.decoder.layers, root.decoder.width, root.task.vocabulary.size)

    @property
    def block(self) -> float:
        """Parameters of a layer."""
        return (self.parameters - 2 * self.vocabulary * self.width - self.width) / self.layers

    @property
    def ff_width(self) -> float:
        """F, if there are as many heads of keys as of queries; otherwise a little less than F."""
        return max(0.0, self.block - 4 * self.width**2) / (3 * self.width)

    @property
    def collected(self) -> float:
        """Parameters that a rank of a sharded decoder has whole at a time: two consecutive blocks, and all that is
        outside of blocks."""
        return 2 * self.block + 2 * self.vocabulary * self.width

    def activations(self, tokens: float, logits: bool, checkpointing: bool) -> float:
        """Return the bytes that a gradient keeps of ``tokens`` tokens, in fp32."""
        layer = LAYER_WIDTHS * self.width + LAYER_FF_WIDTHS * self.ff_width
        layers = layer + self.layers * self.width if checkpointing else self.layers * layer
        besides = WIDTHS * self.width + self.ff_width * (1 + checkpointing) + LOGITS * self.vocabulary * logits
        return FP32 * tokens * (layers + besides)

    def training(self, tokens: float, ranks: int, spread: bool, checkpointing: bool) -> Memory:
        """Return the memory of a training rank that takes the gradient of ``tokens`` tokens at once."""
        parts = ranks if spread else 1
        weights = gradients = FP32 * self.parameters / parts
        if spread:
            weights, gradients = weights + FP32 * self.collected, gradients + FP32 * self.collected
        elif ranks > 1:  # a second copy goes to the others
            gradients *= 2
        activations = self.activations(tokens, True, checkpointing)
        return Memory(weights, gradients, 2 * FP32 * self.parameters / parts, activations)


def processes(stage: Stage, run_config: RunConfig) -> dict[str, Memory]:
    """Return the memory of each kind of process that runs a stage, by its name. A training rank with sharding ``auto``
    has either a shard of the decoder or all of it; the smaller memory counts."""
    if isinstance(stage, RolloutStage):
        return {"learner": _learner(stage, run_config), "rollout worker": _sampler(stage, run_config)}
    if stage.pool == "train" and stage.steps:
        possible = {"none": (False,), "full": (True,), "auto": (False, True)}[run_config.sharding]
        spreads = possible if run_config.train_workers > 1 else (False,)
        ranks = [training_rank(stage, run_config, spread) for spread in spreads]
        return {"training rank": min(ranks, key=lambda rank: rank.total)}
    return {"process": Memory(weights=FP32 * stage.root.parameters)}


def training_rank(stage: Any, run_config: RunConfig, spread: bool) -> Memory:
    """Return the memory of one rank of a supervised stage."""
    ranks = run_config.train_workers
    tokens = math.ceil(stage.batch_samples / ranks) * stage.root.task.max_tokens
    tokens = min(tokens, run_config.micro_batch_tokens or tokens)
    return Shape.of(stage.root).training(tokens, ranks, spread, run_config.gradient_checkpointing)


def _tokens(stage: RolloutStage) -> int:
    """Return the most tokens that a learner reads in a step; a prompt counts once for its group."""
    task, cells = stage.root.task, stage.cell_shares.cells
    longest = max(task.prompt_tokens(cell) + stage.group_size * task.max_completion_tokens(cell) for cell in cells)
    return stage.prompts_per_step * longest


def _learner(stage: RolloutStage, run_config: RunConfig) -> Memory:
    shape, ranks = Shape.of(stage.root), run_config.learner_workers
    tokens = min(math.ceil(_tokens(stage) / ranks), run_config.micro_batch_tokens or math.inf)
    numbers = tokens * shape.vocabulary  # a sharded decoder has them all at once
    distributions = ARRAYS * FP32 * (numbers if ranks > 1 else min(numbers, HELD))
    activations = shape.activations(tokens, False, run_config.gradient_checkpointing) + distributions
    trained, reference = stage.trained_parameters, shape.parameters * (getattr(stage, "kl_beta", 0) > 0)
    collected = shape.collected * (ranks > 1)
    weights, gradients = (trained + reference) / ranks + collected, trained / ranks + collected
    return Memory(FP32 * weights, FP32 * gradients, 2 * FP32 * trained / ranks, activations)


def _sampler(stage: RolloutStage, run_config: RunConfig) -> Memory:
    """Return the memory of a sampler: its weights, weights that arrive, and a cache. Ranks on GPUs divide weights and
    cache; ranks on a CPU share the memory of one machine."""
    decoder, shape = stage.root.decoder, Shape.of(stage.root)
    size = BF16 if stage.optimiser.precision == "bf16" else FP32
    weights = size * shape.parameters + min(CHUNK, FP32 * shape.parameters)
    of_token = 2 * shape.layers * shape.width * size * getattr(decoder, "kv_heads", 1) / getattr(decoder, "heads", 1)
    of_sequence = stage.root.sequence_tokens * of_token
    if stage.sampler == "torch":
        return Memory(weights, cache=stage.prompts_per_step * stage.group_size * of_sequence)
    cache = max(LEAST_CACHE, VLLM_SEQUENCES * of_sequence)
    if run_config.kv_cache_gib:
        cache = run_config.kv_cache_gib * 2**30
    ranks = run_config.tensor_parallel
    shared = ranks if run_config.device == "cuda" else 1
    processes = 1 if ranks == 1 else 1 + ranks
    return Memory(weights / shared, cache=cache / shared, process=VLLM_PROCESS * processes)
