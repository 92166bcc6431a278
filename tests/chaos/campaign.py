"""A seeded campaign: faults strike a real small sweep, until the schedule is through; then tables are compared.

A sweep whose drivers end while faults are left is followed by another one, in a fresh store; stores are on the local
disk and on S3 by turns. Afterwards every artifact is verified, and the results are compared with those of a sweep that
nothing disturbed.
"""

import io
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rayexp.store.artifacts import Store
from tests.chaos.bench import Bench, Driver
from tests.chaos.faults import FAULTS, NOTICE_S, Fault, FaultContext
from tests.fixtures.s3 import S3Server

#: Faults of one sweep: more, and nothing in it would ever come to an end.
FAULTS_PER_SWEEP = 5
LIMIT_S = 420.0
RESULTS = "studies/demo-chaos/results.parquet"
KEY = ["stage_id", "role", "cell", "prompt_index"]


@dataclass
class FaultEvent:
    """One row of the campaign's table."""

    seed: int
    sweep: int
    fault: Fault
    moment: str
    struck: float
    recovered_s: float | None = None
    rows_lost: int | None = None
    rows_differ: int | None = None


def schedule(faults: int, seed: int) -> list[Fault]:
    """Return every kind once before any comes again, in an order that the seed decides."""
    chance = random.Random(seed)
    kinds = list(FAULTS.values())
    order: list[Fault] = []
    while len(order) < faults:
        order += chance.sample(kinds, len(kinds))
    return order[:faults]


class Campaign:
    """Runs sweeps in one cluster. ``results`` of the undisturbed sweep are what all others are compared with."""

    def __init__(self, bench: Bench, s3: S3Server, folder: Path) -> None:
        self._bench = bench
        self._s3 = s3
        self._folder = folder
        self._sweeps = 0
        started = time.monotonic()
        self.reference = self._store("local")
        driver = bench.driver(self.reference, folder / "reference.log")
        if code := driver.process.wait(timeout=LIMIT_S):
            raise RuntimeError(f"the undisturbed sweep ended with {code}: {driver.log.read_text()[-2000:]}")
        self.undisturbed_s = time.monotonic() - started

    def run(self, faults: Sequence[Fault], seed: int) -> list[FaultEvent]:
        """Let all of the faults strike, sweep after sweep."""
        pending, strikes = list(faults), []
        while pending:
            struck = self._sweep(pending, seed)
            if not struck:
                names = ", ".join(fault.name for fault in pending)
                raise RuntimeError(f"a whole sweep had nothing that these could strike: {names}")
            strikes += struck
        return strikes

    def _store(self, kind: str) -> Store:
        self._sweeps += 1
        name = f"sweep-{self._sweeps}"
        return Store(str(self._folder / name) if kind == "local" else f"s3://chaos/{name}")

    def _sweep(self, pending: list[Fault], seed: int) -> list[FaultEvent]:
        remote = self._sweeps % 2 == 0 or any(fault.name == "storage errors" for fault in pending[:1])
        store = self._store("s3" if remote else "local")
        log = self._folder / f"sweep-{self._sweeps}.log"
        drivers: list[Driver] = []
        scene = FaultContext(
            self._bench, store, drivers, random.Random(seed * 1000 + self._sweeps), lambda: launch(), None
        )
        if remote:
            scene.storage_faults = self._s3.upset

        def launch() -> Driver:
            extra = ["--repair"] if scene.repair else []
            scene.repair = False
            drivers.append(self._bench.driver(store, log.with_suffix(f".{len(drivers)}.log"), *extra))
            return drivers[-1]

        launch()
        began = time.monotonic()
        strikes: list[FaultEvent] = []
        waiting: list[tuple[FaultEvent, object]] = []
        doomed: list[tuple[float, object]] = []
        calm_until = 0.0
        while True:
            now = time.monotonic()
            if now - began > LIMIT_S * 2:
                raise RuntimeError(f"a sweep in {store.url} did not end within {LIMIT_S * 2:g} s; see {log}")
            for strike, recovered in list(waiting):
                if recovered():  # type: ignore[operator]
                    strike.recovered_s = time.monotonic() - strike.struck
                    waiting.remove((strike, recovered))
            while scene.doomed:
                doomed.append((now + NOTICE_S, scene.doomed.pop()))
            for entry in list(doomed):
                if now > entry[0]:
                    self._bench.lose_node(entry[1])
                    doomed.remove(entry)
            if all(driver.code is not None for driver in drivers):
                if drivers[-1].code == 0 and not scene.repair:
                    break
                launch()  # as a person would
            elif pending and not waiting and not doomed and len(strikes) < FAULTS_PER_SWEEP and now > calm_until:
                strike = self._strike(scene, pending, seed, began)
                if strike:
                    strikes.append(strike[0])
                    waiting.append(strike)
                    calm_until = time.monotonic() + scene.chance.uniform(0.5, 3.0)
            time.sleep(0.05)
        for strike, _ in waiting:  # what was hit had nothing more to do
            strike.recovered_s = time.monotonic() - strike.struck
        for entry in doomed:
            self._bench.lose_node(entry[1])
        self._compare(store, strikes, drivers)
        return strikes

    def _strike(self, scene: FaultContext, pending: list[Fault], seed: int, began: float):
        """Strike with the first of the pending faults that finds something to strike."""
        for fault in pending:
            target = fault.find(scene)
            if target is None:
                continue
            finished = len(scene.store.finished_ids())
            moment = f"{time.monotonic() - began:.0f} s, {finished} stages finished"
            strike = FaultEvent(seed, self._sweeps, fault, moment, time.monotonic())
            pending.remove(fault)
            print(f"sweep {self._sweeps}: {moment}: {fault.name}", flush=True)
            try:
                return strike, fault.strike(scene, target)
            except FileNotFoundError:  # finished in this moment, and its checkpoints with it
                pending.append(fault)
                return None
        return None

    def _compare(self, store: Store, strikes: list[FaultEvent], drivers: list[Driver]) -> None:
        """Compare rows of the disturbed sweep against those of the undisturbed one; weights by their hashes."""
        expected, found = results(self.reference), results(store)
        lost = len(expected.index.difference(found.index))
        common = expected.index.intersection(found.index)
        a, b = (rows.loc[common].map(exact) for rows in (expected, found))
        differ = int((a != b).any(axis=1).sum()) + len(found.index.difference(common))
        for strike in strikes:
            strike.rows_lost, strike.rows_differ = lost, differ
        ids = self.reference.finished_ids()
        if damaged := store.damaged(ids):
            raise RuntimeError(f"damaged after the sweep: {damaged}")
        if weights(store, ids) != weights(self.reference, ids):
            raise RuntimeError(f"weights in {store.url} differ from the undisturbed ones")
        done = [label for driver in drivers for label in driver.done()]
        repaired = any("damaged: " in driver.log.read_text() for driver in drivers)
        if not repaired and len(done) != len(set(done)):
            raise RuntimeError(f"trials were run twice: {sorted(done)}")
        if not repaired and len(done) > self._bench.trials:
            raise RuntimeError(f"more trials than the plan has: {sorted(done)}")
        left = store.files.names("work")
        print(f"sweep {self._sweeps}: {len(drivers)} drivers, {lost} rows lost, {differ} differ; left in work: {left}")


def results(store: Store) -> pd.DataFrame:
    """Return the results table of a sweep, by stage and prompt."""
    return pd.read_parquet(io.BytesIO(store.files.read(RESULTS))).set_index(KEY).sort_index()


def exact(value: Any) -> str:
    """Return a text that no other value has, for NaN as well, which equals nothing. (numpy's own of an array is
    rounded.)"""
    return repr(value.tolist() if isinstance(value, np.ndarray) else value)


def weights(store: Store, ids: set[str]) -> dict[str, str]:
    """Return the SHA-256 of the weights of every stage that has any."""
    manifests = {i: json.loads(store.files.read(f"stages/{i}/manifest.json"))["files"] for i in sorted(ids)}
    return {i: files[name]["sha256"] for i, files in manifests.items() for name in files if "safetensors" in name}


def table(strikes: Sequence[FaultEvent]) -> str:
    """Return the campaign in Markdown."""
    lines = [
        "| seed | sweep | fault | moment | recovered by | after | rows lost | rows that differ |",
        "|---:|---:|---|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {s.seed} | {s.sweep} | {s.fault.name} | {s.moment} | {s.fault.recovered_by} | {s.recovered_s:.0f} s "
        f"| {s.rows_lost} | {s.rows_differ} |"
        for s in strikes
    ]
    return "\n".join(lines)
