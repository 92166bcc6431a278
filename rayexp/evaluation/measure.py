"""The measurement of a model on every cell of its task: one row a prompt, the same prompts for every stage."""

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel

from rayexp.evaluation.mass import gold_scores
from rayexp.sampling.base import prompt_seed
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.stages import Evaluate
from rayexp.tasks import Task, TokenBatch
from rayexp.tasks.base import TEMPLATE, TEST_SEED

#: One row a prompt. log_mass: of the gold completion, in nats. Its exp is Q if the right completion is unique, else a
#: lower bound of Q. token_log_mass: of each token of the gold completion given those before it; the sum is log_mass.
#: completion: the greedy completion, which is the gold one if greedy_correct. sampled: number of completions drawn;
#: answer_correct, trace_correct: how many of them are right (all three are 0 if the right completion is unique).
SCHEMA = pa.schema(
    [
        ("role", pa.string()),
        ("cell", pa.string()),
        ("prompt_index", pa.int64()),
        ("prompt", pa.string()),
        ("gold", pa.string()),
        ("log_mass", pa.float64()),
        ("token_log_mass", pa.list_(pa.float64())),
        ("greedy_correct", pa.bool_()),
        ("completion", pa.string()),
        ("sampled", pa.int64()),
        ("answer_correct", pa.int64()),
        ("trace_correct", pa.int64()),
    ]
)


def measure(model: PreTrainedModel, stage: Evaluate) -> pa.Table:
    """Return rows of ``SCHEMA``, ``stage.prompts_per_cell`` for each cell of the task. They have a column ``TEMPLATE``
    if the task's questions have templates."""
    task, schema = stage.root.task, SCHEMA
    decode = task.vocabulary.decode
    model.eval()
    rows = []
    for role, cell in task.roles():
        batch = task.of_cell("test", TEST_SEED, cell, 0, stage.prompts_per_cell)
        scores = gold_scores(model, batch)
        log_mass_N = scores.log_mass_N
        completions = _greedy(model, task, cell, batch, scores.greedy_N)
        sampled, answers_N, traces_N = 0, *np.zeros((2, len(batch.tokens_NT)), int)
        if not task.unique:
            sampled = stage.sampled_completions
            answers_N, traces_N = _sample(model, task, cell, batch, stage)
        templates = task.templates_of(cell, batch.index_N)
        if templates and TEMPLATE not in schema.names:
            schema = schema.append(pa.field(TEMPLATE, pa.string()))
        for i, (prompt_T, gold_C) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
            rows.append(
                {
                    "role": role,
                    "cell": cell,
                    "prompt_index": int(batch.index_N[i]),
                    "prompt": decode(prompt_T),
                    "gold": decode(gold_C),
                    "log_mass": float(log_mass_N[i]),
                    "token_log_mass": scores.token_log_mass[i].tolist(),
                    "greedy_correct": bool(scores.greedy_N[i]),
                    "completion": completions[i],
                    "sampled": sampled,
                    "answer_correct": int(answers_N[i]),
                    "trace_correct": int(traces_N[i]),
                    TEMPLATE: templates[i] if templates else None,
                }
            )
    model.train()
    return pa.Table.from_pylist(rows, schema=schema)


def _greedy(model: PreTrainedModel, task: Task, cell: str, batch: TokenBatch, correct_N: np.ndarray) -> list[str]:
    """Return the greedy completion of each prompt. Decode only if it is not the gold one. correct_N: whether it is."""
    wrong = np.flatnonzero(~correct_N)
    written = [task.vocabulary.decode(gold_C) for gold_C in batch.completions]
    if len(wrong):
        prompts = batch.take(wrong).prompts
        limits = [task.max_completion_tokens(cell)] * len(wrong)
        drawn = TorchSampler(model).greedy(prompts, limits).until_their_end(task.vocabulary)
        for i, row in zip(wrong, drawn.rows, strict=True):
            written[i] = task.vocabulary.decode(row)
    return written


def _sample(
    model: PreTrainedModel, task: Task, cell: str, batch: TokenBatch, stage: Evaluate
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of right answers and of right traces among ``stage.sampled_completions`` of each prompt."""
    prompts, group = batch.prompts, stage.sampled_completions
    seeds = [prompt_seed(stage.seed, "evaluate", cell, i) for i in range(len(prompts))]
    limits = [task.max_completion_tokens(cell)] * len(prompts)
    rows = TorchSampler(model).generate(prompts, seeds, group, limits).until_their_end(task.vocabulary).rows
    solutions = [task.solution(prompt, gold) for prompt, gold in zip(prompts, batch.completions, strict=True)]
    verdicts = [task.judge(solutions[i // group], row) for i, row in enumerate(rows)]
    answers_N = np.array([verdict.answer for verdict in verdicts]).reshape(-1, group).sum(axis=1)
    traces_N = np.array([verdict.trace for verdict in verdicts]).reshape(-1, group).sum(axis=1)
    return answers_N, traces_N
