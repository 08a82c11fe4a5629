"""The loss itself: dense against tiled, the bare matrix products, and open_clip's.

    python benchmarks/losses.py --out benchmarks/results/losses.json

Time and peak extra memory of forward and backward, d = 512, all terms, two captions an image. Each
figure of memory comes from a fresh process: the peak of its resident set above what it had with the
inputs in place (on a GPU, of what torch allocates). Times are medians over rounds in which the ways
take turns. The limit is the matrix products of the tiled sweeps alone, at the same tile size.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from cusa.data.environment import cpu_count
from cusa.train.loss.config import TERMS, LossConfig
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.loss.tiled import default_tile_rows

from timing import in_turns, seconds

SMOKE = ("--largest 128 --rounds 2 --compiler eager",)
DIM = 512


class Case:
    """Features, teacher rows and ids of B pairs; a call is a forward and a backward pass."""

    def __init__(
        self,
        b: int,
        method: str,
        device: str,
        terms: str = "cusa",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(0)
        rows = [torch.randn(b, DIM, device=device).to(dtype) for _ in range(6)]
        self.features, self.teachers = [x.requires_grad_() for x in rows[:4]], rows[4:]
        self.ids = torch.arange(b, device=device) // 2
        self.loss = CUSALoss(LossConfig(terms=TERMS[terms]), method=method).to(device)  # type: ignore[arg-type]

    def __call__(self) -> None:
        """Forward and backward."""
        for x in self.features:
            x.grad = None
        self.loss(*self.features, *self.teachers, self.ids).total.backward()


def bare_products(b: int, device: str) -> Callable[[], None]:
    """The products of the tiled sweeps for all three terms: per modality, three of similarities,
    four of gradients.
    """
    x, y = (torch.randn(b, DIM, device=device) for _ in range(2))
    out = torch.zeros_like(x)
    rows = default_tile_rows(b, x.device)

    def work() -> None:
        for _ in ("images", "texts"):
            for start in range(0, b, rows):
                tile = x[start : start + rows]
                for _ in range(3):
                    similarity = tile @ y.T
                for _ in range(2):
                    out[start : start + rows].addmm_(similarity, y)
                    out.addmm_(similarity.T, tile)

    return work


def ratio(one: list[float], other: list[float]) -> float:
    """Median over rounds of one's time over the other's in the same round."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def rounds_for(b: int, most: int) -> int:
    """Many where a call takes milliseconds, few where it takes a minute."""
    rounds = 60 if b <= 512 else 20 if b <= 1024 else 7 if b <= 4096 else 3 if b <= 8192 else 1
    return min(rounds, most)


def extra_memory(b: int, method: str, device: str, dtype: torch.dtype) -> int:
    """Bytes at the peak of a call above those of the inputs; runs in this process, which should be
    fresh.
    """
    Case(64, method, device, dtype=dtype)()  # libraries and their buffers
    case = Case(b, method, device, dtype=dtype)
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    case()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def _in_fresh_process(b: int, method: str, device: str, dtype: str) -> int | None:
    """``extra_memory``; ``None`` where memory did not suffice."""
    command = [sys.executable, __file__, "--device", device, "--one", str(b), method, dtype]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return int(done.stdout)
    killed = done.returncode == -signal.SIGKILL
    if (
        not killed
        and "not enough memory" not in done.stderr
        and "OutOfMemoryError" not in done.stderr
    ):
        raise RuntimeError(done.stderr)
    return None


def by_size(b: int, device: str, most_dense: int, rounds: int) -> dict[str, Any]:
    """Dense and tiled, the chosen one, and the bare products at one batch size."""
    methods = ["dense", "tiled"] if b <= most_dense else ["tiled"]
    if b <= 1024 and "dense" in methods:
        methods.append("auto")
    ways: dict[str, Callable[[], object]] = {m: Case(b, m, device) for m in methods}
    times = in_turns({**ways, "products": bare_products(b, device)}, rounds_for(b, rounds))
    del ways
    gc.collect()
    found: dict[str, Any] = {
        "batch_size": b,
        "seconds": {k: statistics.median(v) for k, v in times.items()},
    }
    found["over_products"] = ratio(times["tiled"], times["products"])
    if "dense" in methods:
        found["tiled_over_dense"] = ratio(times["tiled"], times["dense"])
    if "auto" in methods:
        found["auto_over_dense"] = ratio(times["auto"], times["dense"])
    found["extra_bytes"] = {
        m: _in_fresh_process(b, m, device, "float32") for m in methods if m != "auto"
    }
    return found


def clip_loss_class() -> Any:
    """open_clip's ClipLoss; from its file alone where the package cannot be imported for want of
    torchvision.
    """
    try:
        return importlib.import_module("open_clip").ClipLoss
    except (ImportError, RuntimeError):
        spec = importlib.util.find_spec("open_clip")
        assert spec is not None
        assert spec.submodule_search_locations
        file = Path(spec.submodule_search_locations[0]) / "loss.py"
        alone = importlib.util.spec_from_file_location("open_clip_loss", file)
        assert alone is not None
        assert alone.loader is not None
        module = importlib.util.module_from_spec(alone)
        alone.loader.exec_module(module)
        return module.ClipLoss


def against_open_clip(b: int, device: str, rounds: int) -> dict[str, Any]:
    """The contrastive term alone on the same normalised features, forward and backward, at logit
    scale 1/tau = 20.
    """
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(b, DIM, device=device), dim=1) for _ in range(2))
    text = F.normalize(0.3 * image + text, dim=1)
    theirs = clip_loss_class()()
    config = LossConfig(terms=("contrastive",), contrastive_scaling="infonce")
    ours = CUSALoss(config, normalize=False).to(device)
    scale = torch.nn.Parameter(torch.tensor(20.0, device=device))
    features = {
        name: (image.clone().requires_grad_(), text.clone().requires_grad_())
        for name in ("ours", "theirs")
    }
    values: dict[str, torch.Tensor] = {}

    def step(name: str, loss: Callable[..., torch.Tensor]) -> None:
        for x in features[name]:
            x.grad = None
        values[name] = loss(*features[name])
        values[name].backward()

    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: step("ours", lambda i, t: ours(i, t).total),
        "theirs": lambda: step("theirs", lambda i, t: theirs(i, t, scale)),
    }
    times = in_turns(ways, 2 * rounds_for(b, rounds))
    both = zip(features["ours"], features["theirs"], strict=True)
    apart = [(x.grad - y.grad).abs().max() / y.grad.abs().max() for x, y in both]
    return {
        "batch_size": b,
        "seconds": {k: statistics.median(v) for k, v in times.items()},
        "ours_over_theirs": ratio(times["ours"], times["theirs"]),
        "values_apart": abs(values["ours"] - values["theirs"]).item() / values["theirs"].item(),
        "gradients_apart": max(apart).item(),
    }


def largest_on_gpu() -> dict[str, Any]:
    """The largest power of two that runs, dense and tiled, in float32, and the time at 32,768 with
    bf16 features.
    """
    found: dict[str, Any] = {}
    for method in ("dense", "tiled"):
        b = 16384
        while b <= 2**19 and _in_fresh_process(2 * b, method, "cuda", "float32") is not None:
            b *= 2
        found[f"largest_{method}"] = b
    for precision in ("highest", "high"):  # float32 products, TF32 products
        torch.set_float32_matmul_precision(precision)
        case = Case(32768, "tiled", "cuda", dtype=torch.bfloat16)
        found[f"seconds_32768_bf16_{precision}"] = statistics.median(in_turns({"": case}, 7)[""])
    torch.set_float32_matmul_precision("highest")
    return found


def compiled(b: int, device: str, rounds: int, compiler: str) -> dict[str, Any]:
    """The chosen method in one graph of torch.compile."""
    eager, fused = Case(b, "auto", device), Case(b, "auto", device)
    fused.loss.compile(fullgraph=True, backend=compiler)
    first = seconds(fused)
    times = in_turns({"eager": eager, "compiled": fused}, rounds_for(b, rounds))
    return {
        "batch_size": b,
        "seconds": {k: statistics.median(v) for k, v in times.items()},
        "compiled_over_eager": ratio(times["compiled"], times["eager"]),
        "first_call_seconds": first,
    }


@click.command()
@click.option("--device", default="cpu")
@click.option("--largest", default=16384)
@click.option("--most-dense", default=16384, help="The dense loss takes 20 GB there.")
@click.option("--rounds", default=60, help="At most; large batches get fewer.")
@click.option("--compiler", default="inductor", help="torch.compile's backend.")
@click.option("--one", nargs=3, hidden=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    device: str,
    largest: int,
    most_dense: int,
    rounds: int,
    compiler: str,
    one: tuple[str, str, str] | None,
    out: Path | None,
) -> None:
    """Measure, print tables, write the figures to --out."""
    if one is not None:
        print(extra_memory(int(one[0]), one[1], device, getattr(torch, one[2])))
        return
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.platform()
    results: dict[str, Any] = {"machine": machine, "cores": cpu_count(), "torch": torch.__version__}
    screen, sizes = Console(width=140), [2**k for k in range(7, 1 + largest.bit_length() - 1)]
    table = Table(
        "B",
        "dense",
        "tiled",
        "tiled/dense",
        "auto/dense",
        "products",
        "tiled/products",
        "dense MB",
        "tiled MB",
    )
    results["sizes"] = [by_size(b, device, most_dense, rounds) for b in sizes]
    for f in results["sizes"]:
        s, m = f["seconds"], f["extra_bytes"]
        times = [f"{s[k] * 1e3:,.1f} ms" if k in s else "-" for k in ("dense", "tiled")]
        ratios = [f"{f[k]:.2f}" if k in f else "-" for k in ("tiled_over_dense", "auto_over_dense")]
        memory = [f"{m[k] / 1e6:,.0f}" if m.get(k) else "-" for k in ("dense", "tiled")]
        products = f"{s['products'] * 1e3:,.1f} ms", f"{f['over_products']:.2f}"
        table.add_row(f"{f['batch_size']:,}", *times, *ratios, *products, *memory)
    screen.print(table)
    results["open_clip"] = [against_open_clip(b, device, rounds) for b in sizes if b <= 8192]
    table = Table("B", "ours", "open_clip", "ours/open_clip", "values apart", "gradients apart")
    for f in results["open_clip"]:
        times = [f"{f['seconds'][k] * 1e3:,.2f} ms" for k in ("ours", "theirs")]
        apart = f"{f['values_apart']:.1e}", f"{f['gradients_apart']:.1e}"
        table.add_row(f"{f['batch_size']:,}", *times, f"{f['ours_over_theirs']:.2f}", *apart)
    screen.print(table)
    results["compiled"] = [
        compiled(b, device, rounds, compiler) for b in (128, 1024, 4096) if b <= largest
    ]
    table = Table("B", "eager", "compiled", "compiled/eager", "first call")
    for f in results["compiled"]:
        times = [f"{f['seconds'][k] * 1e3:,.2f} ms" for k in ("eager", "compiled")]
        table.add_row(
            f"{f['batch_size']:,}",
            *times,
            f"{f['compiled_over_eager']:.2f}",
            f"{f['first_call_seconds']:.0f} s",
        )
    screen.print(table)
    if device == "cuda":
        results["gpu"] = largest_on_gpu()
        print(results["gpu"])
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
