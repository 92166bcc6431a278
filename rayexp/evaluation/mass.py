"""The exact correct mass Q(x): the probability that a decoder completes prompt x correctly.

Where the right completion is unique, one teacher-forced pass gives Q(x), and the same pass says
whether greedy decoding finds it. Where it is not, the pass
gives the mass of the gold completion, a lower bound of Q.

Shape suffixes: _N prompts, _T tokens, _C completion tokens, _V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from rayexp.rl.scoring import completion_logprobs
from rayexp.tasks import TokenBatch


@dataclass(frozen=True)
class GoldScores:
    """token_log_mass_NC: log-probability of each token of the gold completion after the tokens before it, ``<eos>``
    included, in nats. greedy_N: whether greedy decoding writes exactly it."""

    token_log_mass_NC: np.ndarray
    greedy_N: np.ndarray

    @property
    def log_mass_N(self) -> np.ndarray:
        """Log-probability of the gold completion."""
        return self.token_log_mass_NC.sum(axis=1)


@torch.no_grad()
def gold_scores(model: PreTrainedModel, token_batch: TokenBatch, chunk: int = 1024) -> GoldScores:
    """Score the gold completion of every row, in fp32. Greedy decoding follows the gold path as long as it agrees
    with it, so it finds the gold completion exactly if the most likely token is right at every position of it."""
    token_log_mass, greedy = [], []
    for start in range(0, len(token_batch.tokens_NT), chunk):
        tokens_NT = torch.from_numpy(token_batch.tokens_NT[start : start + chunk].astype(np.int64)).to(model.device)
        gold_NC = tokens_NT[:, token_batch.prompt_tokens :]
        logprobs_NCV = completion_logprobs(model, tokens_NT[:, :-1], gold_NC.shape[1])
        token_log_mass.append(logprobs_NCV.gather(-1, gold_NC[..., None]).squeeze(-1).double().cpu().numpy())
        greedy.append((logprobs_NCV.argmax(dim=-1) == gold_NC).all(dim=1).cpu().numpy())
    return GoldScores(np.concatenate(token_log_mass), np.concatenate(greedy))


def gold_masses(model: PreTrainedModel, prompts: Sequence[Sequence[int]], gold: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the probability of the gold completion of each prompt, whatever their lengths: [N], float64."""
    places: dict[tuple[int, int], list[int]] = {}
    for i, shape in enumerate(zip(map(len, prompts), map(len, gold), strict=True)):
        places.setdefault(shape, []).append(i)
    mass_N = np.empty(len(prompts))
    for (prompt_tokens, _), members in places.items():
        tokens_NT = np.array([[*prompts[i], *gold[i]] for i in members])
        index_N = np.array(members)
        batch = TokenBatch(tokens_NT, prompt_tokens, index_N, np.zeros(len(members), dtype=bool))
        mass_N[index_N] = np.exp(gold_scores(model, batch).log_mass_N)
    return mass_N
