"""The exact correct mass Q(x): the probability that a decoder completes prompt x correctly.

If the right completion is unique, one teacher-forced pass gives Q(x), and shows whether greedy decoding finds that
completion. If it is not, the pass gives the mass of the gold completion, a lower bound of Q.

Shape suffixes: _N prompts, _T tokens, _C completion tokens, _V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from rayexp.rl.scoring import completion_logprobs
from rayexp.stages.memory import HELD
from rayexp.tasks import TokenBatch

#: Largest number of completions that are scored at once.
ROWS = 1024


@dataclass(frozen=True)
class GoldScores:
    """Scores of gold completions. token_log_mass: of each row, the log-probability in nats of each token given the
    tokens before it, ``<eos>`` included. greedy_N: whether greedy decoding writes exactly the gold completion."""

    token_log_mass: list[np.ndarray]
    greedy_N: np.ndarray

    @property
    def log_mass_N(self) -> np.ndarray:
        """Return the log-probabilities of the gold completions, in nats."""
        return np.array([each.sum() for each in self.token_log_mass])


@torch.no_grad()
def gold_scores(model: PreTrainedModel, token_batch: TokenBatch, temperature: float = 1.0) -> GoldScores:
    """Score the gold completion of every row, in fp32.

    At most ``ROWS`` are scored at once, and fewer if their distributions over the vocabulary would exceed the memory
    limit (``rl.readout``). Greedy decoding finds the gold completion if and only if the most likely token is right at
    each of its positions.
    """
    token_log_mass, greedy = [], []
    longest = max(1, token_batch.tokens_NT.shape[1] - int(token_batch.prompt_tokens_N.min()))
    at_once = max(1, min(ROWS, HELD // (longest * model.config.vocab_size)))
    for start in range(0, len(token_batch.tokens_NT), at_once):
        rows = token_batch.take(slice(start, start + at_once))
        first = int(rows.prompt_tokens_N.min())
        tokens_NT = torch.from_numpy(rows.tokens_NT.astype(np.int64)).to(model.device)
        gold_NC = tokens_NT[:, first:]
        logprobs_NCV = completion_logprobs(model, tokens_NT[:, :-1], gold_NC.shape[1], temperature)
        scores_NC = logprobs_NCV.gather(-1, gold_NC[..., None]).squeeze(-1).double().cpu().numpy()
        likeliest_NC = (logprobs_NCV.argmax(dim=-1) == gold_NC).cpu().numpy()
        gold_rows = rows.counted_NT(rows.prompt_tokens_N)[:, first:]
        token_log_mass += [scores_C[of_gold_C] for scores_C, of_gold_C in zip(scores_NC, gold_rows, strict=True)]
        greedy.append((likeliest_NC | ~gold_rows).all(axis=1))
    return GoldScores(token_log_mass, np.concatenate(greedy))


def gold_masses(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], gold: Sequence[Sequence[int]], temperature: float = 1.0
) -> np.ndarray:
    """Return the probability of the gold completion of each prompt: [N], float64. Lengths may differ."""
    places: dict[tuple[int, int], list[int]] = {}
    for i, shape in enumerate(zip(map(len, prompts), map(len, gold), strict=True)):
        places.setdefault(shape, []).append(i)
    mass_N = np.empty(len(prompts))
    for members in places.values():
        batch = TokenBatch.of([(prompts[i], gold[i]) for i in members], np.array(members))
        mass_N[members] = np.exp(gold_scores(model, batch, temperature).log_mass_N)
    return mass_N
