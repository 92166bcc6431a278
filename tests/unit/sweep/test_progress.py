"""The state of a running sweep and its two views: long sweeps, narrow terminals, many stages, failures."""

import csv
import io
import pickle
from pathlib import Path
from unittest import mock

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from rich.console import Console

from rayexp.config import RunConfig
from rayexp.errors import StageError
from rayexp.stages import GRPO, Pretrain
from rayexp.studies import STUDIES, Grid
from rayexp.studies.presets import SCALES
from rayexp.sweep import display
from rayexp.sweep.cost import CostModel
from rayexp.sweep.failures import root_cause
from rayexp.sweep.plan import Plan
from rayexp.sweep.progress import Progress
from rayexp.sweep.scheduler import TuneEvents
from rayexp.sweep.trackers import Trackers
from rayexp.telemetry.metric_log import progress_event


class Clock:
    """A clock that tests advance."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("rayexp.sweep.display.time.monotonic", clock)
    return clock


def progress_of(clock, seeds=(0,), at_once=1):
    grid = Grid((0.0, 0.5), (0.1,), seeds)
    return Progress(Plan.of("demo", STUDIES["demo"](SCALES["toy"], grid), ()), estimated, at_once, clock)


def estimated(stage):
    """Return the estimated seconds of a stage. The times in the tests below are multiples of them."""
    return stage.flops / 1e8


def trials_of(progress, pool):
    return [trial for trial in progress.plan.trials if trial.pool == pool]


def spoken(stage, step, **numbers):
    """Return a report in the form in which Tune passes it on."""
    group = "rollout" if isinstance(stage, GRPO) else "pretrain"
    return progress_event(stage, step, **{group: numbers}) if numbers else progress_event(stage, step)


def test_counts_follow_what_happens(clock):
    progress = progress_of(clock)
    first, second = trials_of(progress, "train")
    assert progress.counts == {"done": 0, "running": 0, "waiting": 4, "elsewhere": 0, "failed": 0, "blocked": 0}
    progress.start(first.id)
    progress.note(second.id, "elsewhere")
    assert progress.counts["running"] == progress.counts["elsewhere"] == 1
    progress.end(first.id, "failed", "the loss is nan")
    assert progress.counts == {"done": 0, "running": 0, "waiting": 1, "elsewhere": 1, "failed": 1, "blocked": 1}
    progress.note(second.id, "done")
    progress.start(trials_of(progress, "rollout")[1].id)
    progress.end(trials_of(progress, "rollout")[1].id, "done")
    assert progress.counts == {"done": 2, "running": 0, "waiting": 0, "elsewhere": 0, "failed": 1, "blocked": 1}
    assert progress.remaining_s == 0, "what failed or is blocked takes no time"


def test_the_end_of_a_stage_is_estimated_from_its_steps(clock):
    progress = progress_of(clock)
    trial = trials_of(progress, "train")[0]
    pretrain, sft = trial.stages[0], next(stage for stage in trial.stages if stage.id.startswith("sft"))
    progress.start(trial.id)
    run = progress.running[trial.id]
    assert progress.stage_remaining_s(run) is None
    clock.now += 30  # a start-up that is no measure of the pace
    progress.report(trial.id, spoken(pretrain, 2))
    assert progress.stage_remaining_s(run) is None
    clock.now += 4
    progress.report(trial.id, spoken(pretrain, 4))
    assert progress.stage_remaining_s(run) == 8  # 4 of 8 steps, at 2 s
    clock.now += 3
    assert progress.stage_remaining_s(run) == 5
    clock.now += 30
    assert progress.stage_remaining_s(run) == 0, "never less than nothing"
    progress.report(trial.id, spoken(sft, 1))
    assert progress.stage_remaining_s(run) is None, "the pace of another stage says nothing"


def seconds(trials):
    return sum(estimated(stage) for trial in trials for stage in trial.stages)


def test_the_end_of_the_sweep_is_estimated_before_anything_was_seen(clock):
    progress = progress_of(clock)
    assert progress.remaining_s == pytest.approx(seconds(progress.plan.trials))
    progress.start(progress.plan.trials[0].id)
    clock.now += 20
    assert progress.remaining_s == pytest.approx(seconds(progress.plan.trials)), "a start tells nothing"


def test_what_was_seen_of_a_kind_corrects_what_was_estimated_of_it(clock):
    progress = progress_of(clock)
    (first, second), (one, other) = trials_of(progress, "train"), trials_of(progress, "rollout")
    progress.start(first.id)
    clock.now += 2 * seconds([first])
    progress.end(first.id, "done")
    assert progress.remaining_s == pytest.approx(2 * seconds([second, one, other])), "GRPO was never seen: it borrows"
    progress.start(one.id)
    clock.now += 1000
    progress.report(one.id, spoken(one.stages[0], 1))
    assert progress.remaining_s == pytest.approx(2 * (seconds([second, one, other]) - estimated(one.stages[0]) / 3))
    clock.now += estimated(one.stages[0])
    progress.report(one.id, spoken(one.stages[0], 2))  # a third of the work in three thirds of its time
    left = seconds([one, other]) - 2 / 3 * estimated(one.stages[0])
    assert progress.remaining_s == pytest.approx(2 * seconds([second]) + 3 * left)
    clock.now += 5 * (seconds([one]) - estimated(one.stages[0]) / 3) - estimated(one.stages[0])
    progress.end(one.id, "done")
    assert progress.remaining_s == pytest.approx(2 * seconds([second]) + 5 * seconds([other])), "but for its start"
    progress.start(second.id)
    pretrain = second.stages[0]
    assert isinstance(pretrain, Pretrain)
    progress.report(second.id, spoken(pretrain, pretrain.steps))
    left = seconds([second]) - estimated(pretrain)
    assert progress.remaining_s == pytest.approx(2 * left + 5 * seconds([other]))
    progress.end(second.id, "failed", "why")
    assert progress.remaining_s == 0, "its GRPO trial is blocked"


def recorded():
    """Yield the events of a whole ``make demo`` on two busy cores: second, event, label of a stage (a trial's first),
    step."""
    with (Path(__file__).parents[2] / "fixtures/demo_log.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            yield float(row["second"]), row["event"], row["stage"], int(row["step"] or 0)


def test_what_is_left_of_the_demo_is_never_told_below_a_tenth_nor_above_four_times_of_it(clock):
    """Replay a run in which the estimate was once 22 s, nine minutes before the end, because no GRPO trial had run."""
    events = list(recorded())
    end = events[-1][0]
    plan = Plan.of("demo", STUDIES["demo"](SCALES["tiny"], Grid((0.0, 0.003, 0.01, 0.3), (0.1, 1.0), (0, 1, 2))), ())
    estimates = CostModel(RunConfig(device="cpu"))
    trials = {trial.label: trial for trial in plan.trials}
    stages = {stage.label: stage for stage in plan.stages}
    home = {stage.label: trial.id for trial in plan.trials for stage in trial.stages}
    started = clock.now
    progress = Progress(plan, lambda stage: estimates.cost(stage).seconds, 2, clock)
    told = []
    for second, event, label, step in events:
        while clock.now - started < second - 1:  # a view reads it in between, too
            told.append((end - (clock.now - started), progress.remaining_s))
            clock.now += 1
        clock.now = started + second
        match event:
            case "start":
                progress.start(trials[label].id)
            case "report":
                progress.report(home[label], spoken(stages[label], step))
            case "end":
                progress.end(trials[label].id, "done")
        told.append((end - second, progress.remaining_s))
    assert all(true / 10 <= left for true, left in told)
    assert all(left <= 4 * true for true, left in told if true > 60)
    assert progress.counts["done"] == len(plan.trials)
    assert progress.remaining_s == 0


@pytest.mark.parametrize(("slower", "borrowed"), [(1.5, 1.5), (100, 2), (0.75, 0.75), (0.01, 0.5)])
def test_a_kind_that_was_never_seen_borrows_within_limits(clock, slower, borrowed):
    progress = progress_of(clock)
    for trial in trials_of(progress, "train"):
        progress.start(trial.id)
        clock.now += slower * seconds([trial])
        progress.end(trial.id, "done")
    assert progress.remaining_s == pytest.approx(borrowed * seconds(trials_of(progress, "rollout")))


@pytest.mark.parametrize(("at_once", "expected"), [(1, 2 * 20 + 4 * 40), (2, 20 + 2 * 40), (100, 20 + 40)])
def test_trials_at_once_shorten_a_sweep_down_to_its_longest_chain(clock, at_once, expected):
    progress = progress_of(clock, seeds=(0, 1, 2), at_once=at_once)
    supervised, grpo = trials_of(progress, "train"), trials_of(progress, "rollout")
    for trial, seconds in [*((t, 20) for t in supervised[:4]), *((t, 40) for t in grpo[:2])]:
        progress.start(trial.id)
        clock.now += seconds
        progress.end(trial.id, "done")
    assert progress.remaining_s == pytest.approx(expected)


def test_a_trial_that_was_given_up_waits_again(clock):
    progress = progress_of(clock)
    trial = progress.plan.trials[0]
    for _ in range(2):
        progress.start(trial.id)
        assert progress.counts["running"] == 1
        progress.end(trial.id, "waiting", "its lease is lost")
        assert progress.counts["waiting"] == 4


# Views


def lines_of(progress, capsys):
    view = display.LogDisplay(progress)

    def said():
        view()
        return capsys.readouterr().out.splitlines()

    return said


def test_lines_say_when_trials_start_and_end_and_little_in_between(clock, capsys):
    progress = progress_of(clock, seeds=tuple(range(50)), at_once=100)
    said = lines_of(progress, capsys)
    (first,) = said()
    assert "200 trials to run, up to 100 at once; about " in first
    running = trials_of(progress, "train")
    for trial in running:
        progress.start(trial.id)
    assert [line.split()[1:] for line in said()] == [["start", trial.label] for trial in running]
    heard = []
    for step in range(1, 9):
        for trial in running:
            progress.report(trial.id, spoken(trial.stages[0], step, **{"id/loss": 2.0 / step}))
        clock.now += 60
        heard += said()
    assert len(heard) == 8, "a hundred trials that run for minutes are no flood"
    assert len({line.split()[1] for line in heard}) == 8, "each line is of another stage"
    assert "step 1/8  id loss 2" in heard[0]
    assert "step 8/8  id loss 0.25" in heard[-1]
    progress.end(running[0].id, "done")
    progress.end(running[1].id, "failed", "pretrain, step 3: the loss is nan")
    first, second = said()
    assert first.split()[1] == "done"
    assert second.endswith("the loss is nan")
    assert "(1 of 200 trials, about " in second
    assert said() == []


def drawn(progress, columns, lines):
    shown = io.StringIO()
    console = Console(file=shown, width=columns, height=lines, force_terminal=True, color_system=None)
    console.print(display.picture(progress, console.size))
    return shown.getvalue().splitlines()


@pytest.mark.parametrize("columns", [40, 80, 140])
@pytest.mark.parametrize("lines", [12, 24, 60])
def test_a_screen_fits_any_terminal(clock, columns, lines):
    progress = progress_of(clock, seeds=tuple(range(60)), at_once=100)
    for trial in trials_of(progress, "train"):
        progress.start(trial.id)
        progress.report(trial.id, spoken(trial.stages[0], 3, **{"id/loss": 1.25, "tokens_per_s": 123456.0}))
    for trial in trials_of(progress, "train")[:30]:
        progress.end(trial.id, "done")
    for trial in trials_of(progress, "train")[30:33]:
        progress.end(trial.id, "failed", "the loss is not finite, and there is a lot to be said about that " * 5)
    screen = drawn(progress, columns, lines)
    assert len(screen) <= lines
    assert max(map(len, screen)) <= columns
    text = "\n".join(screen)
    assert "demo  30 of 240 trials" in text
    assert text.count("FAILED") == 3, "failures are shown before anything else"
    assert "3/8" in text
    assert "more that run" in text


def test_a_screen_shows_what_a_person_asks_for(clock):
    progress = progress_of(clock)
    trial = trials_of(progress, "rollout")[0]
    progress.start(trial.id)
    assert "starting" in "\n".join(drawn(progress, 80, 24))
    for step in (1, 2):
        clock.now += 75
        progress.report(trial.id, spoken(trial.stages[0], step, reward=0.125, tokens_per_s=3210.4))
    line = next(line for line in drawn(progress, 100, 24) if "2/3" in line)
    assert line.split() == [trial.stages[0].label, "2/3", "reward", "0.125", "3,210", "1:15"]


@pytest.mark.parametrize(("expected", "words"), [(0.31415, "0.31"), (4e-6, "4e-06"), (1234.5, "1,234")])
def test_right_completions_stand_beside_those_that_were_to_be_expected(clock, capsys, expected, words):
    progress = progress_of(clock)
    trial = trials_of(progress, "rollout")[0]
    progress.start(trial.id)
    view = display.LogDisplay(progress)
    view()
    told = {"rollout/drawn": 8000.0, "rollout/right": 2.0, "rollout/expected_right": expected}
    progress.report(trial.id, spoken(trial.stages[0], 1) | told)
    with mock.patch.object(display, "SECONDS_BETWEEN_LINES", 0.0):
        view()
    assert capsys.readouterr().out.endswith(f"; 2 of 8,000 rollouts right, {words} expected at this Q\n")
    assert "2 of 8,000" not in "\n".join(drawn(progress, 100, 24))
    line = next(line for line in drawn(progress, 140, 24) if "1/3" in line)
    assert f"2 of 8,000 ({words})" in line


def test_the_view_is_chosen_by_where_the_output_goes(clock):
    progress = progress_of(clock)
    with display.open_display(Console(file=io.StringIO()), progress) as view:
        assert isinstance(view, display.LogDisplay)
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80, height=24)
    with display.open_display(terminal, progress) as view:
        assert isinstance(view, display.LiveDisplay)
        progress.start(progress.plan.trials[0].id)
        clock.now += 1
        view()
        assert "running 1" in shown.getvalue()


def test_the_terminal_is_given_back_after_ctrl_c(clock):
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80, height=24)
    with pytest.raises(KeyboardInterrupt), display.open_display(terminal, progress_of(clock)):
        raise KeyboardInterrupt
    written = shown.getvalue()
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is still hidden"


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (0, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_clock(seconds, text):
    assert display.clock(seconds) == text


class TuneTrial:
    """The attributes of Tune's trial that ``TuneEvents`` reads."""

    local_path = "a-folder"

    def __init__(self, trial, last_result=None, pickled_error_file=None, error_file=None):
        self.config = {"trial": trial.id}
        self.last_result = last_result
        self.pickled_error_file = pickled_error_file
        self.error_file = error_file


def events_of(progress, views=()):
    return TuneEvents(progress, views, Trackers())


def test_tunes_events_are_told(clock):
    progress = progress_of(clock)
    seen = []
    watch = events_of(progress, [lambda: seen.append(progress.counts["done"])])
    first, second = trials_of(progress, "train")
    for trial, last in ((first, {"step": 8}), (second, {"step": 0, "failed": "it is broken"})):
        watch.on_trial_start(0, [], TuneTrial(trial))
        watch.on_trial_result(0, [], TuneTrial(trial), spoken(trial.stages[0], 1))
        watch.on_trial_result(0, [], TuneTrial(trial), last)
        watch.on_trial_complete(0, [], TuneTrial(trial, last))
        watch.on_step_end(0, [])
    assert [ended.state for ended in progress.ended] == ["done", "failed"]
    assert progress.ended[1].why == "it is broken"
    assert seen == [1, 1]


#: Ray's message about a process that could not import its code, shortened.
NO_PACKAGE = """The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
\tpid: 31599
\tip: 192.0.2.2
The actor is dead because its worker process has died. Worker exit detail: Traceback (most recent call last):
  File "function_manager.py", line 657, in temporary_actor_method
RuntimeError: The actor with name ImplicitFunc failed to import on the worker. This may be because:

Traceback (most recent call last):
ModuleNotFoundError: No module named 'rayexp'

An unexpected internal error occurred while the worker was executing a task."""
NODE_LOST = "The actor died unexpectedly before finishing this task.\n\tip: 192.0.2.2\nIts node has died."


def died(text):
    error = ActorDiedError()
    error.error_msg = text
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (died(NO_PACKAGE), "its process died on the node 192.0.2.2: ModuleNotFoundError: No module named 'rayexp'"),
        (died(NODE_LOST), "its process died on the node 192.0.2.2: Its node has died."),
        (died(""), "its process died"),
        (RayTaskError("f", "", StageError("a/sft: it broke"), "", 1, "192.0.2.2"), "a/sft: it broke"),
        (
            RayTaskError("f", "", ImportError("no torch"), "", 1, "192.0.2.2"),
            "ImportError: no torch (on the node 192.0.2.2)",
        ),
    ],
)
def test_an_error_of_rays_is_told_in_one_sentence(error, words):
    assert root_cause(error) == words


@pytest.mark.parametrize("kept", ["as an object", "as text", "nowhere", "where nothing is any more"])
def test_a_trial_whose_process_never_starts_fails_with_its_sentence_and_the_rest_goes_on(clock, tmp_path, kept):
    progress = progress_of(clock)
    watch = events_of(progress)
    first, second = trials_of(progress, "train")
    (tmp_path / "error.pkl").write_bytes(pickle.dumps(died(NO_PACKAGE)))
    (tmp_path / "error.txt").write_text(f"Failure # 1 (occurred at noon)\n{NO_PACKAGE}\n")
    files = {
        "as an object": {"pickled_error_file": str(tmp_path / "error.pkl")},
        "as text": {"error_file": str(tmp_path / "error.txt")},
        "nowhere": {},
        "where nothing is any more": {"pickled_error_file": str(tmp_path / "a"), "error_file": str(tmp_path / "b")},
    }[kept]
    watch.on_trial_error(0, [], TuneTrial(first, **files))
    watch.on_trial_result(0, [], TuneTrial(first), spoken(first.stages[0], 1))
    watch.on_trial_start(0, [], TuneTrial(second))
    watch.on_trial_complete(0, [], TuneTrial(second, {"step": 8}))
    assert progress.counts == {"done": 1, "running": 0, "waiting": 1, "elsewhere": 0, "failed": 1, "blocked": 1}
    assert "No module named 'rayexp'" in progress.ended[0].why or kept.startswith("where") or kept == "nowhere"
    assert progress.ended[0].why.startswith("its process died")


def test_a_trial_that_was_done_before_it_started_says_nothing_about_the_pace(clock):
    progress = progress_of(clock)
    watch = events_of(progress)
    watch.on_trial_complete(0, [], TuneTrial(trials_of(progress, "train")[0], {"step": 8}))
    assert progress.counts["done"] == 1
    assert progress.remaining_s == pytest.approx(seconds(progress.plan.trials[1:]))
