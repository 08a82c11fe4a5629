"""``python -m tests.fuzz``: mutates files of every kind and reads them."""

from __future__ import annotations

import os

# Before numpy and torch: processes are forked, and threads do not come along.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

import json
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from tests.fuzz.harness import FAULTS, OUTCOMES, Tally, run_target, shares
from tests.fuzz.targets import all_targets

_FAULTS_IN_RESULTS = 50


@click.command()
@click.option(
    "--cases", default=50_000, show_default=True, help="Mutated files of all targets together."
)
@click.option("--seed", default=0, show_default=True, help="Seed of all mutations.")
@click.option(
    "--only", multiple=True, metavar="TARGET", help="Targets whose names begin so; several times."
)
@click.option("--case", type=int, help="One case alone, of the one target of --only.")
@click.option("--jobs", default=1, show_default=True, help="Worker processes at a time.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    help="Folder for the files of faults [a temporary one].",
)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file of the figures.")
@click.option("--list", "lists", is_flag=True, help="List the targets.")
def main(
    cases: int, seed: int, only: tuple[str, ...], case: int | None, jobs: int,
    keep: Path | None, out: Path | None,
    lists: bool,
) -> None:  # fmt: skip
    """Mutate files of every kind that cusa reads, and read them.

    Exits with 1 if any was read wrong, raised something else than an error of one line, hung, or
    took a gibibyte of memory.
    """
    targets = all_targets()
    if only:
        targets = {name: target for name, target in targets.items() if name.startswith(only)}
    if not targets:
        raise click.UsageError(f"no target begins with {', '.join(only)}; --list lists them")
    if lists:
        click.echo("\n".join(targets))
        return
    if case is not None and len(targets) > 1:
        raise click.UsageError("--case needs --only with the name of one target")
    keep = keep or Path(tempfile.mkdtemp(prefix="cusa-fuzz-kept-"))
    began = time.monotonic()
    tallies: dict[str, Tally] = {}
    for name, n_cases in shares(targets, cases).items():
        numbers = range(n_cases) if case is None else range(case, case + 1)
        tallies[name] = run_target(targets[name], numbers, seed, keep, jobs)
        _report(name, tallies[name])
        if case is not None and not tallies[name].faults:
            click.echo(dict(tallies[name].counts))
    n_faults = sum(len(tally.faults) for tally in tallies.values())
    n_cases = sum(tally.counts.total() for tally in tallies.values())
    click.echo(f"{n_cases:,} cases in {time.monotonic() - began:.0f} s: {n_faults} faults")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(
            json.dumps(_results(tallies, seed, time.monotonic() - began), indent=1) + "\n"
        )
    if n_faults:
        click.echo(f"mutated files: {keep}")
        sys.exit(1)


def _report(name: str, tally: Tally) -> None:
    counts = ", ".join(f"{kind} {tally.counts[kind]:,}" for kind in OUTCOMES if tally.counts[kind])
    click.echo(
        f"{name}: {counts}; {tally.seconds:.1f} s, slowest {tally.slowest * 1000:.0f} ms, "
        f"memory {tally.peak_bytes / 2**20:.0f} MiB"
    )
    for outcome in tally.faults[:_FAULTS_IN_RESULTS]:
        click.echo(f"  case {outcome.case}: {outcome.kind}")
        click.echo("    " + outcome.detail.strip().replace("\n", "\n    "))


def _results(tallies: dict[str, Tally], seed: int, seconds: float) -> dict[str, Any]:
    """The figures for the file of results."""
    rows = {
        name: {
            **{kind: tally.counts[kind] for kind in OUTCOMES},
            "seconds": round(tally.seconds, 1),
            "slowest_ms": round(tally.slowest * 1000),
            "memory_mib": round(tally.peak_bytes / 2**20),
        }
        for name, tally in tallies.items()
    }
    totals = {kind: sum(tally.counts[kind] for tally in tallies.values()) for kind in OUTCOMES}
    faults = [
        {
            "target": name,
            "case": outcome.case,
            "kind": outcome.kind,
            "detail": outcome.detail.strip().splitlines()[-1:],
        }
        for name, tally in tallies.items()
        for outcome in tally.faults[:_FAULTS_IN_RESULTS]
    ]
    return {
        "command": shlex.join(["python", "-m", "tests.fuzz", *sys.argv[1:]]),
        "python": platform.python_version(),
        "seed": seed,
        "cases": sum(totals.values()),
        "seconds": round(seconds),
        "totals": totals,
        "faults": faults,
        "targets": rows,
    }


assert set(FAULTS) < set(OUTCOMES)
if __name__ == "__main__":
    main()
