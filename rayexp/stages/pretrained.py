"""A pretrained model, as a value."""

from typing import ClassVar, Literal

from rayexp.models.config import PretrainedDecoder
from rayexp.stages.base import Pool, RootStage


class Pretrained(RootStage):
    """A model that others have trained, brought into the store as it is.

    To train it further, with a share of OOD samples, use ``Pretrain`` with such a decoder.
    """

    pool: ClassVar[Pool] = "train"
    name: ClassVar[str] = "a pretrained model"
    kind: Literal["pretrained"] = "pretrained"
    decoder: PretrainedDecoder

    @property
    def ood_ratio(self) -> float:
        """0, because no samples are added. The data that others trained it on is not known."""
        return 0.0

    @property
    def steps(self) -> int:
        return 0

    @property
    def flops(self) -> float:
        return 0.0
