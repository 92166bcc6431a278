"""Metrics, which are defined once for the log of stages, for Prometheus and for Grafana."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from rayexp.execution.rollout_loop import rollout_statistics
from rayexp.rl.hits import Hits
from rayexp.rl.learner import GRPOLearner
from rayexp.rl.prompts import PromptBatch
from rayexp.rl.rollouts import rollout_batches
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.stages import GRPO
from rayexp.tasks.strings.symbols import VOCABULARY
from rayexp.telemetry import grafana
from rayexp.telemetry.metric_log import MetricLog, progress_event
from rayexp.telemetry.metrics import METRICS, UndefinedMetricError, named
from tests.fixtures.factories import pretrain

FOLDER = Path(__file__).parents[3] / "deploy/grafana"


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_definition_says_everything(metric):
    assert re.fullmatch(r"[a-z]+(/[a-z_]+){1,2}", metric.name)
    assert re.fullmatch(r"rayexp_[a-z_]+", metric.exported)
    assert metric.meaning[0].isupper()
    assert not metric.meaning.endswith(".")
    assert metric.name.partition("/")[0] in grafana.TITLES


def test_exported_names_differ():
    assert len({metric.exported for metric in METRICS.values()}) == len(METRICS)


def test_a_number_without_a_definition_is_refused():
    with pytest.raises(UndefinedMetricError, match="metric='grpo/luck' is not defined; define it in rayexp"):
        MetricLog(pretrain()).log(1, grpo={"loss": 1.0, "luck": 1.0})
    with pytest.raises(UndefinedMetricError, match="'sft/reward'"):
        named(sft={"reward": 1.0})


def test_a_report_says_which_stage_it_is_about_and_how_far_it_is(chain):
    said = progress_event(chain.sft, 1, sft={"id/loss": 2.0})
    assert said == {
        "stage": chain.sft.label,
        "stage_id": chain.sft.id,
        "step": 1,
        "steps": chain.sft.steps,
        "timesteps_total": 1,
        "sft/id/loss": 2.0,
    }


@pytest.mark.parametrize("advantage", ["group_std", "critic"])
def test_every_number_of_a_grpo_step_is_defined(chain, model, advantage):
    """Check the converse as well: every definition, except those of filters and critics, is of a number of a step."""
    prompts = [[1, 5, 6, 7], [1, 8, 9, 7]]
    batch = PromptBatch([0, 1], prompts, seeds=[0, 1024], max_tokens=[3, 3])
    completions = TorchSampler(model).generate(*batch.request(4))
    rewards_PG = np.array([[1, 0, 0, 1], [0, 0, 0, 0]], dtype=np.float32)
    learner = GRPOLearner(chain.grpo.model_copy(update={"advantage": advantage}), model)
    learning = learner.update(rollout_batches(batch, completions, rewards_PG), max_logprob_mismatch=1.0)
    ended_N = completions.ended(VOCABULARY)
    rollouts = rollout_statistics(rewards_PG, completions, ended_N) | {"tokens_per_s": 1.0} | Hits({}).totals()
    of_a_filter = {"rollout/drawn_per_kept", "rollout/unsolved_prompts"}
    of_a_critic = {"grpo/critic_loss", "grpo/critic_explained"} if advantage != "critic" else set()
    expected = {metric.name for metric in GRPO.metrics} - of_a_filter - of_a_critic
    assert set(named(grpo=learning, rollout=rollouts)) == expected
    assert torch.isfinite(torch.tensor(list(learning.values()))).all()


# Grafana


def test_the_dashboard_in_the_repository_is_made_from_the_metrics():
    """Run ``python -m rayexp.telemetry.grafana`` if this fails."""
    assert grafana.FILE.read_text() == grafana.text()


def test_the_dashboard_draws_every_metric_in_its_unit():
    panels = [panel for panel in grafana.dashboard()["panels"] if panel["type"] == "timeseries"]
    assert [panel["title"] for panel in panels] == list(METRICS)
    for panel in panels:
        metric = METRICS[panel["title"]]
        (target,) = panel["targets"]
        assert re.search(rf"\bray_{metric.exported}\b", target["expr"])
        assert panel["fieldConfig"]["defaults"]["unit"]
        if not metric.name.startswith(("sweep/", "result/")):
            assert 'stage=~"$stage"' in target["expr"]


def test_panels_lie_side_by_side():
    taken = set()
    for panel in grafana.dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells
        assert max(x for x, _ in cells) < grafana.COLUMNS
        taken |= cells


def test_variables_are_what_the_queries_use():
    text = grafana.text()
    variables = {variable["name"] for variable in json.loads(text)["templating"]["list"]}
    assert variables == {"datasource", "study", "stage"}
    assert set(re.findall(r"\$\{?(\w+)", text)) == variables | {"__all"}


def test_compose_mounts_what_is_there():
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"]), "an image without a version of its own"
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (FOLDER / source).exists(), volume
    assert "--config.file=/etc/prometheus/prometheus.yml" in services["prometheus"]["command"]


def test_provisioning_points_at_what_compose_mounts():
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    (source,) = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    listen = next(word for word in services["prometheus"]["command"] if "listen-address" in word).partition("=")[2]
    assert source["url"] == f"http://{listen}"
    providers = yaml.safe_load((FOLDER / "provisioning/dashboards/dashboards.yaml").read_text())["providers"]
    mounts = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    for provider in providers:
        path = provider["options"]["path"]
        assert any(mount == path or mount.startswith(f"{path}/") or path.startswith(f"{mount}/") for mount in mounts)
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    (file,) = job["file_sd_configs"][0]["files"]
    assert any(file.startswith(f"{volume.split(':')[1]}/") for volume in services["prometheus"]["volumes"])
