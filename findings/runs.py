"""The studies whose findings are published, each with the options of its run."""

from typing import NamedTuple


class Run(NamedTuple):
    """A study in the store. name: its name there, and that of its tables in docs/findings."""

    name: str
    study: str
    options: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return the arguments of ``rayexp run``, without the store."""
        return (self.study, "--scale", "tiny", *self.options)


BETAS = ("--kl-betas", "0", "0.1", "1")
#: Ratios that a search finds, so that no study misses the range in which something is learnt.
AUTO = ("--ood-ratios", "auto")
SEEDS = ("--seeds", "auto", "--max-seeds", "6")

RUNS = (
    *(Run(f"{axis}-tiny", axis, (*AUTO, *BETAS, *SEEDS)) for axis in ("composition", "depth", "tokens", "length")),
    Run("objections-tiny", "objections"),
    Run("mixing-tiny", "mixing", (*AUTO, "--kl-betas", "0.1")),
    Run("exchange-tiny", "exchange"),
    Run("exposure-tiny", "exposure"),
    Run("tokens-tiny-printed", "tokens", (*AUTO, "--kl-betas", "0.1", "--graph", "printed")),
    Run("composition-tiny-positional", "composition", (*AUTO, "--kl-betas", "0.1", "--traversal", "positional")),
    Run("composition-tiny-trace", "composition", (*AUTO, "--kl-betas", "0.1", "--completion-format", "trace")),
    Run("fixed-point-tiny", "fixed-point", ("--ood-ratios", "0.0018", "0.0057", "--kl-betas", "0.1", "1")),
    Run("dense-tiny", "dense", ("--kl-betas", "0.1")),
    Run("gym-tiny", "gym", (*AUTO, "--kl-betas", "0.1")),
    Run("scaling-tiny", "scaling", (*AUTO, "--kl-betas", "0.1")),
)
BY_NAME = {run.name: run for run in RUNS}
