"""docs/findings.md: the text of ``page.md``, with numbers from the committed tables.

The template repeats no number by hand. It names the tables' numbers, which are filled in.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from findings.collect import FOLDER, RUNS, table
from findings.runs import BY_NAME
from rayexp.formatting import number
from rayexp.reports.arms import ROLE_NAMES, percent
from rayexp.reports.checks import UNDECIDED

PAGE = FOLDER.parent / "findings.md"


def written() -> str:
    """Return the page with the numbers of the committed tables."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    studies = {name: Study(name) for name in BY_NAME if (FOLDER / f"{name}.csv").exists()}
    return environment.get_template("page.md").render(studies=studies, missing=sorted(set(BY_NAME) - set(studies)))


class Study:
    """The committed tables of one study, and their texts for the page."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows, self.claims = table(name), table(f"{name}-claims")
        self.run = pd.read_csv(RUNS).set_index("study").loc[name].to_dict()

    @property
    def command(self) -> str:
        return " ".join(("rayexp run", *BY_NAME[self.name].arguments))

    @property
    def cost(self) -> str:
        first, last, hours = self.run["from"], self.run["to"], self.run["core_hours"]
        days = first if first == last else f"{first} to {last}"
        return f"{self.run['stages']} stages, {self.run['seeds']} seeds, {hours:.1f} core-hours, {days}"

    @property
    def gains(self) -> dict[str, str]:
        """Return the gains on OOD cells of GRPO on OOD prompts, at the smallest beta above 0: those at the lowest ratio
        (``none``), the best and the highest, with intervals, and the best ratio."""
        rows = self.masses("ood", "ood")
        beta = rows[rows["kl_beta"] > 0]["kl_beta"].min()
        found = rows[rows["kl_beta"] == beta].sort_values("ood_ratio").to_dict("records")
        best = max(found, key=lambda row: row["gain"])
        places = {"none": found[0], "best": best, "highest": found[-1]}
        shown = {place: _interval(row, "gain") for place, row in places.items()}
        return shown | {"ratio": percent(best["ood_ratio"]), "beta": number(beta)}

    def gain(self, prompts: str, ratio: float) -> str:
        """Return the gain on the cells of GRPO's prompts, at one OOD ratio and the smallest beta above 0."""
        rows = self.masses(prompts, prompts)
        rows = rows[(rows["kl_beta"] > 0) & (rows["ood_ratio"] == ratio)]
        return _interval(rows.sort_values("kl_beta").to_dict("records")[0], "gain")

    def masses(self, prompts: str, cells: str) -> pd.DataFrame:
        """Return the rows for GRPO's prompts of one role, and measured cells of one role."""
        return self.rows[(self.rows["prompt_role"] == prompts) & (self.rows["role"] == cells)]

    def table(self, prompts: str = "ood", cells: str = "ood") -> str:
        """Return the mass before and after GRPO, with intervals, by condition, OOD ratio and beta, in Markdown."""
        rows = self.masses(prompts, cells)
        betas = sorted(rows["kl_beta"].dropna().unique())
        several = rows["condition"].nunique() > 1
        head = ["OOD (%)", "Q before", *(f"gain, β = {number(beta)}" for beta in betas), "seeds"]
        lines = [["condition"] * several + head, ["---"] * several + ["---:"] * len(head)]
        for condition in rows["condition"].unique().tolist():
            of_condition = rows[rows["condition"] == condition]
            for ratio in sorted(of_condition["ood_ratio"].unique().tolist()):
                here = of_condition[of_condition["ood_ratio"] == ratio].to_dict("records")
                (before,) = [row for row in here if pd.isna(row["kl_beta"])]
                gains = {row["kl_beta"]: _interval(row, "gain") for row in here}
                by_beta = [gains.get(beta, "") for beta in betas]
                about = [condition] * several + [percent(ratio), _interval(before, "q")]
                lines.append([*about, *by_beta, str(before["n_seeds"])])
        return _markdown(lines)

    def cells(self, prompts: str, role: str) -> str:
        """Return the mass of each cell of a role before and after GRPO at the smallest beta above 0, by OOD ratio, in
        Markdown."""
        rows = table(f"{self.name}-cells")
        rows = rows[(rows["prompt_role"] == prompts) & (rows["role"] == role) & (rows["kl_beta"] > 0)]
        rows = rows[rows["kl_beta"] == rows["kl_beta"].min()]
        ratios = sorted(rows["ood_ratio"].unique().tolist())
        lines = [["cell", *(f"{percent(ratio)} % OOD" for ratio in ratios)], ["---"] + ["---:"] * len(ratios)]
        for cell in sorted(rows["cell"].unique().tolist()):
            here = rows[rows["cell"] == cell].set_index("ood_ratio")
            pairs = [here.loc[ratio, ["before", "after"]] for ratio in ratios]
            lines.append([cell, *(f"{before:.2g} → {after:.2g}" for before, after in pairs)])
        return _markdown(lines)

    def bands(self) -> str:
        """Return the gain of each condition in bands of mean Q before GRPO, in Markdown, with its interval, and with
        number, size and ID loss after pretraining of the decoders."""
        rows = table(f"{self.name}-bands")
        bands = rows[["q_from", "q_to"]].drop_duplicates().sort_values("q_from")
        ends = [(low, high) for low, high in bands.itertuples(index=False)]
        head = ["condition", "parameters", "ID loss", *(f"Q {number(low)} to {number(high)}" for low, high in ends)]
        lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
        for condition in rows["condition"].unique().tolist():
            here = rows[rows["condition"] == condition].to_dict("records")
            gains = {row["q_from"]: f"{_interval(row, 'gain')}, {row['decoders']}" for row in here}
            about = [condition, f"{here[0]['parameters'] / 1e6:.2g}M", f"{here[0]['id_loss']:.4g}"]
            lines.append([*about, *(gains.get(low, "") for low, _ in ends)])
        return _markdown(lines)

    @property
    def predicts(self) -> bool:
        """Return whether its conditions are compared with their fixed points."""
        return (FOLDER / f"{self.name}-predictions.csv").exists()

    def predictions(self, beta: float) -> str:
        """Return mean P after GRPO and the mean fixed point of each condition at a beta, and the share of the way from
        Q to it that GRPO has gone, with its range over seeds, by OOD ratio, in Markdown."""
        rows = self._predicted(beta)
        ratios = sorted(rows["ood_ratio"].unique().tolist())
        head = [
            "condition",
            *(f"{percent(ratio)} % OOD: {of}" for ratio in ratios for of in ("P", "fixed point", "way")),
        ]
        lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
        for condition, here in rows.groupby("condition", sort=False):
            cells = [str(condition)]
            for row in here.sort_values("ood_ratio").to_dict("records"):
                way = f"{row['way']:.2f} ({row['way_lowest']:.2f} to {row['way_highest']:.2f})"
                cells += [_interval(row, "q"), f"{row['fixed_point']:.2g}", way]
            lines.append(cells)
        return _markdown(lines)

    def ways(self, beta: float, ratio: float) -> str:
        """Return the lowest and the highest share of the way at one place, over all conditions."""
        rows = self._predicted(beta)
        ways = rows[rows["ood_ratio"] == ratio]["way"]
        return f"{ways.min():.2f} to {ways.max():.2f}"

    def _predicted(self, beta: float) -> pd.DataFrame:
        """Return the rows of conditions whose fixed point is known."""
        rows = table(f"{self.name}-predictions")
        return rows[(rows["kl_beta"] == beta) & rows["fixed_point"].notna()]

    def stages(self, prompts: str = "ood", cells: str = "id") -> str:
        """Return the mass of cells of a role after each stage, by OOD ratio, in Markdown. Leave out ratios that only
        pilots have."""
        rows = table(f"{self.name}-stages")
        rows = rows[(rows["prompt_role"] == prompts) & (rows["role"] == cells)]
        names = sorted(rows["stage"].unique().tolist(), key=lambda name: (name.startswith("GRPO"), name == "SFT", name))
        lines = [["OOD (%)", *names], ["---:"] * (1 + len(names))]
        for ratio in sorted(self.masses(prompts, "ood")["ood_ratio"].unique().tolist()):
            found = {row["stage"]: _interval(row, "q") for row in rows[rows["ood_ratio"] == ratio].to_dict("records")}
            lines.append([percent(ratio), *(found.get(name, "") for name in names)])
        return _markdown(lines)

    def verdicts(self) -> str:
        """Return the verdicts on each claim, by GRPO's prompts and beta, in Markdown."""
        arms = self.claims[["prompt_role", "kl_beta"]].drop_duplicates()
        head = ["claim", *(f"{ROLE_NAMES[role]}, β = {number(beta)}" for role, beta in arms.itertuples(index=False))]
        lines = [head, ["---"] * len(head)]
        for claim, rows in self.claims.groupby("claim"):
            of_arms = [rows.merge(arms.iloc[[i]]) for i in range(len(arms))]
            lines.append([f"{claim}. {rows['title'].iloc[0]}", *(_tally(found["verdict"]) for found in of_arms)])
        return _markdown(lines)

    @property
    def objects(self) -> bool:
        """Return whether its conditions are objections, each with a control."""
        return "objection" in self.rows

    @property
    def compares(self) -> bool:
        """Return whether its conditions are compared at equal mass."""
        return (FOLDER / f"{self.name}-bands.csv").exists()

    def effects(self, task: str) -> str:
        """Return the effect of each condition on a task at each OOD ratio, with its verdict, in Markdown."""
        rows = self.rows[self.rows["task"] == task]
        ratios = sorted(rows["ood_ratio"].unique().tolist())
        lines = [[f"{task} axis", *(f"{percent(ratio)} % OOD" for ratio in ratios)], ["---"] * (1 + len(ratios))]
        for condition in rows["condition"].unique().tolist():
            found = rows[rows["condition"] == condition].to_dict("records")
            at = {row["ood_ratio"]: f"{_interval(row, 'value', sign='+')}, {row['verdict']}" for row in found}
            lines.append([condition, *(at.get(ratio, "") for ratio in ratios)])
        return _markdown(lines)

    @property
    def undecided(self) -> int:
        return int((self.rows["verdict"] == UNDECIDED).sum())

    def effect(self, condition: str, place: str) -> str:
        """Return the effect of one condition at one place, with its interval."""
        (row,) = self.rows[(self.rows["condition"] == condition) & (self.rows["place"] == place)].to_dict("records")
        return _interval(row, "value", sign="+")


def _interval(row: Mapping[Any, Any], column: str, sign: str = "") -> str:
    """Return a mean with its 95 % interval. column: name of the mean, and prefix of the names of its limits."""
    ends = ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")
    mean, low, high = (f"{row[name]:{sign}.2g}" for name in (column, *ends))
    return f"{mean} [{low}, {high}]"


def _tally(verdicts: "pd.Series[str]") -> str:
    counts = verdicts.value_counts()
    return ", ".join(f"{verdict} {count}" if len(verdicts) > 1 else str(verdict) for verdict, count in counts.items())


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
