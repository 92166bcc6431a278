"""The shape of a decoder, as a value."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from rayexp.config import Count, Value

#: What vLLM's attention kernels serve on CPU and GPU alike.
HEAD_SIZES = (32, 64, 128)


class Decoder(Value):
    """Shape of a Llama-style decoder: RMSNorm, SwiGLU, untied embeddings.

    positions: ``rope``; ``none``, where attention sees order by its causal mask alone; or ``randomised``, which is RoPE
    whose supervised stages see each sample at random increasing positions out of a longer range
    (``training.positions``). Completions are drawn, scored and measured at the positions 0, 1, 2, ... in any case.
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
                f"decoder.width / decoder.heads is {self.width} / {self.heads} = {self.width / self.heads:g}; "
                f"allowed: head sizes that vLLM can serve, {', '.join(map(str, HEAD_SIZES))}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"decoder.kv_heads is {self.kv_heads}; allowed: divisors of heads = {self.heads}")
        return self

    def parameters(self, vocabulary_size: int) -> int:
        """Return the number of trainable numbers, embeddings and output head included."""
        attention = self.width * self.head_size * 2 * (self.heads + self.kv_heads)
        block = attention + 3 * self.width * self.ff_width + 2 * self.width
        return self.layers * block + 2 * vocabulary_size * self.width + self.width
