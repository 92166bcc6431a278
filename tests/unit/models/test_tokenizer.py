"""A saved tokenizer has the token ids of its task."""

import pytest
from transformers import AutoTokenizer

from rayexp.models import tokenizer
from rayexp.tasks.sorting import Sorting
from rayexp.tasks.strings import StringTask
from rayexp.tasks.text import axis
from rayexp.tasks.text.vocabularies import VOCABULARIES

TASKS = [
    StringTask(axis="depth"),
    Sorting(),
    axis("paths"),
    axis("sums").model_copy(update={"tokens": "bytes"}),
    axis("backward").model_copy(update={"tokens": "words"}),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.label)
def test_stock_tools_read_and_write_prompts_as_the_task_does(task, tmp_path):
    tokenizer.save(task.vocabulary, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for _, cell in task.roles():
        batch = task.of_cell("grpo", 0, cell, 0, 5)
        for prompt, gold in zip(batch.prompts, batch.completions, strict=True):
            text = task.vocabulary.decode(prompt + gold)
            assert loaded(text, add_special_tokens=False).input_ids == prompt + gold
            assert loaded.decode(prompt + gold) == text
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)


def test_texts_of_any_script_have_bytes(tmp_path):
    vocabulary = VOCABULARIES["bytes"]
    tokenizer.save(vocabulary, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<bos>naïve 漢\n\t  x<eos>"
    assert loaded(text, add_special_tokens=False).input_ids == vocabulary.encode(text)
    assert loaded.decode(vocabulary.encode(text)) == text
