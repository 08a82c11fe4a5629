"""Damaged files of a run: a line that names the file, an older checkpoint, never other weights."""

import json
import shutil

import pytest
import torch
import yaml

from cusa.data.errors import CusaError, RunError, SettingError, StudentError
from cusa.train.saving.run_dir import Checkpoints, load_run, load_trained, read_history
from cusa.train.saving.student_folder import load_saved
from cusa.train.saving.tensors import load_tensors, save_tensors
from tests.helpers import (
    ADAPTER,
    Fault,
    make_pairs,
    make_store,
    make_tiny_clip,
    run_error,
    run_failure,
    run_fault,
    run_ok,
)
from tests.train.pictures import precompute_pictures, student_options

HEAD = "image_heads.cross.1.weight"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    index = make_store(folder / "store")
    run_ok(
        "train",
        "--embeddings",
        index,
        "--run-dir",
        folder / "run",
        *ADAPTER,
        "--batch-size",
        16,
        "--epochs",
        2,
    )
    return folder / "run"


@pytest.fixture
def run_dir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def _refused(call, kind, path):
    """The call must raise this kind of error, naming this file, in one line."""
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    assert error.value.path == path


def _reseal(path, change_tensors=None, change_meta=None):
    """Write a file of tensors again, changed, with a checksum that holds."""
    tensors, meta = load_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if change_tensors:
        change_tensors(tensors)
    if change_meta:
        change_meta(meta)
    save_tensors(path, tensors, meta)


TORN = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "header of 2^63 bytes": lambda content: (2**63).to_bytes(8, "little") + content[8:],
    "header of 90 MB": lambda content: (90_000_000).to_bytes(8, "little") + content[8:],
    "header no JSON": lambda content: content[:8] + b"[" * 200 + content[208:],
    "a flipped bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "another dtype in the header": lambda content: content.replace(b'"F32"', b'"I32"', 1),
    "a dtype that torch lacks": lambda content: content.replace(b'"F32"', b'"F4" ', 1),
    "no file of ours": lambda content: content.replace(b'"cusa"', b'"xusa"'),
    "text": lambda content: b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("tear", TORN.values(), ids=TORN)
def test_a_torn_student_is_refused(run_dir, tear):
    weights = run_dir / "best" / "student.safetensors"
    weights.write_bytes(tear(weights.read_bytes()))
    _refused(lambda: load_saved(run_dir), RunError, weights)


def _set(name, value):
    def change(tensors):
        tensors[name] = value(tensors[name])

    return change


UNFIT = {
    "missing": lambda tensors: tensors.pop(HEAD),
    "unknown": lambda tensors: tensors.update(new=torch.zeros(2)),
    "half precision": _set(HEAD, torch.Tensor.half),
    "double precision": _set(HEAD, torch.Tensor.double),
    "one row more": _set(HEAD, lambda weight: torch.cat([weight, weight[:1]])),
    "one dimension more": _set(HEAD, lambda weight: weight[None]),
    "no rows": _set(HEAD, lambda weight: weight[:0]),
    "NaN": _set(HEAD, lambda weight: weight.fill_(float("nan"))),
    "infinite": _set("text_trunk.0.bias", lambda bias: bias.fill_(float("inf"))),
}


@pytest.mark.parametrize("change", UNFIT.values(), ids=UNFIT)
def test_other_weights_than_the_students_are_refused(run_dir, change):
    """Under a checksum that holds: nothing is cast, filled in or left out in silence."""
    _reseal(run_dir / "best" / "student.safetensors", change)
    _refused(lambda: load_saved(run_dir), StudentError, run_dir / "best")


ORIGINS = {
    "no config": lambda origin: origin.pop("config"),
    "no provenance": lambda origin: origin.pop("provenance"),
    "an epoch of text": lambda origin: origin.update(epoch="3"),
    "an epoch of bool": lambda origin: origin.update(epoch=True),
    "a negative step": lambda origin: origin.update(step=-1),
    "val no mapping": lambda origin: origin.update(val=[1]),
    "an unknown setting": lambda origin: origin["config"]["train"].update(epoch=3),
    "a setting out of range": lambda origin: origin["config"]["student"].update(embed_dim=10**12),
    "no encoders": lambda origin: origin["provenance"].update(encoders={}),
    "encoders null": lambda origin: origin["provenance"].update(encoders=None),
    "no settings of an encoder": lambda origin: origin["provenance"]["encoders"]["image"].pop(
        "settings"
    ),
    "an encoder of 10^12 dimensions": lambda origin: _encoder(origin).update(dim=10**12),
    "dimensions of text": lambda origin: _encoder(origin).update(dim="16"),
    "rows of objects": lambda origin: _encoder(origin).update(dtype="O"),
}


def _encoder(origin):
    return origin["provenance"]["encoders"]["image"]["settings"]


@pytest.mark.parametrize("change", ORIGINS.values(), ids=ORIGINS)
def test_an_origin_of_other_types_is_refused(run_dir, change):
    weights = run_dir / "best" / "student.safetensors"
    _reseal(weights, change_meta=change)
    _refused(lambda: load_saved(run_dir), RunError, weights)


def test_nothing_is_allocated_for_sizes_that_the_weights_do_not_have(run_dir):
    """16,384 times 1,000,000 weights would be 66 GB."""

    def enlarge(origin):
        origin["config"]["student"]["hidden_dim"] = 16_384
        _encoder(origin)["dim"] = 1_000_000

    _reseal(run_dir / "best" / "student.safetensors", change_meta=enlarge)
    _refused(lambda: load_saved(run_dir), StudentError, run_dir / "best")


def test_a_folder_in_place_of_the_student_is_none(run_dir):
    weights = run_dir / "best" / "student.safetensors"
    weights.unlink()
    weights.mkdir()
    _refused(lambda: load_saved(run_dir), RunError, run_dir)
    _refused(lambda: load_saved(run_dir / "best"), StudentError, run_dir / "best")


def _run_json(change):
    def damaged(text):
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return damaged


PROVENANCES = {
    "empty": lambda text: "",
    "half": lambda text: text[:100],
    "deep": lambda text: "[" * 50_000,
    "a list": lambda text: "[]",
    "a number": lambda text: "3",
    "no splits": _run_json(lambda content: content.pop("splits")),
    "splits of numbers": _run_json(lambda content: content.update(splits={"train": 3})),
    "teachers a list": _run_json(lambda content: content.update(teachers=[])),
    "a teacher of text": _run_json(lambda content: content["teachers"].update(image="vision")),
    "no dimension": _run_json(lambda content: content["encoders"]["image"]["settings"].pop("dim")),
    "another dimension": _run_json(
        lambda content: content["encoders"]["image"]["settings"].update(dim=10**30)
    ),
}


@pytest.mark.parametrize("damage", PROVENANCES.values(), ids=PROVENANCES)
def test_a_run_json_of_other_types_is_refused(run_dir, damage):
    path = run_dir / "run.json"
    path.write_text(damage(path.read_text()))
    _refused(lambda: load_run(run_dir), CusaError, path)
    assert run_failure("train", "--resume", "--run-dir", run_dir).path == path


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda config: config["train"].update(epochs="many"), SettingError),
        (lambda config: config.update(train=3), SettingError),
        (lambda config: config.clear(), None),  # all are at their defaults, which are not the run's
        (lambda config: config["loss"].update(terms=["contrastive"]), None),
    ],
)
def test_a_config_that_was_changed_is_refused(run_dir, change, kind):
    path = run_dir / "config.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))
    if kind:
        _refused(lambda: load_run(run_dir), kind, path)
    run_error("train", "--resume", "--run-dir", run_dir)


METAS = {
    "no progress": lambda meta: meta.pop("progress"),
    "no origin": lambda meta: meta.pop("origin"),
    "no scaler": lambda meta: meta.pop("scaler"),
    "a step of text": lambda meta: meta["progress"].update(step="10"),
    "another step": lambda meta: meta["progress"].update(step=9),
    "a best RSUM of text": lambda meta: meta["progress"].update(best_rsum="300"),
    "an origin of another step": lambda meta: meta["origin"].update(step=3),
    "a scaler of text": lambda meta: meta.update(scaler={"scale": "1"}),
}


@pytest.mark.parametrize("change", METAS.values(), ids=METAS)
def test_a_checkpoint_whose_metadata_are_damaged_is_named_and_an_older_one_taken(run_dir, change):
    older, newest = Checkpoints(run_dir).paths()
    _reseal(newest, change_meta=change)
    found, problems = Checkpoints(run_dir).newest()
    assert found.progress.step == int(older.stem[-9:])
    assert str(newest) in problems[0]
    if "origin" not in load_tensors(newest)[1]:  # all that a student needs
        assert load_trained(run_dir, "last").origin.step == int(older.stem[-9:])
    assert str(newest) in run_ok("train", "--resume", "--run-dir", run_dir)
    older.unlink()
    _reseal(newest, change_meta=change)
    with pytest.raises(RunError) as error:
        Checkpoints(run_dir).newest()
    assert error.value.path == newest


MOMENT = f"optimizer.student.{HEAD}.exp_avg"
STATES = {
    "a weight in half precision": _set(f"student.{HEAD}", torch.Tensor.half),
    "a weight of another shape": _set(f"student.{HEAD}", lambda weight: weight[:, :3]),
    "a weight that is NaN": _set(f"student.{HEAD}", lambda weight: weight.fill_(float("nan"))),
    "no weight": lambda tensors: tensors.pop(f"student.{HEAD}"),
    "no temperature": lambda tensors: tensors.pop("loss.tau"),
    "no moment": lambda tensors: tensors.pop(MOMENT),
    "a moment of another shape": _set(MOMENT, lambda moment: moment[:1]),
    "a moment of another parameter": lambda tensors: tensors.update(
        {"optimizer.student.x.exp_avg": torch.zeros(1)}
    ),
    "no random state": lambda tensors: tensors.pop("rng.0.cpu"),
    "a random state of floats": _set("rng.0.cpu", torch.Tensor.float),
    "a short random state": _set("rng.0.cpu", lambda state: state[:8]),
    "a random state of impossible numbers": _set(
        "rng.0.cpu", lambda state: torch.full_like(state, 255)
    ),
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_a_checkpoint_of_another_state_is_refused(run_dir, change):
    _reseal(Checkpoints(run_dir).paths()[-1], change)
    assert run_fault("train", "--resume", "--run-dir", run_dir) == Fault(RunError, path=run_dir)


def test_damaged_lines_of_the_log_are_left_out_with_a_note(run_dir):
    path = run_dir / "metrics.jsonl"
    good = path.read_bytes()
    whole = read_history(run_dir)
    assert whole.note == ""
    bad = [
        b"",
        b"null",
        b"[]",
        b'{"kind": "train"}',
        b'{"kind": "train", "step": "3", "epoch": 1}',
        b'{"kind": "train", "step": 3, "epoch": 1, "loss": NaN}',
        b'{"kind": "train", "step": 3, "epoch": 1, "loss": {}}',
        b'{"kind": "val", "step": 3, "epoch": 1, "best": true}',
        b'{"kind": "val", "step": 3, "epoch": 1, "best": 1, "rsum": 3}',
        b'{"kind": "val", "step": 3, "epoch": 1, "best": true, "rsum": 3, "i2t_r1": "3"}',
        b'{"kind": "val", "step": 3, "epoch": 1, "best": true, "rsum": 3, "t2i_r10": true}',
        b'{"kind": "val", "step": 3, "epoch": 1, "best": true, "rsum": 3, "t2i_r5": 1e300}',
        b"[" * 20_000,
        b'{"kind": "train", "step": 3, "epoch": 1, "name": "\xff"}',
    ]
    for line in bad:
        path.write_bytes(line + b"\n" + good + b"\0\0\n" + good + b'{"kind": "tr')
        found = read_history(run_dir)
        assert found.lines == whole.lines * 2
        assert f"{path}: line 1 and 1 more" in found.note
    out = run_ok("train", "--resume", "--run-dir", run_dir)
    assert f"{path}: line 1 and 1 more" in out
    assert read_history(run_dir).note == ""  # resuming writes the log anew


def _as_earlier(origin):
    """An origin as version 0.1 of the first runs wrote it: without what was added later."""
    added = {
        "data": ("val_embeddings", "val_image_root"),
        "optim": ("schedule", "schedule_epochs", "schedule_steps", "warmup_steps"),
        "student": ("init",),
        "train": ("steps", "validate_every"),
    }
    for section, names in added.items():
        for name in names:
            del origin["config"][section][name]
    for name in ("beginning", "validation"):
        del origin["provenance"][name]
    del origin["processes"]


def test_runs_of_earlier_versions_load_and_go_on(trained, run_dir, tmp_path):
    """A run stopped after its first epoch, when a missing best RSUM was written as -Infinity."""
    whole, stopped = trained, run_dir
    older, newest = Checkpoints(stopped).paths()
    newest.unlink()

    def change(meta):
        _as_earlier(meta["origin"])
        step = meta["progress"]["step"]
        scores = {"best_rsum": float("-inf"), "best_epoch": 0}
        meta["progress"] = {"epoch": 1, "step": step, **scores}

    _reseal(older, change_meta=change)
    assert b"-Infinity" in older.read_bytes()
    weights = stopped / "best" / "student.safetensors"
    _reseal(weights, change_meta=_as_earlier)
    provenance = json.loads((stopped / "run.json").read_text())
    del provenance["beginning"]
    (stopped / "run.json").write_text(json.dumps(provenance, indent=2))
    config = yaml.safe_load((stopped / "config.yaml").read_text())
    del config["optim"]["schedule"], config["optim"]["schedule_epochs"], config["student"]["init"]
    (stopped / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert load_saved(stopped).origin.config == load_saved(whole).origin.config
    assert load_run(stopped) == load_run(whole)
    found, problems = Checkpoints(stopped).newest()
    assert (found.progress.best_rsum, problems) == (None, [])
    run_ok("train", "--resume", "--run-dir", stopped)
    one, two = (Checkpoints(folder).newest()[0].tensors for folder in (whole, stopped))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_dual_encoders_folder_must_fit_its_weights(tmp_path):
    manifest, clip = make_pairs(tmp_path / "data", n=8, n_val=2), make_tiny_clip(tmp_path / "clip")
    store, run_dir = tmp_path / "store.h5", tmp_path / "run"
    precompute_pictures(manifest, clip, store)
    args = (*student_options(store, clip, run_dir, epochs=1, batch_size=4), "--workers", 0)
    run_ok("train", *args)
    weights = run_dir / "best" / "student.safetensors"
    name = "image_trunk.backbone.visual_projection.weight"
    _reseal(weights, _set(name, lambda weight: weight[:3]))
    _refused(lambda: load_saved(run_dir), StudentError, run_dir / "best")
    _reseal(weights, lambda tensors: tensors.pop(name))
    _refused(lambda: load_saved(run_dir), StudentError, run_dir / "best")
