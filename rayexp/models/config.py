"""A decoder as a value: the shape of a decoder from scratch, or the source of a pretrained one."""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Discriminator, Tag, model_validator

from rayexp import sources
from rayexp.config import Count, Value
from rayexp.tasks.text.model_tokens import ModelTokens

#: Head sizes that vLLM's attention kernels support both on CPU and on GPU.
HEAD_SIZES = (32, 64, 128)


class Decoder(Value):
    """Shape of a Llama-style decoder: RMSNorm, SwiGLU, untied embeddings.

    positions: ``rope``; ``none``: attention sees order only through its causal mask; or ``randomised``: RoPE, with
    samples of supervised stages at random increasing positions from a longer range (``training.positions``).
    Completions are always drawn, scored and measured at the positions 0, 1, 2, ...
    """

    fields_added_later: ClassVar[frozenset[str]] = frozenset({"positions"})
    layers: Count
    width: Count
    ff_width: Count
    heads: Count
    kv_heads: Count
    context_tokens: Count = 64
    positions: Literal["rope", "none", "randomised"] = "rope"

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @model_validator(mode="after")
    def _shape(self) -> Self:
        if self.width % self.heads or self.head_size not in HEAD_SIZES:
            raise ValueError(
                f"decoder.width / decoder.heads = {self.width} / {self.heads} = {self.width / self.heads:g} should be "
                f"a head size that vLLM serves: {', '.join(map(str, HEAD_SIZES))}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"decoder.kv_heads={self.kv_heads} should be a divisor of heads={self.heads}")
        return self

    def parameters(self, vocabulary_size: int) -> int:
        """Return the number of trainable parameters, embeddings and output head included."""
        attention = self.width * self.head_size * 2 * (self.heads + self.kv_heads)
        block = attention + 3 * self.width * self.ff_width + 2 * self.width
        return self.layers * block + 2 * vocabulary_size * self.width + self.width


class PretrainedDecoder(Value):
    """A pretrained decoder from elsewhere, with the shape that its files state.

    source: ``ORG/NAME`` on the Hugging Face hub, a folder as ``save_pretrained`` writes it, a GGUF file, or
    ``package:NAME`` for the one in an installed package. revision: the commit of a repository; for other sources the
    SHA-256 of their content. It is filled in, like the fields after it. parameter_count: with an untied output matrix.
    Tied embeddings are untied, because vLLM would not see the tied matrix change.
    """

    source: str
    revision: str
    architecture: str
    layers: Count
    width: Count
    vocabulary_size: Count
    context_tokens: Count
    parameter_count: Count

    @model_validator(mode="before")
    @classmethod
    def _with_shape(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("source"), str) and "layers" not in values:
            return _shape_of(values["source"], values.get("revision") or "") | dict(values)
        return values

    @classmethod
    def of(cls, source: str, revision: str = "") -> Self:
        """Return the decoder of a source. Raises ValueError as ``rayexp.sources`` does, and if the source is no
        decoder."""
        return cls.model_validate({"source": source, **({"revision": revision} if revision else {})})

    @property
    def tokens(self) -> ModelTokens:
        """Return its tokenizer with its chat template, for a task of text."""
        return ModelTokens(source=self.source, revision=self.revision)

    @property
    def positions(self) -> str:
        """Return the name for the positions of its own architecture."""
        return "its own"

    def parameters(self, vocabulary_size: int) -> int:
        """Return the number of trainable parameters."""
        return self.parameter_count


def _shape_of(source: str, revision: str) -> dict[str, Any]:
    revision = sources.pinned(source, revision)
    settings = json.loads((sources.described(source, revision) / "config.json").read_text(encoding="utf-8"))
    names = {
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "vocabulary_size": "vocab_size",
        "context_tokens": "max_position_embeddings",
    }
    if missing := [name for name in names.values() if not isinstance(settings.get(name), int)]:
        raise ValueError(
            f"source={source!r} has no {missing[0]} in its config.json; give a causal language model, such as Llama or "
            "Qwen2"
        )
    shape = {field: settings[name] for field, name in names.items()}
    shapes = sources.parameters(source, revision)
    if not shapes:
        raise ValueError(f"source={source!r} has no *.safetensors; write its weights with save_pretrained")
    untied = 0 if any(name.startswith("lm_head.") for name in shapes) else shape["vocabulary_size"] * shape["width"]
    architecture, *_ = settings.get("architectures") or [settings.get("model_type", "unknown")]
    counted = sum(map(math.prod, shapes.values())) + untied
    return {**shape, "revision": revision, "architecture": architecture, "parameter_count": counted}


def _which(value: Any) -> str:
    pretrained = "source" in value if isinstance(value, Mapping) else isinstance(value, PretrainedDecoder)
    return "pretrained" if pretrained else "scratch"


AnyDecoder: TypeAlias = Annotated[
    Annotated[Decoder, Tag("scratch")] | Annotated[PretrainedDecoder, Tag("pretrained")], Discriminator(_which)
]
