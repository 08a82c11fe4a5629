"""The rules of the house: who imports whom, how long imports take, what a wheel holds."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cusa
from cusa.callable_package import CallablePackage

ROOT = Path(cusa.__file__).parent.parent
MAY_IMPORT = {
    "data": set(),
    "precompute": {"data"},
    "train": {"data"},
    "eval": {"data", "precompute", "train"},
}
ROOMS = set(MAY_IMPORT)
# Rooms within a room, and which of the rooms beside them they import. Arrows both ways are few: a
# registry and what it registers, settings and their reader.
INNER_IMPORTS = {
    "data": {"data/demo_set", "data/readers"},
    "data/demo_set": {"data"},
    "data/encoders": {"data"},
    "data/foreign": {"data"},
    "data/objects": {"data"},
    "data/readers": {"data"},
    "data/store": {"data", "data/foreign", "data/objects"},
    "data/tars": {"data", "data/objects", "data/readers", "data/store"},
    "precompute": {"precompute/teachers"},
    "precompute/tars": {"precompute", "precompute/teachers"},
    "precompute/teachers": set(),
    "train": {"train/loss", "train/loss/rules", "train/saving", "train/tars", "train/towers"},
    "train/trackers": {"train", "train/saving"},
    "train/loss": {"train", "train/loss/rules"},
    "train/loss/rules": {"train", "train/loss"},
    "train/saving": {"train", "train/loss", "train/towers"},
    "train/tars": {"train", "train/saving", "train/towers"},
    "train/towers": {"train"},
    "eval": {
        "eval/evaluators",
        "eval/evaluators/retrieval",
        "eval/metrics",
        "eval/models",
        "eval/report",
    },
    "eval/evaluators": {
        "eval/evaluators/images",
        "eval/evaluators/judgements",
        "eval/evaluators/retrieval",
        "eval/evaluators/sts",
        "eval/metrics",
        "eval/models",
        "eval/report",
        "eval/search",
    },
    "eval/evaluators/images": {"eval/evaluators", "eval/metrics", "eval/models", "eval/report"},
    "eval/evaluators/judgements": {"eval/evaluators", "eval/metrics", "eval/models", "eval/report"},
    "eval/evaluators/retrieval": {
        "eval/evaluators",
        "eval/metrics",
        "eval/models",
        "eval/report",
        "eval/search",
    },
    "eval/evaluators/sts": {"eval/evaluators", "eval/metrics", "eval/models", "eval/report"},
    "eval/inspection": {"eval/evaluators", "eval/evaluators/judgements", "eval/report"},
    "eval/metrics": set(),
    "eval/models": {"eval/metrics"},
    "eval/report": {"eval/inspection", "eval/metrics"},
    "eval/search": {"eval/metrics", "eval/models", "eval/report"},
}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_only_what_they_may(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for name in _imports(path):
            parts = name.split(".")
            assert parts[0] not in ROOMS, f"{path} imports {name} by its bare name"
            if parts[0] == "cusa" and len(parts) > 1 and parts[1] in ROOMS - {room}:
                assert parts[1] in MAY_IMPORT[room], f"{path} imports {name}"


def test_metrics_import_data_alone():
    """Training is handed its validation score from there, and may not depend on evaluation."""
    files = list((ROOT / "eval" / "metrics").glob("*.py"))
    assert files
    for path in files:
        for name in _imports(path):
            if name.partition(".")[0] == "cusa":
                assert name.startswith(("cusa.data.", "cusa.eval.metrics.")), f"{path}: {name}"


def _inner_room(module):
    """The room of a module's name, such as ``data/store``; empty outside the rooms."""
    parts = module.split(".")
    if parts[0] != "cusa" or len(parts) < 2 or parts[1] not in ROOMS:
        return ""
    folder = ROOT.joinpath(*parts[1:])
    room = folder if folder.is_dir() else folder.parent
    return room.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("room", sorted(INNER_IMPORTS))
def test_inner_rooms_import_only_what_they_may(room):
    top_room = room.split("/")[0]
    allowed = INNER_IMPORTS[room] | {room}
    for path in (ROOT / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                imported = _inner_room(node.module)
                if imported.split("/")[0] == top_room:
                    assert imported in allowed, f"{path} imports {node.module}"


def test_every_inner_room_is_in_the_table():
    rooms = set()
    for top_room in ROOMS:
        for init_file in (ROOT / top_room).rglob("__init__.py"):
            rooms.add(init_file.parent.relative_to(ROOT).as_posix())
    assert rooms == set(INNER_IMPORTS)


def test_only_command_lines_use_click_and_rich():
    for path in (p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        assert not {n.split(".")[0] for n in _imports(path)} & {"click", "rich"}, path


def _imports_of_cusa(folder):
    """The files of a folder of cusa/ with what they import; commands of their own are left out."""
    files = [path for path in (ROOT / "cusa" / folder).rglob("*.py") if path.name != "__main__.py"]
    assert files
    for path in files:
        for name in _imports(path):
            yield path, name


@pytest.mark.parametrize(
    ("folder", "callers"),
    [
        ("screen", ("cusa.cli", "cusa.hosts", "cusa.stages")),
        ("stages", ("cusa.cli", "cusa.hosts")),
        ("hosts", ("cusa.cli",)),
    ],
)
def test_commands_call_stages_and_stages_call_the_screen(folder, callers):
    """Never the other way round, not even for a type or within a function."""
    for path, name in _imports_of_cusa(folder):
        assert not f"{name}.".startswith(tuple(f"{caller}." for caller in callers)), (path, name)


def _loads_a_model(call):
    """Whether a call is one of transformers' or sentence-transformers' that may run code of a
    model's folder.
    """
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "from_pretrained":
        return "EfficientNet" not in ast.unparse(call.func)
    return name == "SentenceTransformer" and bool(call.args)


def test_code_of_a_model_is_never_run():
    """transformers asks on standard input otherwise, and runs it on "y"."""
    folders = [ROOT / room for room in (*ROOMS, "cusa", "benchmarks", "docs/examples")]
    calls = []
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _loads_a_model(node):
                settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                calls.append(path)
                assert settings.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
    assert len(calls) > 8


def test_public_names():
    stub = ast.parse((ROOT / "cusa" / "__init__.pyi").read_text())
    homes = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            homes |= dict.fromkeys((alias.name for alias in node.names), f"cusa.{node.module}")
    assert sorted(homes) == cusa.__all__
    for name, home in homes.items():
        public = getattr(cusa, name)
        if isinstance(public, CallablePackage):
            public = public.__wrapped__
        assert (public.__name__, public.__module__) == (name, home)
    assert set(cusa.__all__) <= set(dir(cusa))
    assert not hasattr(cusa, "nope")


def _fresh(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_cusa_loads_nothing_heavy():
    code = "import sys, cusa; print(sorted({m.split('.')[0] for m in sys.modules}))"
    assert not set(ast.literal_eval(_fresh(code))) & {
        "torch",
        "transformers",
        "numpy",
        "h5py",
        "pydantic",
        "rich",
    }


@pytest.mark.parametrize(
    "module", ["cusa.cli.precompute", "cusa.cli.train", "cusa.cli.evaluate", "cusa.cli.store"]
)
def test_help_loads_nothing_heavy(module):
    code = (
        f"import sys, {module} as c\n"
        "c.main(['--help'], standalone_mode=False)\nprint(sorted(sys.modules))"
    )
    loaded = ast.literal_eval(_fresh(code).splitlines()[-1])
    assert not {m.split(".")[0] for m in loaded} & {
        "torch",
        "transformers",
        "numpy",
        "h5py",
        "pydantic",
        "matplotlib",
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in names:  # a copy: building leaves files in the tree
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        tree,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("cusa-*.whl"))


def test_a_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names} == {"cusa", f"cusa-{cusa.__version__}.dist-info"}
    assert not [n for n in names if "test" in n]
    for needed in (
        "cusa/train/presets/demo.yaml",
        "cusa/eval/report/report.html.jinja",
        "cusa/py.typed",
        "cusa/__init__.pyi",
        "cusa/train/saving/model_card.md.jinja",
        "cusa/eval/report/paper.json",
        "cusa/data/demo_set/make.py",
    ):
        assert needed in names
    sources = {
        p.relative_to(ROOT).as_posix() for room in ROOMS for p in (ROOT / room).rglob("*.py")
    }
    assert {f"cusa/{s}" for s in sources} <= set(names)


def test_an_installed_wheel_works_outside_the_repository(wheel, tmp_path):
    """Unpacked as pip would, with nothing of the source tree on the path."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        f"sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import cusa, cusa.train.preset_files as files\n"
        f"assert cusa.__file__.startswith({str(tmp_path)!r}), cusa.__file__\n"
        f"assert files.__file__.startswith({str(tmp_path)!r})\n"
        "names = [getattr(cusa, n).__name__.split('.')[-1] for n in cusa.__all__]\n"
        "print(cusa.__version__, names == list(cusa.__all__), files.presets())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{cusa.__version__} True ['adapter'")


def test_python_in_a_copy_of_the_repository_needs_no_editable_installation():
    """There, the folder cusa shadows what pip has installed."""
    code = (
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import cusa.data.errors, cusa.hosts\n"
        "from cusa import precompute, CusaError"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_commands_are_installed():
    for name in ("cusa-precompute", "cusa-train", "cusa-eval", "cusa-store"):
        command = Path(sys.executable).parent / name
        done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
        assert done.stdout.strip().endswith(cusa.__version__), done.stderr
