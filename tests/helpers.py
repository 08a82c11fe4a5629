"""Small data sets, stores and models that several tests need, all made here."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from cusa.cli.evaluate import main as eval_main
from cusa.cli.precompute import main as precompute_main
from cusa.cli.store import main as store_main
from cusa.cli.train import main as train_main
from cusa.data.errors import CusaError
from cusa.data.records import Dataset, Record, Truth
from cusa.data.store.checksum import BLOCK
from cusa.data.store.index import Index, read_index, write_index
from cusa.data.store.schema import TeacherSettings, shard_folder, shard_name
from cusa.data.store.shards import ShardHeader, stored_rows, write_shard
from cusa.data.store.teacher_entry import TeacherEntry
from tests.child_processes import PATIENCE_S, status_at_end

# A student that trains in no time.
ADAPTER = ("--student", "adapter", "--set", "student.hidden_dim=16", "--set", "student.embed_dim=8")
GOLDEN = Path(__file__).parent / "golden"
COMMANDS = {
    "precompute": precompute_main,
    "train": train_main,
    "eval": eval_main,
    "store": store_main,
}


def run(command: str, *args: object) -> Result:
    """Run a command line in this process."""
    return CliRunner().invoke(COMMANDS[command], [str(a) for a in args])


def run_ok(command: str, *args: object) -> str:
    """Run a command line that must succeed; its output."""
    result = run(command, *args)
    assert result.exit_code == 0, result.output
    return result.output


def run_error(command: str, *args: object) -> str:
    """Run a command line that must fail with one line and a non-zero status; that line."""
    result = run(command, *args)
    assert result.exit_code != 0, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.output
    assert "Traceback" not in result.output
    return errors[0]


def run_failure(command: str, *args: object) -> CusaError:
    """Run a command line that must fail in the same way; the error behind the line."""
    result = run(command, *args)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    error = result.exception.__context__
    assert isinstance(error, CusaError), repr(error)
    assert not error.name.startswith("--"), "an option is named as in Python"
    return error


class ForkedCommand:
    """A command line in a copy of this process, which may be disturbed and killed.

    A new interpreter would import the libraries first, for seconds.

    Args:
        command: The command's name.
        *args: Its arguments.
        patch: Called in the copy before the command begins.
    """

    def __init__(
        self, command: str, *args: object, patch: Callable[[], object] = lambda: None
    ) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._command = command
        self._args = [str(argument) for argument in args]
        self._patch = patch
        self._process = multiprocessing.get_context("fork").Process(target=self._run)
        self._process.start()
        self.pid = self._process.pid

    def _run(self) -> None:
        os.dup2(self._output.fileno(), 1)
        os.dup2(self._errors.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        self._patch()
        COMMANDS[self._command].main(self._args, f"cusa-{self._command}")

    @property
    def returncode(self) -> int | None:
        """Its status, once it has ended."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._process.pid, number)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait until it has ended; its status and what it printed."""
        status = status_at_end(self._process)
        texts = []
        for file in (self._output, self._errors):
            file.seek(0)
            texts.append(file.read())
            file.close()
        assert status is not None, f"{self._command} does not end: {texts}"
        return subprocess.CompletedProcess(self._args, status, *texts)


def run_ranks(
    n_ranks: int, command: str, *args: object, patch: Callable[[], object] = lambda: None
) -> subprocess.CompletedProcess[str]:
    """Run a command line in several processes of one group, as torchrun does.

    One that fails stops the others. The status is that of the first that failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def launched(rank: int) -> Callable[[], None]:
        def in_group() -> None:
            group = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
            group |= {"WORLD_SIZE": n_ranks, "LOCAL_WORLD_SIZE": n_ranks}
            os.environ.update({name: str(value) for name, value in group.items()})
            # Gloo's own connection attempts go to whatever address the machine's name has.
            os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
            patch()

        return in_group

    ranks = [ForkedCommand(command, *args, patch=launched(rank)) for rank in range(n_ranks)]
    status = 0
    deadline = time.monotonic() + PATIENCE_S
    while any(rank.returncode is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.02)
        failed = [rank.returncode for rank in ranks if rank.returncode]
        if failed and not status:
            status = failed[0]
            for rank in ranks:
                if rank.returncode is None:
                    rank.send_signal(signal.SIGTERM)
    late = [number for number, rank in enumerate(ranks) if rank.returncode is None]
    for number in late:
        ranks[number].send_signal(signal.SIGKILL)
    done = [rank.wait() for rank in ranks]
    assert not late, f"ranks {late} do not end: {[(rank.stdout, rank.stderr) for rank in done]}"
    if not status:  # they ended within one look at them
        status = next((rank.returncode for rank in done if rank.returncode), 0)
    texts = ("".join(rank.stdout for rank in done), "".join(rank.stderr for rank in done))
    return subprocess.CompletedProcess(list(args), status, *texts)


def kill_at(
    owner: type, method: str, step: int, number: int = signal.SIGKILL, times: int = 1
) -> Callable[[], None]:
    """A patch under which a trainer's process gets a signal before a step (counted from 0)."""

    def patch() -> None:
        plain = getattr(owner, method)

        def wrapped(self: Any, *args: object) -> object:
            if self.progress.step == step:
                for _ in range(times):
                    os.kill(os.getpid(), number)
            return plain(self, *args)

        setattr(owner, method, wrapped)

    return patch


@dataclass(frozen=True)
class Fault:
    """What an error says by its class and its fields, whatever its wording."""

    kind: type[CusaError]
    path: Path | None = None
    location: str = ""
    name: str = ""


def fault_of(error: BaseException, folder: Path | None = None) -> Fault:
    """What an error says besides its words; its path is made relative to ``folder``."""
    assert isinstance(error, CusaError), repr(error)
    assert "\n" not in str(error)
    assert not error.name.startswith("--"), "an option is named as in Python"
    path = error.path
    if folder is not None and path is not None:
        path = path.relative_to(folder)
    return Fault(type(error), path, error.location, error.name)


def run_fault(command: str, *args: object) -> Fault:
    """Run a command line that must fail with one line; the fault behind it."""
    return fault_of(run_failure(command, *args))


def make_images(folder: Path, n: int, seed: int = 0) -> list[str]:
    """n small colourful JPEG files; their names."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i in range(n):
        pixels = np.kron(rng.integers(0, 255, (3, 4, 3)), np.ones((12, 12, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.jpg")
        names.append(f"{i:03d}.jpg")
    return names


def make_pairs(folder: Path, n: int = 12, n_val: int = 4, captions: int = 2) -> Path:
    """Images and a JSONL manifest with a train and a val split; the manifest."""
    lines = []
    for i, name in enumerate(make_images(folder, n)):
        for c in range(captions):
            split = "val" if i >= n - n_val else "train"
            row = {
                "image": name,
                "caption": f"picture number {i}, version {c}",
                "image_id": f"id{i}",
                "split": split,
            }
            lines.append(json.dumps(row))
    manifest = folder / "pairs.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def settings(modality: str, dim: int, **changes: object) -> TeacherSettings:
    """Made-up teacher settings."""
    fields: dict[str, object] = {
        "modality": modality,
        "model_id": f"made-up-{modality}",
        "weights_sha256": "0" * 64,
        "transform": {"size": 8},
        "normalizer": "albef" if modality == "text" else "none",
        "precision": "fp32",
        "dim": dim,
        "dtype": "float16",
        "normalized": True,
    }
    return TeacherSettings(**{**fields, **changes})  # type: ignore[arg-type]


def records(split: str, n: int, captions: int = 2) -> tuple[Record, ...]:
    """n made-up records."""
    return tuple(
        Record(
            f"{split}{i}",
            f"{split}/{i}.jpg",
            tuple(f"{split} {i} text {c}" for c in range(captions)),
            tuple(f"{split}{i}#{c}" for c in range(captions)),
        )
        for i in range(n)
    )


def unit_rows(n: int, dim: int, seed: int) -> np.ndarray:
    """float32 [n, dim], L2-normalised."""
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def add_teacher(
    index: Path,
    dataset: Dataset,
    name: str,
    config: TeacherSettings,
    rows: dict[str, np.ndarray],
    shard_rows: int = 7,
    skipped: Sequence[int] = (),
) -> None:
    """Write a teacher's rows into a store; ``skipped`` are rows of every split."""
    shards = {}
    for split, values in rows.items():
        done = []
        for a in range(0, len(values), shard_rows):
            b = min(a + shard_rows, len(values))
            relative = f"{shard_folder(index).name}/{shard_name(name, split, a, b)}"
            header = ShardHeader(name, split, dataset.splits[split].fingerprint, a, b, config)
            block = stored_rows(values[a:b], config.dtype)
            missing = [s for s in skipped if a <= s < b]
            block[[s - a for s in missing]] = np.nan
            done.append(write_shard(index.parent, relative, header, block, missing))
        shards[split] = tuple(done)
    new = Index.from_dataset(
        dataset, {name: TeacherEntry(config, shards, "made up", {"numpy": np.__version__})}
    )
    if index.exists():
        new = replace(read_index(index), image_root=new.image_root).joined(new, str(index))
    write_index(index, new)


def make_store(
    folder: Path, sizes: dict[str, int] | None = None, dim: int = 16, truth: bool = False
) -> Path:
    """A store of made-up rows in which matching images and captions are alike; teachers ``vision``
    and ``words``.
    """
    sizes = sizes or {"train": 40, "val": 10, "test": 8}
    splits = {name: records(name, n) for name, n in sizes.items()}
    known = {}
    if truth:
        for name, n in sizes.items():
            own = np.repeat(np.arange(n), 2)
            known[name] = Truth(np.arange(n) // 2, np.arange(2 * n + 1), own)
    dataset = Dataset("made-up", folder, splits, known)
    index = folder / "store.h5"
    images = {s: unit_rows(n, dim, seed=i) for i, (s, n) in enumerate(sizes.items())}
    texts = {
        s: np.repeat(rows, 2, axis=0) + 0.1 * unit_rows(2 * len(rows), dim, 9)
        for s, rows in images.items()
    }
    add_teacher(index, dataset, "vision", settings("image", dim), images)
    add_teacher(index, dataset, "words", settings("text", dim), texts)
    return index


def change_sealed(path: Path, change: Callable[[h5py.File], object]) -> None:
    """Change a sealed file and seal it again, so that nothing but what it says is wrong."""
    with h5py.File(path, "r+") as file:
        change(file)
    content = path.read_bytes()
    first_words = content[: content.index(b"=") + 1]
    line = first_words + hashlib.sha256(content[BLOCK:]).hexdigest().encode() + b"\n"
    path.write_bytes(line.ljust(BLOCK, b"\0") + content[BLOCK:])


def make_tiny_clip(folder: Path) -> Path:
    """A CLIPModel with random weights, a word-level tokeniser and an image processor, as a model
    folder.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    words = [
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
        "picture",
        "number",
        "version",
        *(str(i) for i in range(50)),
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=16, **special
    ).save_pretrained(folder)
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {
        **size,
        "vocab_size": len(words),
        "max_position_embeddings": 16,
        "eos_token_id": 1,
        "bos_token_id": 0,
    }
    vision = {**size, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    ).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def make_tiny_vit(folder: Path, *, poison: bool = False) -> Path:
    """A ViT image encoder with random weights as a model folder; ``poison`` makes it return
    infinity.
    """
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    model = ViTModel(config)
    if poison:
        torch.nn.init.constant_(model.layernorm.weight, torch.finfo(torch.float32).max)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def make_tiny_sentence(folder: Path) -> Path:
    """A BERT text encoder with random weights and a word-level tokeniser as a model folder; its
    tokens are pooled.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "picture", "number", "version", *(str(i) for i in range(50))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.Lowercase(),
        pre_tokenizers.Whitespace(),
    )
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=32, **special
    ).save_pretrained(folder)
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def make_older(path: Path) -> None:
    """Make a store's file one of format 2.0, without lookup tables and pictures' checksums."""

    def remove_additions(file: h5py.File) -> None:
        file.attrs["format_version"] = np.asarray((2, 0), "<i4")
        for split in file.get("splits", {}).values():
            split.pop("lookup", None)
        file.pop("picture_sha256", None)

    change_sealed(path, remove_additions)
    content = path.read_bytes()
    path.write_bytes(content.replace(b" 2.1 sha256=", b" 2.0 sha256=", 1))
