"""Pretraining and SFT under Ray Train: worker counts, resume, and the contents of an artifact."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from rayexp.config import RunConfig
from rayexp.distributed.saving import ask_to_save
from rayexp.execution import pretrain as pretrain_stage
from rayexp.execution import supervised
from rayexp.store.artifacts import Store
from rayexp.store.leases import Leases
from rayexp.studies.grid import decoder_for
from rayexp.tasks.strings import StringTask
from rayexp.training.trainer import Trainer
from tests.fixtures.artifacts import files_of, losses, weights_digest
from tests.fixtures.factories import TOY, evaluate, pretrain, sft


def chain():
    base = pretrain()
    tuned = sft(base)
    return base, tuned, [base, evaluate(base), tuned, evaluate(tuned)]


def test_a_compiled_decoder_reads_padded_rows_and_learns_the_same(monkeypatch, tmp_path):
    """Capture the decoder, as a GPU does in a long stage, but do not translate it, so that its numbers are the
    uncompiled ones."""
    shapes = set()

    def backend(graph, inputs):
        shapes.add(tuple(next(t.shape for t in inputs if t.dtype == torch.int64 and t.ndim == 2)))
        return graph.forward

    def compiled(self):
        torch.nn.Module.compile(self.module, dynamic=False, backend=backend)
        self.row_multiple = 64

    base = pretrain()
    plain, fused = (RunConfig(store=str(tmp_path / name)) for name in ("plain", "fused"))
    supervised.run_in_process([base], plain, lambda report: None)
    monkeypatch.setattr(Trainer, "compile", compiled)
    monkeypatch.setattr(supervised, "COMPILED_FLOP", 0.0)
    monkeypatch.setattr(supervised, "COMPILED_ON", "cpu")
    supervised.run_in_process([base], fused, lambda report: None)
    assert len(shapes) > 1
    assert all(rows % 64 == 0 for rows, _ in shapes)
    expected, found = (losses(Store(run_config.store), base) for run_config in (plain, fused))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """Return a store with the chain, trained in this process without a cluster, and its stages."""
    base, tuned, stages = chain()
    run_config = RunConfig(store=str(tmp_path_factory.mktemp("one")))
    supervised.run_in_process(stages, run_config, lambda report: None)
    return Store(run_config.store), base, tuned, stages


def test_all_stages_of_a_chain_are_published(one_rank):
    store, _, _, stages = one_rank
    assert store.finished_ids() == {stage.id for stage in stages}
    assert all(path.parts[0] == "stages" for path in files_of(store)), (
        "something besides finished artifacts stays behind"
    )


def test_loss_falls_and_sft_trains_on_id_samples_only(one_rank):
    store, base, tuned, _ = one_rank
    curve = losses(store, base)
    assert curve[max(curve)] < curve[min(curve)] - 0.5
    metrics = set(store.table(tuned.id, "metrics.parquet").to_pandas().metric)
    assert "sft/id/loss" in metrics
    assert "sft/ood/loss" not in metrics


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_ranks_take_the_steps_of_one(one_rank, cluster, tmp_path, sharding):
    store, base, tuned, stages = one_rank
    run_config = RunConfig(store=str(tmp_path), train_workers=2, sharding=sharding)
    supervised.run(stages, run_config)
    for stage in (base, tuned):
        expected, found = losses(store, stage), losses(Store(run_config.store), stage)
        assert found.keys() == expected.keys()
        assert all(abs(found[step] - expected[step]) < 1e-5 for step in expected)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(one_rank, tmp_path, monkeypatch):
    store, base, _, _ = one_rank
    run_config = RunConfig(store=str(tmp_path), checkpoint_every_s=0)
    batch, reached = pretrain_stage.batch, []

    def dies_at_step_5(spec, step):
        reached.append(step)
        if step == 5:
            raise RuntimeError("the machine is gone")
        return batch(spec, step)

    monkeypatch.setattr(pretrain_stage, "batch", dies_at_step_5)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        supervised.run_in_process([base], run_config, lambda report: None)
    assert not Store(run_config.store).finished(base.id)

    monkeypatch.setattr(pretrain_stage, "batch", lambda spec, step: reached.append(step) or batch(spec, step))
    supervised.run_in_process([base], run_config, lambda report: None)
    assert reached == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]  # a batch is made during the step before, which was lost with it
    assert weights_digest(Store(run_config.store), base) == weights_digest(store, base)
    assert losses(Store(run_config.store), base) == losses(store, base)


@pytest.mark.parametrize(("cores", "threads"), [(0.5, 1), (1.0, 1), (2.0, 2)])
def test_training_computes_in_the_threads_it_was_given_cores_for(tmp_path, monkeypatch, cores, threads):
    """Check that it does not use OMP_NUM_THREADS or the machine's cores, with which it would round differently."""
    base, seen = pretrain(samples=1), []
    batch = pretrain_stage.batch
    monkeypatch.setattr(
        pretrain_stage, "batch", lambda spec, step: seen.append(torch.get_num_threads()) or batch(spec, step)
    )
    torch.set_num_threads(3)
    try:
        supervised.run_in_process([base], RunConfig(store=str(tmp_path), train_cpus=cores), lambda report: None)
    finally:
        torch.set_num_threads(1)
    assert seen == [threads]


def in_process(stages, run_config):
    supervised.run_in_process(stages, run_config, lambda report: None)


@pytest.mark.slow
@pytest.mark.parametrize("run", [in_process, supervised.run], ids=["in_process", "worker_group"])
def test_what_trains_saves_itself_when_its_driver_asks(cluster, tmp_path, run):
    """Ask long before the first checkpoint would be due. The driver waits no longer than it takes to write one."""
    base = pretrain(samples=20_000)
    store = Store(str(tmp_path))
    with Leases(store.files) as leases, ThreadPoolExecutor() as pool:
        lease = leases.take(base.id)
        asked = pool.submit(ask_to_save, leases.driver, {base.id}, patience_s=120)
        run([base], RunConfig(store=str(tmp_path), lease=str(lease)))
        assert asked.result() == set()
        assert ask_to_save(leases.driver, {base.id}, patience_s=0.1) == {base.id}, "what has ended saves nothing"


def test_a_model_folder_loads_in_stock_transformers(one_rank):
    store, _, tuned, _ = one_rank
    with store.model(tuned.id) as folder:
        loaded: Any = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not any(report.values())
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 8, 9]])).logits).all()


@pytest.mark.parametrize("axis", ["tokens", "length"])
def test_the_hardest_variant_of_the_world_trains_and_is_measured(axis, tmp_path):
    """Use a printed map, traversal by position and traces: prompts are long, and completions are sampled and judged."""
    task = StringTask(axis=axis, graph="printed", traversal="positional", completion_format="trace")
    base = pretrain(task=task, decoder=decoder_for(TOY, task), samples=300)
    stages = [base, evaluate(base)]
    run_config = RunConfig(store=str(tmp_path))
    supervised.run_in_process(stages, run_config, lambda report: None)
    rows = Store(run_config.store).table(evaluate(base).id, "results.parquet").to_pandas()
    assert set(rows.role) == {"id", "ood", "probe"}
    assert (rows.sampled == 16).all()
    assert (rows.trace_correct <= rows.answer_correct).all()
    assert (rows.log_mass < 0).all()
