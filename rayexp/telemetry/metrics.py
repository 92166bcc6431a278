"""Every number that a stage logs or a sweep exports: its name, unit and meaning, defined once.

``metrics.parquet`` has them under ``name``, as have the reports of a running stage and Tune's loggers; Prometheus has
them under ``exported``, which Ray prefixes with ``ray_``. The Grafana dashboard (``rayexp.telemetry.grafana``) is made
from this.
"""

from dataclasses import dataclass

from rayexp.errors import PermanentError


@dataclass(frozen=True)
class Metric:
    """``stage``: the kind of stage that logs it; ``sweep`` for those of the sweep as a whole, which no stage logs."""

    name: str
    stage: str
    unit: str
    meaning: str

    @property
    def exported(self) -> str:
        """Its name in ``ray.util.metrics``."""
        return f"rayexp_{self.name.replace('/', '_')}"


_SUPERVISED = tuple(
    Metric(f"{stage}/{name}", stage, unit, meaning)
    for stage, name, unit, meaning in (
        ("pretrain", "id/loss", "nats/token", "Mean next-token loss of the ID samples since the last point"),
        ("pretrain", "ood/loss", "nats/token", "Mean next-token loss of the OOD samples since the last point"),
        ("pretrain", "learning_rate", "", "Learning rate of the step"),
        ("pretrain", "tokens_per_s", "tokens/s", "Tokens trained on a second, all ranks together"),
        ("sft", "id/loss", "nats/token", "Mean loss of the completions' tokens since the last point"),
        ("sft", "learning_rate", "", "Learning rate of the step"),
        ("sft", "tokens_per_s", "tokens/s", "Tokens trained on a second, all ranks together"),
    )
)


_GRPO = tuple(
    Metric(name, "grpo", unit, meaning)
    for name, unit, meaning in (
        ("rollout/reward", "share", "Share of the completions that are right"),
        ("rollout/zero_variance_groups", "share", "Share of the groups whose members did equally well: no gradient"),
        ("rollout/completion_tokens", "tokens", "Mean length of a completion"),
        (
            "rollout/tokens_per_s",
            "tokens/s",
            "Tokens of prompts and completions drawn a second, over whole steps",
        ),
        ("grpo/loss", "", "Clipped loss with the KL penalty, mean over completions"),
        ("grpo/kl", "nats/completion", "KL to the reference by the stage's estimator"),
        ("grpo/entropy", "nats/token", "Entropy of the policy's next token at the visited prefixes"),
        ("grpo/clipped", "share", "Share of the tokens whose gradient the clip cuts, mean over all updates of a step"),
        ("grpo/grad_norm", "", "Norm of the gradient before clipping"),
        ("grpo/max_logprob_mismatch", "nats", "Largest difference between sampler and learner in a token's log-prob"),
        ("grpo/sampler_kl", "nats/completion", "KL of the sampler to the learner, estimated from the completions"),
        ("grpo/effective_sample_share", "share", "Effective sample size of the completions, as a share of them"),
    )
)

_SWEEP = tuple(
    Metric(f"sweep/{name}", "sweep", unit, meaning)
    for name, unit, meaning in (
        ("trials", "trials", "Trials of the plan by state"),
        ("remaining_s", "s", "Estimated time to the end of the sweep"),
        ("stage_step", "steps", "Steps that a running stage has done"),
        ("stage_remaining_s", "s", "Estimated time to the end of a running stage's last step"),
    )
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in (*_SWEEP, *_SUPERVISED, *_GRPO)}
#: Tags of every exported metric of a stage. Only what runs is exported, so there are few of them at any time.
STAGE_TAGS = ("study", "stage")


class UndefinedMetricError(PermanentError):
    """A stage logs a number that nobody has said the meaning of."""


def named(**groups: dict[str, float]) -> dict[str, float]:
    """``{group}/{name}`` for every name of every group. Raises UndefinedMetricError for an unknown one."""
    names = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
    if undefined := names.keys() - METRICS.keys():
        raise UndefinedMetricError(
            f"metric is {min(undefined)!r}; allowed: those that rayexp.telemetry.metrics defines"
        )
    return names
