"""The audit of tar sets: rows computed again, and tars that are no longer those of the pairs."""

from dataclasses import replace

import numpy as np
import pytest

from cusa.data.store.shards import ShardHeader, write_shard
from cusa.data.tars.manifest import write_manifest
from cusa.data.tars.manifest_building import build_manifest
from cusa.data.tars.samples import TarError
from cusa.data.tars.tar_set import TarSet
from tests.data.tars.tar_files import pair, write_tar, write_tars
from tests.helpers import run, run_failure, run_ok


@pytest.fixture
def tar_set(tmp_path, teachers):
    write_tars(tmp_path / "tars", 3, 4)
    folder = tmp_path / "set"
    run_ok(
        "precompute", "--dataset", tmp_path / "tars", "--out", folder, "--batch-size", 2, *teachers
    )
    return TarSet(folder)


@pytest.fixture
def audit(tmp_path, tar_set, models):
    vit, words = models
    options = ["--dataset", tmp_path / "tars", "--teacher", f"vit={vit}"]
    return ("audit", tar_set.path, *options, "--teacher", f"words={words}")


def test_rows_are_those_of_their_teachers(tar_set, audit):
    output = run_ok("store", *audit)
    assert "WRONG" not in output
    for tar in tar_set.manifest.names:
        assert output.count(f" {tar} ") == 2


def test_teachers_and_tars_are_where_the_set_says(tar_set):
    output = run_ok("store", "audit", tar_set.path)
    assert "vit" in output
    assert "words" in output


def test_exchanged_rows_are_named(tar_set, audit):
    """Whole files, whose seals and manifest are right."""
    tar = tar_set.manifest.names[1]
    rows = tar_set.rows("vit", tar)
    pairs = tar_set.pairs(tar)
    settings = tar_set.teachers["vit"]
    header = ShardHeader("vit", tar, pairs.fingerprint, 0, len(rows), settings)
    write_shard(tar_set.path, f"vit/{tar}.h5", header, np.roll(rows, 1, axis=0), [])
    write_manifest(tar_set.path, build_manifest(tar_set.path))

    result = run("store", *audit, "--least-cosine", 0.9999)
    assert result.exit_code == 1
    wrong = [line for line in result.output.splitlines() if "WRONG" in line]
    assert len(wrong) == 1
    assert tar in wrong[0]


def test_a_replaced_tar_is_refused(tmp_path, tar_set, audit):
    tar = tar_set.manifest.names[0]
    write_tar(tmp_path / "tars" / f"{tar}.tar", [*pair(70), *pair(71)])
    error = run_failure("store", *audit)
    assert isinstance(error, TarError)
    assert error.name == tar


def test_bad_input_is_named(tmp_path, tar_set):
    folder = tar_set.path
    write_manifest(folder, replace(tar_set.manifest, image_root=""))
    assert run_failure("store", "audit", folder).name == "dataset"
    no_tars = ("--dataset", tmp_path / "nowhere/{0..3}.tar")
    assert run_failure("store", "audit", folder, *no_tars).name == "dataset"
    nobody = ("--dataset", tmp_path / "tars", "--teacher", "nobody")
    assert run_failure("store", "audit", folder, *nobody).name == "nobody"
