"""metrics.jsonl of a run: what is whole of it is read, and what is not is named."""

from cusa.eval.report.charts import points, temperatures
from cusa.train.saving.run_dir import MetricsLog, read_history, read_metrics
from cusa.train.saving.run_progress import Progress


def test_damaged_lines_of_the_log_are_left_out_and_named(tmp_path):
    lines = [
        b'{"kind": "train", "step": 1, "epoch": 0.5, "loss": 2.5}',
        b'{"kind": "train", "step": 2, "lo',
        b"",
        b"[1, 2]",
        b'{"kind": "train", "step": "three", "epoch": 1}',
        b'{"kind": "train", "step": 4, "epoch": 1, "loss": [1]}',
        b'{"kind": "train", "step": 5, "epoch": 1, "loss": NaN}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"kind": "val", "step": 6, "epoch": 1, "best": true, "rsum": null}',
        b'{"kind": "val", "step": 6, "epoch": 1, "best": true, "rsum": 200.5}',
        b'{"kind": "train", "step": 7',  # cut off by a kill
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    history = read_history(tmp_path)
    assert [line["step"] for line in history.lines] == [1, 6]
    assert "line 2 and 8 more" in history.note
    assert read_metrics(tmp_path) == history.lines
    assert read_history(tmp_path / "nowhere") == ([], "")
    assert temperatures([history.lines]) == {}
    assert points(history.lines, "val", "step", "rsum")[1].tolist() == [200.5]
    MetricsLog(tmp_path).trim(Progress(5, 0, 0, None, 0))
    assert read_history(tmp_path) == (history.lines[:1], "")
