"""Measure a decoder on every cell of its axis: one row a prompt, the same prompts for every stage of a study."""

import numpy as np
import pyarrow as pa
from transformers import LlamaForCausalLM

from rayexp.evaluation.mass import gold_scores
from rayexp.sampling.base import prompt_seed
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.spec import Evaluate
from rayexp.tasks.strings import Cell, Corpus, TokenBatch, Verifier, World, vocabulary

#: Test prompts are those of one corpus, whatever the seeds of the stages are: results are paired across stages.
TEST_SEED = 0

#: One row a prompt. log_mass: of the gold completion, in nats; exp of it is Q for answer-only samples and a lower bound
#: of Q for traces. completion: what greedy decoding writes, the gold one where greedy_correct. sampled, answer_correct,
#: trace_correct: completions drawn and judged (traces only, else 0).
SCHEMA = pa.schema(
    [
        ("role", pa.string()),
        ("cell", pa.string()),
        ("prompt_index", pa.int64()),
        ("prompt", pa.string()),
        ("gold", pa.string()),
        ("log_mass", pa.float64()),
        ("greedy_correct", pa.bool_()),
        ("completion", pa.string()),
        ("sampled", pa.int64()),
        ("answer_correct", pa.int64()),
        ("trace_correct", pa.int64()),
    ]
)


def measure(model: LlamaForCausalLM, world: World, spec: Evaluate) -> pa.Table:
    """Rows of ``SCHEMA``, ``spec.prompts_per_cell`` for each cell of the axis."""
    corpus = Corpus(world, TEST_SEED)
    model.eval()
    rows = []
    for role, cell in world.cells.roles():
        token_batch = corpus.cell("test", cell, 0, spec.prompts_per_cell)
        scores = gold_scores(model, token_batch)
        completions = _greedy(model, world, cell, token_batch, scores.greedy_N)
        sampled, answers, traces = 0, np.zeros(len(scores.greedy_N), int), np.zeros(len(scores.greedy_N), int)
        if world.samples == "trace":
            sampled = spec.sampled_completions
            answers, traces = _sample(model, world, cell, token_batch, spec)
        for i, tokens_T in enumerate(token_batch.tokens_NT):
            rows.append(
                {
                    "role": role,
                    "cell": cell.name,
                    "prompt_index": int(token_batch.index_N[i]),
                    "prompt": vocabulary.decode(tokens_T[: token_batch.prompt_tokens]),
                    "gold": vocabulary.decode(tokens_T[token_batch.prompt_tokens :]),
                    "log_mass": float(scores.log_mass_N[i]),
                    "greedy_correct": bool(scores.greedy_N[i]),
                    "completion": completions[i],
                    "sampled": sampled,
                    "answer_correct": int(answers[i]),
                    "trace_correct": int(traces[i]),
                }
            )
    model.train()
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _greedy(
    model: LlamaForCausalLM, world: World, cell: Cell, token_batch: TokenBatch, correct_N: np.ndarray
) -> list[str]:
    """What greedy decoding writes for each prompt. Only where that is not the gold completion is anything decoded."""
    wrong = np.flatnonzero(~correct_N)
    written = [vocabulary.decode(tokens_T[token_batch.prompt_tokens :]) for tokens_T in token_batch.tokens_NT]
    if len(wrong):
        prompts = [token_batch.prompts[i].tolist() for i in wrong]
        budgets = [world.completion_budget(cell)] * len(wrong)
        for i, row in zip(wrong, TorchSampler(model).greedy(prompts, budgets).rows, strict=True):
            written[i] = vocabulary.decode(row)
    return written


def _sample(
    model: LlamaForCausalLM, world: World, cell: Cell, token_batch: TokenBatch, spec: Evaluate
) -> tuple[np.ndarray, np.ndarray]:
    """Correct answers and correct traces among ``spec.sampled_completions`` of each prompt."""
    prompts = [prompt.tolist() for prompt in token_batch.prompts]
    seeds = [prompt_seed(spec.seed, "evaluate", cell.name, i) for i in range(len(prompts))]
    budget = world.completion_budget(cell)
    completions = TorchSampler(model).generate(prompts, seeds, spec.sampled_completions, [budget] * len(prompts))
    verifier = Verifier(world)
    group = spec.sampled_completions
    verdicts = [verifier.judge(prompts[i // group], row) for i, row in enumerate(completions.rows)]
    answers = np.array([verdict.answer for verdict in verdicts]).reshape(-1, group).sum(axis=1)
    traces = np.array([verdict.trace for verdict in verdicts]).reshape(-1, group).sum(axis=1)
    return answers, traces
