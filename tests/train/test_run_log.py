"""metrics.jsonl of a run: what is whole of it is read, and what is not is counted."""

from cusa.eval.charts import points, temperatures
from cusa.train.run_dir import MetricsLog, read_metrics, read_metrics_log


def test_damaged_lines_of_the_log_are_left_out_and_counted(tmp_path):
    lines = [
        b'{"kind": "train", "step": 1, "loss": 2.5}',
        b'{"kind": "train", "step": 2, "lo',
        b"",
        b"[1, 2]",
        b'{"kind": "train", "step": "three"}',
        b'{"kind": "train", "step": 4, "loss": [1]}',
        b'{"kind": "train", "step": 5, "loss": NaN}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"kind": "val", "step": 6, "rsum": null}',
        b'{"kind": "train", "step": 7',  # cut off by a kill
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    found, n_damaged = read_metrics_log(tmp_path)
    assert [line["step"] for line in found] == [1, 6]
    assert n_damaged == 8
    assert read_metrics(tmp_path) == found
    assert read_metrics_log(tmp_path / "nowhere") == ([], 0)
    assert temperatures([found]) == {}
    assert len(points(found, "val", "step", "rsum")[0]) == 0
    MetricsLog(tmp_path).trim(step=5, epoch=0)
    assert read_metrics_log(tmp_path) == (found[:1], 0)
