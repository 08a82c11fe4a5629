"""The tutorial notebook runs from its first cell to its last, and is committed without outputs."""

import json
from pathlib import Path

import cusa

NOTEBOOK = Path(cusa.__file__).parent.parent / "docs" / "tutorial.ipynb"


def test_the_tutorial_runs_without_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = []
    for cell in cells:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            sources.append("".join(cell["source"]))
    assert len(sources) > 5
    namespace = {}
    # Stages one and two again: what is finished is found.
    again = [
        source for source in sources if "= cusa.precompute(" in source or "cusa.train(" in source
    ]
    assert len(again) == 2
    for source in (*sources, *again):
        exec(compile(source, str(NOTEBOOK), "exec"), namespace)
    assert namespace["evaluation"].report.is_file()
    assert set(namespace["evaluation"].metrics) == {"contrastive", "cusa"}
    assert namespace["similarities"].shape == (15,)
    out = capsys.readouterr().out
    assert str(namespace["evaluation"].report) in out
