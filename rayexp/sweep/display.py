"""The view of a running sweep: a live screen on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayexp.formatting import one_line
from rayexp.sweep.progress import Ended, Progress, Running

#: Metrics of a stage to show, by the end of their names, and their names in a line.
SHOWN = {"id/loss": "id loss", "ood/loss": "ood loss", "rollout/reward": "reward", "grpo/kl": "kl"}
SPEED = "tokens_per_s"
WORDS = {"done": "done", "failed": "FAILED", "waiting": "lease lost"}
COLOURS = {"done": "green", "running": "cyan", "failed": "bold red", "blocked": "red"}
SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_FRAMES = 0.25
SHARE_OF_THE_DRIVER = 0.05  # of its time, for frames: with ten thousand trials a frame takes 0.1 s
LAST_ENDED = 5
#: Columns about a running stage, and the least width of a terminal that shows each.
COLUMNS = {"step": 0, "loss/reward": 60, "kl": 100, "right (expected)": 120, "tokens/s": 70, "left": 0}


@contextmanager
def open_display(console: Console, progress: Progress) -> Iterator[Callable[[], None]]:
    """Give the view for this kind of standard output; call it often."""
    if console.is_terminal and not console.is_dumb_terminal:
        with LiveDisplay(console, progress) as screen:
            yield screen
    else:
        yield LogDisplay(progress)


class LogDisplay:
    """Plain lines, for the log of a job: how much there is to do, and when a trial starts and ends; in between, now and
    then one about the stage that had none for longest. So a log grows with trials and with hours, not with trials times
    hours."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._spoken: dict[str, tuple[float, float]] = {}  # by trial: since when it runs, when it last had a line
        self._last = time.monotonic()
        self._ended = 0
        at_once = f"up to {progress.at_once} at once" if progress.at_once > 1 else "one after the other"
        trials = f"{len(progress.plan.trials)} trials to run, {at_once}"
        self._say(f"{trials}; about {left(progress.remaining_s)} (first estimate)")

    def __call__(self) -> None:
        now = time.monotonic()
        for ended in self._progress.ended[self._ended :]:
            self._spoken.pop(ended.trial.id, None)
            self._say(self._end(ended))
        self._ended = len(self._progress.ended)
        for run in self._progress.running.values():
            if self._spoken.get(run.trial.id, (0.0, 0.0))[0] != run.since:
                self._spoken[run.trial.id] = (run.since, now)
                self._say(f"start     {run.trial.label}")
        heard = [run for run in self._progress.running.values() if run.steps]
        if heard and now - self._last >= SECONDS_BETWEEN_LINES:
            run = min(heard, key=lambda run: self._spoken[run.trial.id][1])
            self._spoken[run.trial.id] = (run.since, now)
            self._last = now
            self._say(f"          {self._stage(run)}")

    def _end(self, ended: Ended) -> str:
        counts = self._progress.counts
        so_far = f"{counts['done']} of {sum(counts.values())} trials, about {left(self._progress.remaining_s)}"
        why = f": {one_line(ended.why)}" if ended.why else ""
        return f"{WORDS[ended.state]:<9} {ended.trial.label} in {ended.took_s:.0f} s ({so_far}){why}"

    def _stage(self, run: Running) -> str:
        numbers = "  ".join(f"{name} {value}" for name, value in shown(run).items())
        remaining = self._progress.stage_remaining_s(run)
        eta = "" if remaining is None else f"  {left(remaining)}"
        found = hits(run, "; {right} of {drawn} rollouts right, {expected} expected at this Q")
        return f"{self._progress.plan.labels[run.stage.id]}  step {run.step}/{run.steps}  {numbers}{eta}{found}"

    def _say(self, text: str) -> None:
        print(f"{clock(self._progress.elapsed_s):>8}  {text}", flush=True)


class LiveDisplay:
    """A live screen as large as the terminal. Other output appears above it."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._due = 0.0
        # Drawn in the caller's thread, so that no frame shows a Progress while it changes.
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> "LiveDisplay":
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._draw()
        self._live.stop()

    def __call__(self) -> None:
        if (began := time.monotonic()) >= self._due:
            self._draw()
            ended = time.monotonic()
            self._due = ended + max(SECONDS_BETWEEN_FRAMES, (ended - began) / SHARE_OF_THE_DRIVER)

    def _draw(self) -> None:
        self._live.update(picture(self._progress, self._console.size), refresh=True)


def picture(progress: Progress, size: tuple[int, int]) -> Group:
    """Draw the state of a sweep for a terminal of ``size`` (columns, lines)."""
    columns, lines = size
    failures = [ended for ended in progress.ended if ended.state == "failed"][-LAST_ENDED:]
    others = [ended for ended in progress.ended if ended.state != "failed"]
    # Failures come first, then what runs, then what was done last; five lines are for the head and for gaps.
    room = max(1, lines - 6 - len(failures))
    running = list(progress.running.values())
    shown_runs = running if len(running) <= room else running[: room - 1]
    others = others[::-1][: max(0, min(LAST_ENDED, room - len(shown_runs) - 1))][::-1]
    parts = [*_head(progress, columns), Text(), _runs(progress, shown_runs, columns)]
    if hidden := len(running) - len(shown_runs):
        parts.append(Text(f"and {hidden} more that run", style="dim"))
    if failures or others:
        parts += [Text(), *(_ended(ended, columns) for ended in [*others, *failures])]
    return Group(*parts)


def _head(progress: Progress, columns: int) -> list[Text | Table]:
    counts = progress.counts
    total = sum(counts.values())
    name = Text.assemble((progress.plan.study, "bold"), f"  {counts['done']} of {total} trials")
    name.append(f", about {left(progress.remaining_s)} ({clock(progress.elapsed_s)} so far)")
    bar = Table.grid()  # a bar by itself ends no line
    bar.add_row(ProgressBar(total=max(1, total), completed=counts["done"], width=min(columns, 60)))
    states = Text("  ").join(
        Text(f"{state} {count}", style=COLOURS.get(state, "default")) for state, count in counts.items() if count
    )
    for text in (name, states):
        text.truncate(columns, overflow="ellipsis")
    return [name, bar, states]


def _runs(progress: Progress, running: list[Running], columns: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=False)
    names = [name for name, least in COLUMNS.items() if columns >= least]
    cells = [_cells(progress, run, names) for run in running]
    taken = sum(2 + max(len(row[i]) for row in [names, *cells]) for i in range(len(names)))
    table.add_column("stage", no_wrap=True)
    for name in names:
        table.add_column(name, no_wrap=True, justify="right")
    for run, row in zip(running, cells, strict=True):
        table.add_row(Text(one_line(progress.plan.labels[run.stage.id], max(12, columns - taken - 2))), *row)
    return table


def _cells(progress: Progress, run: Running, names: list[str]) -> list[str]:
    if not run.steps:
        return ["starting", *("" for _ in names[1:])]
    numbers = shown(run)
    first = next((f"{name} {number}" for name, number in numbers.items() if name != "kl"), "")
    every = {
        "step": f"{run.step}/{run.steps}",
        "loss/reward": first,
        "kl": numbers.get("kl", ""),
        "right (expected)": hits(run, "{right} of {drawn} ({expected})"),
        "tokens/s": numbers.get("tokens/s", ""),
        "left": clock(progress.stage_remaining_s(run)),
    }
    return [every[name] for name in names]


def _ended(ended: Ended, columns: int) -> Text:
    why = f": {one_line(ended.why)}" if ended.why else ""
    text = Text(f"{WORDS[ended.state]:<9} ", style=COLOURS.get(ended.state, "yellow"))
    text.append(f"{ended.trial.label} in {clock(ended.took_s)}{why}", style="default")
    text.truncate(columns, overflow="ellipsis")
    return text


def shown(run: Running) -> dict[str, str]:
    """Return the most important numbers of a stage, by short name."""
    found = {}
    for ending, name in {**SHOWN, SPEED: "tokens/s"}.items():
        value = next((value for full, value in run.numbers.items() if full.endswith(ending)), None)
        if value is not None:
            found[name] = f"{value:,.0f}" if ending == SPEED else f"{value:.3g}"
    return found


def hits(run: Running, words: str) -> str:
    """Fill in ``words`` with the number of completions that a stage has drawn so far, of right ones, and of expected
    right ones. Return nothing for a stage that draws none."""
    drawn, right, expected = (run.numbers.get(f"rollout/{name}") for name in ("drawn", "right", "expected_right"))
    if drawn is None or right is None or expected is None:
        return ""
    least = "" if run.stage.root.task.unique else "at least "
    many = f"{expected:,.0f}" if expected >= 100 else f"{expected:.2g}"
    return words.format(drawn=f"{drawn:,.0f}", right=f"{right:,.0f}", expected=f"{least}{many}")


def clock(seconds: float | None) -> str:
    """Return a time such as ``1:02:03`` or ``2:03``; a dash if it is unknown."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def left(seconds: float) -> str:
    """Say how long something will still take."""
    return f"{clock(seconds)} left"


def console() -> Console:
    """Return the console of this process's standard output."""
    return Console(file=sys.stdout, highlight=False)
