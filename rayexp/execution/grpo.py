"""The runner of GRPO: the rollout loop with a learner that follows the policy gradient."""

from rayexp.rl.learner import GRPOLearner as Learner

__all__ = ["Learner"]
