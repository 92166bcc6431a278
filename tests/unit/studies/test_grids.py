"""A study's own ratios, betas and seeds, which the user's replace."""

import pytest

from rayexp.experiment import GRID, Experiment
from rayexp.stages import GRPO
from rayexp.studies import STUDIES, all_stages, usual_grid
from rayexp.studies.grid import Grid
from rayexp.studies.presets import SCALES
from rayexp.studies.scaling import decoders
from rayexp.tasks.strings import StringTask


def test_the_demo_has_its_own_grid_at_the_scale_it_was_found_for() -> None:
    tiny, paper = (Experiment(study="demo", scale=scale).resolved() for scale in ("tiny", "paper"))
    assert (tiny.ood_ratios, tiny.kl_betas, tiny.seeds) == ((0.0, 0.0075, 0.3), (0.1,), (0, 1, 2, 3))
    assert paper.ood_ratios == SCALES["paper"].ood_ratios
    stages = Experiment(study="demo", scale="tiny", seeds=(7,), kl_betas=(0.5, 1.0)).stages()
    assert {stage.chain_seed for stage in stages} == {7}
    assert {stage.root.ood_ratio for stage in stages} == {0.0, 0.0075, 0.3}
    assert {stage.kl_beta for stage in stages if isinstance(stage, GRPO)} == {0.5, 1.0}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_whole_grid_at_every_scale(name: str, scale: str) -> None:
    grid = usual_grid(name, SCALES[scale])
    assert tuple(grid) == GRID
    assert all(grid.values())
    assert Experiment(study=name, scale=scale).stages()


@pytest.mark.parametrize("scale", SCALES)
def test_scaling_is_by_depth_and_by_width_with_heads_of_one_size(scale: str) -> None:
    found = decoders(SCALES[scale], StringTask(axis="composition"))
    assert len(set(found)) == len(found)
    assert len({decoder.width // decoder.heads for decoder in found}) == 1
    assert len({decoder.ff_width / decoder.width for decoder in found}) == 1
    assert len({decoder.layers for decoder in found}) > 1


@pytest.mark.parametrize(
    ("scale", "sampler"), [("toy", "torch"), ("tiny", "torch"), ("small", "vllm"), ("paper", "vllm")]
)
def test_completions_are_drawn_by_what_is_fast_at_the_scale(scale: str, sampler: str) -> None:
    """Expect vLLM in the demo at every scale, because the demo shows the machinery of a cluster."""
    grid = Grid((0.5,), (0.1,), (0,))
    drawn = {
        name: {stage.sampler for stage in all_stages(STUDIES[name](SCALES[scale], grid)) if isinstance(stage, GRPO)}
        for name in ("composition", "demo")
    }
    assert drawn == {"composition": {sampler}, "demo": {"vllm"}}
