"""The API reference is built without a warning, and every public name in it is documented."""

import importlib.util
import inspect
import re
from pathlib import Path
from pkgutil import iter_modules

import pytest

import cusa
import cusa.hosts

ROOT = Path(cusa.__file__).parent.parent
ARRAYS = ("Tensor", "np.ndarray", "Rows")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The text of each page by its path. Any warning of the build would be an error."""
    spec = importlib.util.spec_from_file_location("build_api", ROOT / "docs" / "build_api.py")
    build_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build_api)
    folder = tmp_path_factory.mktemp("api")
    build_api.build(folder)
    texts = {}
    for path in folder.rglob("*.html"):
        texts[path.relative_to(folder).as_posix()] = path.read_text(encoding="utf-8")
    return texts


def test_every_public_name_is_in_the_reference(pages):
    for name in cusa.__all__:
        assert f'<section id="{name}">' in pages["cusa.html"], name


def test_the_page_on_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", page))
    assert set(cusa.__all__) <= words


def test_errors_and_hosts_have_pages(pages):
    hosts = [info.name for info in iter_modules(cusa.hosts.__path__)]
    assert hosts
    for host in hosts:
        assert f"cusa/hosts/{host}.html" in pages
    assert '<section id="StoreError">' in pages["cusa/data/errors.html"]


def test_settings_are_shown_with_their_defaults(pages):
    shown = re.sub(r"<[^>]+>", "", pages["cusa.html"])
    assert re.search(r"alpha: float\s*=\s*0\.1", shown)
    assert "Validator" not in shown
    assert "FieldInfo" not in shown


def test_building_the_reference_leaves_the_classes_as_they_were(pages):
    assert pages
    assert cusa.LossConfig(alpha=0.3).alpha == 0.3
    with pytest.raises(cusa.CusaError):
        cusa.Temperature(init=-1, min=0.1, max=1)


def _public_callables():
    """Yield public functions and classes, and the public methods of these, by their names."""
    for name in cusa.__all__:
        # A package that can be called has the function in __wrapped__.
        public = inspect.unwrap(getattr(cusa, name))
        yield name, public
        if inspect.isclass(public):
            for member_name, member in vars(public).items():
                if inspect.isfunction(member) and not member_name.startswith("_"):
                    yield f"{name}.{member_name}", member


def _descriptions(docstring):
    """The text of each argument in a docstring; ``None`` if it has no list of arguments."""
    sections = re.split(r"^(?=\S)", docstring, flags=re.MULTILINE)
    lists = [text for text in sections if text.startswith(("Args:", "Keyword Args:"))]
    if not lists:
        return None
    return dict(re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", "".join(lists), re.MULTILINE))


def test_every_public_name_has_a_summary():
    for name, documented in _public_callables():
        docstring = inspect.getdoc(documented) or ""
        summary = docstring.partition("\n")[0]
        assert len(summary.split()) > 1, name
        assert summary.endswith((".", ":")), name


def test_every_argument_is_described_and_every_array_has_a_shape():
    n_arrays = 0
    for name, documented in _public_callables():
        if inspect.isclass(documented):
            continue
        descriptions = _descriptions(inspect.getdoc(documented))
        parameters = dict(inspect.signature(documented).parameters)
        parameters.pop("self", None)
        # A sentence is enough for a method with one argument.
        if descriptions is None and "." in name and len(parameters) < 2:
            continue
        for parameter in parameters.values():
            assert parameter.name in (descriptions or {}), name
            annotation = str(parameter.annotation)
            if annotation.startswith(ARRAYS) and "float" not in annotation:
                n_arrays += 1
                description = descriptions[parameter.name]
                assert re.search(r"\[\w|As in|tensor|scalar", description), (name, parameter)
    assert n_arrays > 20
