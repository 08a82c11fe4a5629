"""Kill cusa-train again and again, resume it to the end, and compare every bit with an undisturbed
run.

    python benchmarks/resume.py --kills 50 --out benchmarks/results/resume.json
    python benchmarks/resume.py --kills 50 --tars --out benchmarks/results/resume_tars.json
    python benchmarks/resume.py --kills 50 --tars --cache --out benchmarks/results/resume_cache.json
    python benchmarks/resume.py --kills 60 --towers --out benchmarks/results/resume_towers.json

Two kinds of run: the adapter, with dropout, on a made-up store, and (every fourth) a tiny CLIP from
image files with two reading processes; with --tars, both on a set of tars, in two streams of two
tars, the adapter with one reading process; with --cache, from copies (data.cache), few of which are
kept. With --towers, in turn: a half-stored student (CLIP's image tower trained, captions stored), a
CLIP with LoRA adapters, one whose image tower is frozen, and an adapter with two image teachers.
Each is a process of its own, forked from this one, which has the libraries loaded already. It
is killed (SIGKILL) after a random time; before a random step; at a random file operation (opening,
renaming, removing, flushing, making a folder); or in the middle of writing a file, at a random
byte. Then the same command with --resume goes on, and is killed again at even odds. At its end the
log (but for samples/s), the tensors and the progress of the newest checkpoint, and the best student
are compared with those of the undisturbed run.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from loading import machine
from rich.console import Console
from rich.table import Table

SMOKE = ("--kills 1 --tars --cache", "--kills 1 --towers")
CLIP_SHARE = 4  # one run in so many
STARTING = "starting"


@dataclass(frozen=True)
class Kill:
    """How a process is to end.

    Attributes:
        way: ``"time"``, ``"step"``, ``"operation"`` or ``"byte"``.
        at: Seconds; steps done; number of the file operation; bytes that a file may reach.
    """

    way: str
    at: float


@dataclass(frozen=True)
class Whole:
    """An undisturbed run.

    Attributes:
        args: cusa-train's arguments for a run directory.
        content: What it left.
        seconds: How long it took.
        steps: Its steps.
        operations: Its file operations.
        largest: Bytes of its largest file.
    """

    args: Callable[[Path], list[str]]
    content: dict[str, Any]
    seconds: float
    steps: int
    operations: int
    largest: int


class Runs:
    """Forks runs of cusa-train, and knows what each was doing when it ended.

    Args:
        log: File that takes what they print.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._shared = mmap.mmap(-1, 256)  # written by the run, read here once it is dead

    def run(self, args: Sequence[str], run_dir: Path, kill: Kill | None) -> int:
        """Run to the end, or to the kill; the status that waitpid gives."""
        self._log.unlink(missing_ok=True)
        self._say(STARTING)
        child = os.fork()
        if not child:
            self._become(args, run_dir, kill)
        began = time.perf_counter()
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status
            if kill is not None and kill.way == "time" and time.perf_counter() > began + kill.at:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.001)

    @property
    def doing(self) -> str:
        """What the last run was doing."""
        return self._shared[8:].rstrip(b"\0").decode()

    @property
    def lost_a_worker(self) -> bool:
        """Whether the limit on a file's bytes ended a worker of the last run, by the bytes of a
        batch, so that the run ended with an error.
        """
        return "killed by SIGXFSZ" in self._log.read_text()

    @property
    def operations(self) -> int:
        """File operations of the last run."""
        return int.from_bytes(self._shared[:8], "little")

    def _say(self, doing: str) -> None:
        self._shared[:] = b"\0" * 8 + doing.encode().ljust(248, b"\0")

    def _become(self, args: Sequence[str], run_dir: Path, kill: Kill | None) -> None:
        try:
            with self._log.open("ab", buffering=0) as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            self._follow(kill)
            self._count_operations(run_dir, kill)
            if kill is not None and kill.way == "byte":
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(kill.at), resource.RLIM_INFINITY))
                # The kernel ends the process within its write.
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            from cusa.cli.train import main

            main(list(args), standalone_mode=True)
            os._exit(0)
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException as error:
            print("TRACEBACK", repr(error), file=sys.stderr, flush=True)
            os._exit(70)

    def _follow(self, kill: Kill | None) -> None:
        """Note what the run is doing, and kill it before a step."""
        from cusa.train import keeper
        from cusa.train import trainer as loop
        from cusa.train.saving.run_dir import Checkpoints

        before_step = int(kill.at) if kill is not None and kill.way == "step" else None

        def noting(plain: Callable[..., Any], doing: str) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                if doing == "in a step" and args[0].progress.step == before_step:
                    os.kill(os.getpid(), signal.SIGKILL)
                before, self._shared[8:] = self._shared[8:], doing.encode().ljust(248, b"\0")
                try:
                    return plain(*args, **kwargs)
                finally:
                    self._shared[8:] = before

            return wrapped

        for owner, name, doing in (
            (loop.Trainer, "fit", "between steps"),
            (loop.Trainer, "_train_on", "in a step"),
            (loop.Trainer, "_validate", "validating"),
            (keeper, "save_student", "writing the best student"),
            (Checkpoints, "save", "writing a checkpoint"),
        ):
            setattr(owner, name, noting(getattr(owner, name), doing))

    def _count_operations(self, run_dir: Path, kill: Kill | None) -> None:
        """Count operations on the run's files, and kill it at one."""
        main_process = os.getpid()

        def seen(path: object) -> None:
            if os.getpid() != main_process or str(run_dir) not in str(path):
                return
            count = self.operations + 1
            self._shared[:8] = count.to_bytes(8, "little")
            if kill is not None and kill.way == "operation" and count == int(kill.at):
                os.kill(main_process, signal.SIGKILL)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
                seen(arguments[0])

        flush = os.fsync

        def flushing(descriptor: int) -> None:
            seen(os.readlink(f"/proc/self/fd/{descriptor}"))
            flush(descriptor)

        sys.addaudithook(hook)
        os.fsync = flushing


def content_of(run_dir: Path) -> dict[str, Any]:
    """All of a run that must not depend on where it was killed."""
    from cusa.train.saving.run_dir import Checkpoints, read_metrics
    from cusa.train.saving.student_folder import BEST_FOLDER, WEIGHTS_FILE
    from cusa.train.saving.tensors import load_tensors

    lines = [
        {k: v for k, v in line.items() if k != "samples_per_s"} for line in read_metrics(run_dir)
    ]
    newest = Checkpoints(run_dir).paths()[-1]
    tensors, meta = load_tensors(newest)
    best, origin = load_tensors(run_dir / BEST_FOLDER / WEIGHTS_FILE)

    def raw(found: dict[str, Any]) -> dict[str, bytes]:
        return {k: v.reshape(-1).contiguous().numpy().tobytes() for k, v in found.items()}

    return {
        "log": lines,
        "checkpoint": (newest.name, raw(tensors)),
        "progress": meta["progress"],
        "best student": raw(best),
        "best epoch": (origin["epoch"], origin["val"]),
    }


def left_over(run_dir: Path) -> list[str]:
    """Half-written files that nobody removed."""
    return [str(p.relative_to(run_dir)) for p in run_dir.rglob("*.tmp")]


def undisturbed(runs: Runs, args: Callable[[Path], list[str]], run_dir: Path) -> Whole:
    """Run once to the end."""
    began = time.perf_counter()
    status = runs.run(args(run_dir), run_dir, None)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"the undisturbed run ended with status {status}")
    largest = max(p.stat().st_size for p in run_dir.rglob("*") if p.is_file())
    content = content_of(run_dir)
    return Whole(args, content, seconds, content["progress"]["step"], runs.operations, largest)


def draw(rng: random.Random, whole: Whole) -> Kill:
    """A way to end a run."""
    way = rng.choice(["time", "step", "operation", "byte"])
    most = {
        "time": whole.seconds,
        "step": whole.steps,
        "operation": whole.operations,
        "byte": whole.largest,
    }[way]
    return Kill(way, rng.uniform(0 if way in ("time", "step") else 1, most))


def disturbed(
    runs: Runs, whole: Whole, run_dir: Path, rng: random.Random, most_kills: int
) -> dict[str, Any]:
    """One run, killed at least once and resumed to its end; what became of it."""
    kills: list[dict[str, Any]] = []
    args = [*whole.args(run_dir), "--resume"]
    wrong: list[str] = []
    while len(kills) < most_kills and (not kills or rng.random() < 0.5):
        kill = draw(rng, whole)
        status = runs.run(args, run_dir, kill)
        if os.WIFSIGNALED(status) or (status and runs.lost_a_worker):
            first = not list(run_dir.glob("checkpoints/step-*.safetensors"))
            kills.append(
                {
                    "way": kill.way,
                    "at": kill.at,
                    "doing": runs.doing,
                    "before_first_checkpoint": first,
                }
            )
        elif status:
            wrong.append(f"{kill}: status {status}")
            break
        else:  # it had ended before
            if kills:
                break
            shutil.rmtree(run_dir)
    if not wrong:
        if status := runs.run(args, run_dir, None):
            wrong.append(f"resumed without a kill: status {status}")
        else:
            found = content_of(run_dir)
            wrong += [name for name, value in whole.content.items() if found[name] != value]
    return {
        "kills": kills,
        "wrong": wrong,
        "left_over": left_over(run_dir) if run_dir.exists() else [],
    }


def make_args(
    folder: Path, are_tars: bool, are_copied: bool
) -> dict[str, Callable[[Path], list[str]]]:
    """Stores or a set of tars, a tiny CLIP, and cusa-train's arguments for a run directory, by
    student.
    """
    from tests.helpers import make_tiny_clip

    clip = make_tiny_clip(folder / "clip")
    stored, filed = make_set(folder) if are_tars else make_stores(folder, clip)
    common = ["--set", "train.log_every=1", "--device", "cpu", "--loss", "cusa"]
    if are_tars:
        common += ["--set", "data.window=2", "--set", "data.streams=2"]
    if are_copied:
        # Room for some of the ten tars.
        common += ["--set", f"data.cache={folder / 'cache'}", "--set", "data.cache_gb=0.0002"]
    adapter = [
        "--embeddings",
        str(stored),
        "--student",
        "adapter",
        "--set",
        "student.hidden_dim=64",
    ]
    adapter += ["--epochs", "4", "--batch-size", "32", "--checkpoint-steps", "5"]
    adapter += ["--workers", str(int(are_tars))]
    files = [
        "--embeddings",
        str(filed),
        "--student",
        str(clip),
        "--epochs",
        "3",
        "--batch-size",
        "8",
    ]
    files += ["--checkpoint-steps", "3", "--workers", "2", "--set", "optim.lr=0.001"]
    return {
        "adapter": lambda run_dir: [*adapter, *common, "--run-dir", str(run_dir)],
        "clip": lambda run_dir: [*files, *common, "--run-dir", str(run_dir)],
    }


def make_tower_args(folder: Path) -> dict[str, Callable[[Path], list[str]]]:
    """A store of pictures with two image teachers, and cusa-train's arguments by student."""
    from tests.helpers import make_pairs, make_tiny_clip, make_tiny_sentence, make_tiny_vit, run_ok

    clip = make_tiny_clip(folder / "clip")
    manifest = make_pairs(folder / "data", n=40, n_val=8)
    teachers: list[str] = []
    models = {"clip": clip, "vit": make_tiny_vit(folder / "vit")}
    models["words"] = make_tiny_sentence(folder / "words")
    for name, model in models.items():
        teachers += ["--teacher", f"{name}={model}"]
    store = folder / "store.h5"
    run_ok("precompute", "--dataset", manifest, *teachers, "--workers", "0", "--out", store)
    common = ["--embeddings", str(store), "--set", "train.log_every=1", "--device", "cpu"]
    common += ["--epochs", "3", "--batch-size", "8", "--checkpoint-steps", "3", "--lr", "0.001"]
    common += ["--warmup", "0", "--set", "student.embed_dim=16", "--set", "student.hidden_dim=64"]
    one_teacher = ["--image-teacher", "vit"]
    students = {
        "half-stored": ["--set", f"student.image=hf:{clip}", "--set", "student.text=stored"],
        "lora": ["--student", str(clip), "--set", "student.lora.towers=[image,text]"],
        "frozen": ["--student", str(clip), "--freeze", "image"],
        "two teachers": ["--student", "adapter", "--image-encoder", "clip"],
    }
    arguments = {}
    for name, options in students.items():
        teacher_options = one_teacher
        if name == "two teachers":
            teacher_options = [*one_teacher, "--image-teacher", "clip"]
        workers = ["--workers", "0" if name == "two teachers" else "2"]
        arguments[name] = [*common, *options, *teacher_options, *workers]

    def for_run(name: str) -> Callable[[Path], list[str]]:
        return lambda run_dir: [*arguments[name], "--run-dir", str(run_dir)]

    return {name: for_run(name) for name in students}


def make_stores(folder: Path, clip: Path) -> tuple[Path, Path]:
    """A store of made-up rows, and one of pictures and captions in files."""
    from tests.helpers import make_pairs, make_store, make_tiny_sentence, run_ok

    stored = make_store(folder / "stored", {"train": 200, "val": 40})
    manifest = make_pairs(folder / "data", n=40, n_val=8)
    words = make_tiny_sentence(folder / "words")
    filed = folder / "filed.h5"
    teachers = ("--teacher", f"vit={clip}", "--teacher", f"words={words}")
    run_ok("precompute", "--dataset", manifest, *teachers, "--workers", "0", "--out", filed)
    return stored, filed


def make_set(folder: Path) -> tuple[Path, Path]:
    """Sets of ten tars: of 200 pairs for the adapter, and of 50 for pictures."""
    from tests.data.tars.tar_files import write_set, write_tars

    for name, n_pairs in (("rows", 20), ("pictures", 5)):
        write_set(folder / name, write_tars(folder / f"{name}_tars", 10, n_pairs))
    return folder / "rows", folder / "pictures"


def load_libraries() -> None:
    """Load what the forked processes need, with one thread: forking a process with threads is not
    safe.
    """
    sys.path.insert(0, str(Path(__file__).parent.parent))
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    from cusa.cli.console import quiet_libraries

    quiet_libraries()
    import torch

    torch.set_num_threads(1)


@click.command()
@click.option("--kills", default=50)
@click.option("--seed", default=0)
@click.option("--tars", "are_tars", is_flag=True, help="Train on a set of tars.")
@click.option("--cache", "are_copied", is_flag=True, help="Read them from copies.")
@click.option("--towers", "are_towers", is_flag=True, help="Train students of other towers.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    kills: int, seed: int, are_tars: bool, are_copied: bool, are_towers: bool, out: Path | None
) -> None:
    """Kill and resume; print the counts."""
    load_libraries()
    rng = random.Random(seed)
    runs: list[dict[str, Any]] = []
    done = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        forked = Runs(folder / "log")
        if are_towers:
            arguments = make_tower_args(folder)
            in_turn = list(arguments)
        else:
            arguments = make_args(folder, are_tars, are_copied)
            in_turn = ["adapter"] * (CLIP_SHARE - 1) + ["clip"]
        students = {
            student: undisturbed(forked, args, folder / f"whole-{student}")
            for student, args in arguments.items()
        }
        while done < kills:
            student = in_turn[len(runs) % len(in_turn)]
            found = disturbed(forked, students[student], folder / "disturbed", rng, kills - done)
            if found["wrong"]:
                found["log"] = (folder / "log").read_text()[-1000:]
            runs.append({"student": student, **found})
            done += len(found["kills"])
            print(
                f"{done} of {kills} kills: {student}: {'; '.join(found['wrong']) or 'identical'}",
                flush=True,
            )
            shutil.rmtree(folder / "disturbed", ignore_errors=True)
    survived = sum(len(run["kills"]) for run in runs if not run["wrong"])
    every = [kill for run in runs for kill in run["kills"]]
    results = machine() | {
        "kills": done,
        "identical": survived,
        "seed": seed,
        "runs": runs,
        "students": dict(Counter(run["student"] for run in runs for _ in run["kills"])),
        "most_kills_of_a_run": max(len(run["kills"]) for run in runs),
        "ways": dict(Counter(kill["way"] for kill in every)),
        "doing": dict(Counter(kill["doing"] for kill in every).most_common()),
        "before_first_checkpoint": sum(kill["before_first_checkpoint"] for kill in every),
        "runs_with_files_left_over": sum(bool(run["left_over"]) for run in runs),
    }
    table = Table(
        "killed while",
        "kills",
        title=f"{survived} of {done} kills: the resumed run is bit-identical",
    )
    for doing, count in (
        *results["doing"].items(),
        ("before the first checkpoint", results["before_first_checkpoint"]),
    ):
        table.add_row(doing, str(count))
    Console(width=110).print(table)
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(survived != done or any(run["wrong"] for run in runs))


if __name__ == "__main__":
    main()
