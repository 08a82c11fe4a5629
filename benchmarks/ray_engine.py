"""Disturb cusa-precompute --engine ray, compare every byte with the local engine's, and measure
what actors cost.

    python benchmarks/ray_engine.py --kills 50 --out results.json
    python benchmarks/ray_engine.py --kills 0 --dataset tars/ --caption json:captions \
        --teacher efficientnet-lite0 --teacher minilm --out real.json

First both engines go over the tars undisturbed on one core, for the CPU seconds of the local
process and of the actor. Then an actor is killed in the middle; a node of a cluster of three is
removed; the driver is killed, and the command run again; and actors or the driver are killed at
random moments, several in a run. A kill is SIGKILL. Bytes are those of all files of the set. Of the
files that stood when something was killed, those that are other files at the end are counted, too.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil

SMOKE = ("--kills 0 --tars 2 --pairs 2 --only local",)  # Ray would take half a minute
POLL_S = 0.2
PATIENCE_S = 600
SCENARIOS = ("local", "cpu", "actor", "node", "driver", "random")


@dataclass
class Watch:
    """A running command.

    Attributes:
        driver: Its process.
        folder: Folder of the set.
        cpu_s: CPU seconds of the actors by process id.
        stood: The files, by their inodes, that stood when something was killed.
        kills: Kills by victim.
        raylets: Ray's nodes.
    """

    driver: psutil.Popen
    folder: Path
    cpu_s: dict[int, float] = field(default_factory=dict)
    stood: dict[str, int] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    raylets: set[psutil.Process] = field(default_factory=set)

    def actors(self) -> list[psutil.Process]:
        """The actors that make tars and have begun; their CPU seconds are noted."""
        actors = []
        for process in psutil.Process().children(recursive=True):
            try:
                title = " ".join(process.cmdline())
                if "MapWorker" in title:
                    times = process.cpu_times()
                    self.cpu_s[process.pid] = times.user + times.system
                    actors.append(process)
                elif process.name() == "raylet":
                    self.raylets.add(process)
            except psutil.NoSuchProcess:
                continue
        return actors

    def n_finished(self) -> int:
        """Tars that have their pairs."""
        return len(list(self.folder.glob("pairs/[!.]*.h5")))

    def until(self, is_reached: Callable[[], bool]) -> bool:
        """Wait; False if the command has ended before."""
        deadline = time.monotonic() + PATIENCE_S
        while self.driver.poll() is None:
            self.actors()
            if is_reached():
                return True
            if time.monotonic() > deadline:
                self.kill("driver")
                raise SystemExit(f"no progress in {PATIENCE_S} s: {self.n_finished()} tars")
            time.sleep(POLL_S)
        return False

    def kill(self, victim: str) -> None:
        """Kill an actor or the driver, and remember which files stood."""
        for path in self.folder.glob("*/[!.]*.h5"):
            self.stood[str(path)] = path.stat().st_ino
        targets = [self.driver] if victim == "driver" else self.actors()
        if targets:
            random.choice(targets).kill()
            self.kills[victim] += 1

    def end(self) -> int:
        """Wait for the end, and until Ray has gone; the status."""
        self.until(lambda: False)
        psutil.wait_procs(self.raylets, timeout=PATIENCE_S)
        return self.driver.returncode


class Bench:
    """Runs and compares.

    Args:
        folder: Where everything goes.
        options: Of cusa-precompute, but for the engine and the place.
        n_tars: How many tars there are.
    """

    def __init__(self, folder: Path, options: list[str], n_tars: int) -> None:
        self.folder = folder
        self.options = options
        self.n_tars = n_tars
        self.whole: dict[str, bytes] = {}
        self.local_s = 0.0
        self.one_core = {min(os.sched_getaffinity(0))}

    def start(self, name: str, *engine: str, cores: set[int] | None = None) -> Watch:
        """Start cusa-precompute in a process of its own."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "cusa.precompute", *self.options]
        with (self.folder / f"{name}.log").open("ab") as log:
            driver = psutil.Popen(
                [*command, "--out", str(self.folder / name), *engine],
                env=environment,
                stdout=log,
                stderr=log,
                preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
            )
        return Watch(driver, self.folder / name)

    def contents(self, folder: Path) -> dict[str, bytes]:
        """Every file of a set."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    def verdict(self, watch: Watch, status: int) -> dict[str, object]:
        """Compare a finished set with the local engine's, and drop it."""
        made = self.contents(watch.folder)
        again = set()
        for path, inode in watch.stood.items():
            if not Path(path).exists() or Path(path).stat().st_ino != inode:
                again.add(Path(path).stem)
        differing = [
            name for name in {*made, *self.whole} if made.get(name) != self.whole.get(name)
        ]
        shutil.rmtree(watch.folder, ignore_errors=True)
        return {
            "status": status,
            "identical": made == self.whole,
            "differing": differing,
            "kills": dict(watch.kills),
            "tars_that_stood_made_again": len(again),
        }

    def local(self) -> dict[str, object]:
        """The local engine on one core, undisturbed."""
        before = os.times()
        local = self.start("local", "--engine", "local", "--workers", "0", cores=self.one_core)
        assert local.driver.wait() == 0, (self.folder / "local.log").read_text()
        after = os.times()
        self.local_s = after.children_user + after.children_system
        self.local_s -= before.children_user + before.children_system
        self.whole = self.contents(self.folder / "local")
        return {"cpu_s": self.local_s}

    def cpu(self) -> dict[str, object]:
        """An actor on the same core, undisturbed."""
        watch = self.start("ray", "--engine", "ray", cores=self.one_core)
        status = watch.end()
        return {
            **self.verdict(watch, status),
            "actors": len(watch.cpu_s),
            "cpu_s": sum(watch.cpu_s.values()),
            "ratio_to_local": sum(watch.cpu_s.values()) / self.local_s,
        }

    def actor(self) -> dict[str, object]:
        """An actor is killed when a third of the tars is done."""
        watch = self.start("ray", "--engine", "ray")
        if watch.until(lambda: watch.n_finished() >= self.n_tars / 3):
            watch.kill("actor")
        return self.verdict(watch, watch.end())

    def node(self) -> dict[str, object]:
        """A node of three goes when a third of the tars is done."""
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        watch = self.start("ray", "--engine", "ray", "--ray-address", cluster.address)
        n_actors = 0

        def is_third_done() -> bool:
            nonlocal n_actors
            n_actors = max(n_actors, len(watch.actors()))
            return watch.n_finished() >= self.n_tars / 3 and n_actors == 3

        is_removed = watch.until(is_third_done)
        if is_removed:
            for path in watch.folder.glob("*/[!.]*.h5"):
                watch.stood[str(path)] = path.stat().st_ino
            cluster.remove_node(nodes[0], allow_graceful=False)
        watch.until(lambda: False)
        verdict = self.verdict(watch, watch.driver.returncode)
        cluster.shutdown()
        return {**verdict, "is_removed": is_removed, "actors": n_actors}

    def driver(self) -> dict[str, object]:
        """The driver is killed when a third of the tars is done; the command is run again."""
        watch = self.start("ray", "--engine", "ray")
        if watch.until(lambda: watch.n_finished() >= self.n_tars / 3):
            watch.kill("driver")
        watch.end()
        return self.verdict(watch, self.again(watch))

    def again(self, watch: Watch) -> int:
        """Run the command again, and watch that."""
        watch.driver = self.start(watch.folder.name, "--engine", "ray").driver
        return watch.end()

    def random(self, kills: int, seed: int) -> dict[str, object]:
        """Kill at random moments until so many were killed."""
        random.seed(seed)
        verdicts: list[dict[str, object]] = []
        victims: Counter[str] = Counter()
        while victims.total() < kills:
            watch = self.start("ray", "--engine", "ray")
            is_running = watch.until(lambda watch=watch: bool(watch.actors()))
            while is_running and victims.total() + watch.kills.total() < kills:
                wait_until = time.monotonic() + random.expovariate(1 / 6)
                is_running = watch.until(lambda at=wait_until: time.monotonic() > at)
                victim = "driver" if random.random() < 1 / 8 else "actor"
                if is_running:
                    watch.kill(victim)
                if watch.kills["driver"]:
                    break
            status = watch.end()
            is_stopped = status != 0 and not watch.kills["driver"]
            if status:
                status = self.again(watch)
            verdict = {**self.verdict(watch, status), "is_stopped": is_stopped}
            victims.update(watch.kills)
            if watch.kills:
                verdicts.append(verdict)
            print(victims, verdict, flush=True)
        return {
            "kills": dict(victims),
            "runs": len(verdicts),
            "identical": sum(bool(verdict["identical"]) for verdict in verdicts),
            # By actors that ended five times with one tar.
            "stopped": sum(bool(verdict["is_stopped"]) for verdict in verdicts),
            "wrong": [verdict for verdict in verdicts if not verdict["identical"]],
            "most_tars_that_stood_made_again": max(
                (int(str(verdict["tars_that_stood_made_again"])) for verdict in verdicts), default=0
            ),
        }


def make_inputs(folder: Path, n_tars: int, n_pairs: int) -> list[str]:
    """Small tars and two tiny teachers; the options for them."""
    from tests.data.tars.tar_files import write_tars
    from tests.helpers import make_tiny_sentence, make_tiny_vit

    write_tars(folder / "tars", n_tars, n_pairs)
    vit, words = make_tiny_vit(folder / "vit"), make_tiny_sentence(folder / "words")
    teachers = ["--teacher", f"vit={vit}", "--teacher", f"words={words}"]
    return ["--dataset", str(folder / "tars"), *teachers, "--batch-size", "2"]


@click.command()
@click.option("--tars", default=60, help="Tars that are made up.")
@click.option("--pairs", default=40, help="Pairs in each.")
@click.option("--dataset", type=click.Path(path_type=Path), help="A folder of tars instead.")
@click.option("--caption", default="txt")
@click.option("--teacher", multiple=True)
@click.option("--kills", default=50, help="At random moments.")
@click.option("--seed", default=0)
@click.option("--only", multiple=True, type=click.Choice(SCENARIOS))
@click.option("--out", type=click.Path(path_type=Path))
def main(
    tars: int,
    pairs: int,
    dataset: Path | None,
    caption: str,
    teacher: tuple[str, ...],
    kills: int,
    seed: int,
    only: tuple[str, ...],
    out: Path | None,
) -> None:
    """Disturb and compare; print and write the results after each scenario."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    scenarios = only or SCENARIOS
    results: dict[str, object] = {"machine": platform.platform(), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if dataset is None:
            options = make_inputs(folder, tars, pairs)
        else:
            tars = len(list(dataset.glob("*.tar")))
            options = ["--dataset", str(dataset), "--caption", caption]
            for teacher_name in teacher:
                options += ["--teacher", teacher_name]
        bench = Bench(folder, options, tars)
        results |= {"tars": tars, "pairs_in_each": pairs if dataset is None else None}
        for scenario in SCENARIOS:
            if scenario == "random" and kills and scenario in scenarios:
                results[scenario] = bench.random(kills, seed)
            elif scenario == "local" or (scenario in scenarios and scenario != "random"):
                results[scenario] = getattr(bench, scenario)()
            print(scenario, json.dumps(results.get(scenario)), flush=True)
            if out is not None:
                out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
