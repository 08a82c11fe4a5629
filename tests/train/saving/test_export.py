"""Exports and model cards: folders that others load, with the run's embeddings; or nothing."""

import json
import subprocess
import sys
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from cusa.data.captions import normalize_caption
from cusa.data.errors import CusaError, RunError, SettingError, StudentError
from cusa.data.images import load_image
from cusa.eval.models.student import StudentEncoder, load_student
from cusa.train.build_student import build_student
from cusa.train.config_building import build_config
from cusa.train.saving import export as exports
from cusa.train.saving import sentence_transformers_modules as modules
from cusa.train.saving.export import export, export_hf, export_sentence_transformers
from cusa.train.saving.model_card import Usage, model_card, write_card
from cusa.train.saving.provenance import Provenance, StoredTeacher
from cusa.train.saving.sentence_transformers_modules import albef_steps
from cusa.train.saving.student_folder import (
    HEADS_FILE,
    WEIGHTS_FILE,
    Origin,
    SavedStudent,
    load_saved,
    save_student,
)
from tests.helpers import make_images, make_tiny_clip, settings

TEXTS = [
    "Picture: number 7, VERSION 1!",
    "picture",
    "picture (3)  number - 12 ... " + "version 9, " * 70,
]
KINDS = ["clip", "own-tokenizer", "siglip", "slow-tokenizer"]


def _teacher(name, modality):
    return StoredTeacher(name, "made up", settings(modality, 8, model_id=f"made-up/{name}"))


def _origin(
    terms=("contrastive", "csa", "usa"), student="made-up/clip", normalize="albef", **changes
):
    config = build_config(
        {
            "student": {
                "name": student,
                "embed_dim": 20,
                **({"hidden_dim": 16} if student == "adapter" else {}),
            },
            "data": {"embeddings": "store.h5", "normalizer": normalize},
            "loss": {"terms": list(terms)},
        }
    )
    teachers = {m: _teacher(n, m) for m, n in (("image", "vision"), ("text", "words"))}
    provenance = Provenance("made-up", {"train": "f" * 8, "val": "e" * 8}, teachers, {})
    val = {
        "i2t_r1": 41.25,
        "i2t_r5": 60.0,
        "i2t_r10": 70.0,
        "t2i_r1": 30.0,
        "t2i_r5": 50.0,
        "t2i_r10": 65.5,
    }
    fields = {
        "epoch": 3,
        "step": 30,
        "val": {**val, "rsum": 316.75},
        "n_pairs": 80,
        "provenance": provenance,
    }
    return Origin(config=config, **{**fields, **changes})


def _model(kind, folder):
    """A dual encoder's folder: plain tokeniser, CLIP's own, SigLIP's padding, one in Python."""
    from transformers import (
        CanineTokenizer,
        CLIPConfig,
        CLIPModel,
        CLIPTokenizer,
        SiglipConfig,
        SiglipImageProcessorPil,
        SiglipModel,
    )

    make_tiny_clip(folder)
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = {**size, "image_size": 32, "patch_size": 16}
    if kind == "siglip":
        text = {**size, "vocab_size": 60, "max_position_embeddings": 16, "projection_size": 32}
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    elif kind == "own-tokenizer":
        (folder / "tokenizer.json").unlink()
        letters = [
            chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 456))
        ]  # byte-level
        words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
        text = {
            **size,
            "vocab_size": len(words),
            "max_position_embeddings": 16,
            "eos_token_id": 1,
            "bos_token_id": 0,
        }
        CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[]).save_pretrained(folder)
        CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        ).save_pretrained(folder)
    elif kind == "slow-tokenizer":
        (folder / "tokenizer.json").unlink()
        special = {"eos_token_id": 0xE001, "bos_token_id": 0xE000}
        text = {
            **size,
            "hidden_size": 8,
            "vocab_size": 0xE010,
            "max_position_embeddings": 16,
            **special,
        }
        CanineTokenizer().save_pretrained(folder)
        CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        ).save_pretrained(folder)
    return folder


def _saved(folder, kind="clip", **origin):
    torch.manual_seed(3)
    made = _origin(**origin)
    config = replace(made.config.student, name=str(_model(kind, folder)))
    student, towers = build_student(config)
    for heads in (student.image_heads, student.text_heads):
        for parameter in heads.parameters():  # LayerNorms and biases that do something, too
            torch.nn.init.normal_(parameter)
    return SavedStudent(student.eval(), towers, made)


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    return {kind: _saved(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Colour files and a grey one."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / name for name in make_images(folder, 3)]
    Image.open(paths[0]).convert("L").rotate(90).save(folder / "grey.png")
    return [*paths, folder / "grey.png"]


def _opened(paths):
    return [load_image(path) for path in paths]


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_folder_gives_the_same_embeddings(students, images, tmp_path, kind):
    saved = students[kind]
    export_hf(saved, tmp_path / "out")
    before, after = StudentEncoder(saved), load_student(tmp_path / "out", "cpu")
    for head in ("cross", "uni"):
        np.testing.assert_allclose(
            after.encode_image(images, head), before.encode_image(images, head), atol=1e-5
        )
        np.testing.assert_allclose(
            after.encode_text(TEXTS, head), before.encode_text(TEXTS, head), atol=1e-5
        )
    assert after.origin.to_dict() == saved.origin.to_dict()
    assert (
        abs(before.encode_image(images, "cross") - before.encode_image(images, "uni")).max() > 0.1
    )


def test_transformers_loads_the_backbone_without_us(students, images, tmp_path):
    from transformers import AutoModel, AutoProcessor

    saved = students["clip"]
    export_hf(saved, tmp_path / "out")
    model, report = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    inputs = AutoProcessor.from_pretrained(tmp_path / "out")(
        images=_opened(images[:2]), return_tensors="pt"
    )
    with torch.no_grad():
        features = model.eval().get_image_features(**inputs).pooler_output
        torch.testing.assert_close(features, saved.student.image_trunk(inputs["pixel_values"]))
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / HEADS_FILE, "pt") as file:  # the heads, and nothing twice
        assert len(file.keys()) == 4 * 4
        torch.testing.assert_close(
            file.get_tensor("text_heads.uni.1.weight"),
            saved.student.text_heads["uni"][1].weight.detach(),
        )


@pytest.mark.parametrize(
    ("kind", "head"), [*((kind, "cross") for kind in KINDS), ("clip", "uni"), ("siglip", "uni")]
)
def test_sentence_transformers_gives_the_same_embeddings(students, images, tmp_path, kind, head):
    from sentence_transformers import SentenceTransformer

    saved = students[kind]
    export_sentence_transformers(saved, tmp_path / "out", head)
    model, student = SentenceTransformer(str(tmp_path / "out"), device="cpu"), StudentEncoder(saved)
    np.testing.assert_allclose(
        model.encode(_opened(images)), student.encode_image(images, head), atol=1e-5
    )
    expected = student.encode_text(TEXTS, head)
    by_hand = kind == "slow-tokenizer"
    given_texts = [normalize_caption(text) for text in TEXTS] if by_hand else TEXTS
    np.testing.assert_allclose(model.encode(given_texts), expected, atol=1e-5)
    alone = [
        model.encode_query(text) for text in given_texts
    ]  # a short text without a longer one to pad it
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    assert model.get_embedding_dimension() == 20
    assert model.max_seq_length == 16
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert ("must be normalised first" in card.text) == by_hand
    weights = [path.stat().st_size for path in (tmp_path / "out").rglob("*.safetensors")]
    assert (
        sum(weights) < 1.1 * sum(p.numel() * 4 for p in saved.student.parameters()) + 8192
    )  # the backbone once
    with pytest.raises(ValueError, match="mixes multiple modalities"):  # the card says so
        model.encode([*_opened(images[:1]), "picture"])


def test_captions_as_written_stay_as_written(tmp_path):
    from sentence_transformers import SentenceTransformer

    saved = _saved(tmp_path / "model", normalize="none")
    texts = ["Picture number 7", "picture number 7", "picture - number ! 7"]
    export_sentence_transformers(saved, tmp_path / "out")
    rows = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    np.testing.assert_allclose(rows, StudentEncoder(saved).encode_text(texts), atol=1e-5)
    assert abs(rows[0] - rows[1]).max() > 1e-3
    assert abs(rows[1] - rows[2]).max() > 1e-3


def test_sentence_transformers_needs_no_cusa(students, images, tmp_path):
    """In a fresh process where it cannot be imported; loaded, saved again and loaded."""
    saved = students["clip"]
    export_sentence_transformers(saved, tmp_path / "out")
    code = (
        "import sys\nsys.modules['cusa'] = None\nimport json, numpy\nfrom PIL import Image\n"
        "from sentence_transformers import SentenceTransformer\n"
        "folder, paths, texts = json.loads(sys.argv[1])\n"
        "model = SentenceTransformer(folder + '/out', device='cpu')\n"
        "model.save(folder + '/again', create_model_card=False)\n"
        "for name in ('out', 'again'):\n"
        "    model = SentenceTransformer(folder + '/' + name, device='cpu')\n"
        "    images = [Image.open(path) for path in paths]\n"
        "    numpy.save(f'{folder}/{name}-images.npy', model.encode(images))\n"
        "    numpy.save(f'{folder}/{name}-texts.npy', model.encode(texts))\n"
    )
    argument = json.dumps([str(tmp_path), [str(path) for path in images], TEXTS])
    done = subprocess.run(
        [sys.executable, "-c", code, argument], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    student = StudentEncoder(saved)
    for name in ("out", "again"):
        np.testing.assert_allclose(
            np.load(tmp_path / f"{name}-images.npy"), student.encode_image(images), atol=1e-5
        )
        np.testing.assert_allclose(
            np.load(tmp_path / f"{name}-texts.npy"), student.encode_text(TEXTS), atol=1e-5
        )


# Letters newer than Python's Unicode tables have no lower case for one of the two.
KNOWN = st.characters(exclude_categories=["Cs", "Cn"]).filter(
    lambda c: unicodedata.category(c) != "Cn"
)
PIECES = st.one_of(
    st.sampled_from(
        [
            *",.'!?\"()*#:;~-/<> \t\n\x1c\x85\u3000ΣσςİĲ\u0345ʰa1",
            "<person>",
            "<PERSON>",
            " a",
            "\n\n",
            "w " * 63,
        ]
    ),
    KNOWN,
)


@example("A ΣΊΣΥΦΟΣ, Σ. ΑΣ\u0345")
@example("\n a \t b \n\n")
@example(" ".join(str(i) for i in range(70)) + "\n")
@given(st.lists(PIECES, max_size=12).map("".join))
def test_tokenizers_normalise_as_we_do(text):
    normalized = albef_steps().normalize_str(text)
    if normalized:
        assert normalized == normalize_caption(text)
    else:
        with pytest.raises(CusaError):
            normalize_caption(text)


def test_an_adapter_is_not_exported(tmp_path):
    origin = _origin(student="adapter")
    built = build_student(origin.config.student, {"image": 8, "text": 8})
    saved = SavedStudent(*built, origin)
    for function in (export_hf, export_sentence_transformers):
        with pytest.raises(StudentError) as error:
            function(saved, tmp_path / "out")
        assert error.value.name == "adapter"
    assert not list(tmp_path.iterdir())


def test_heads_that_were_never_trained_are_not_exported(students, tmp_path):
    saved = _saved(tmp_path / "model", terms=("contrastive", "csa"))
    for student, head in ((saved, "uni"), (students["clip"], "both")):
        with pytest.raises(SettingError) as error:
            export_sentence_transformers(student, tmp_path / "out", head)
        assert error.value.name == "head"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("function", [export_hf, export_sentence_transformers])
def test_what_lies_there_is_not_overwritten(students, tmp_path, function):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for existing in (out, out / "mine.txt"):
        with pytest.raises(CusaError) as error:
            function(students["clip"], existing)
        assert error.value.path == existing
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
    (out / "mine.txt").unlink()
    function(students["clip"], out)  # an empty folder is as good as none
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("function", [export_hf, export_sentence_transformers])
def test_a_failed_export_leaves_nothing(students, tmp_path, monkeypatch, function):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports, "write_card", full)
    with pytest.raises(OSError) as error:
        function(students["clip"], tmp_path / "out")
    assert error.value.errno == 28
    assert not list(tmp_path.iterdir())


def test_an_export_with_other_embeddings_is_refused(students, tmp_path, monkeypatch):
    from tokenizers import normalizers

    monkeypatch.setattr(modules, "albef_steps", lambda then: normalizers.Replace("s", "x"))
    with pytest.raises(StudentError) as error:
        export_sentence_transformers(students["own-tokenizer"], tmp_path / "out")
    assert error.value.name == "CLIPModel"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run(students, tmp_path):
    """A run directory with a best student, evaluated on its test split."""
    saved, best = students["clip"], tmp_path / "run" / "best"
    saved.towers.save(best)
    save_student(best / WEIGHTS_FILE, saved.student, saved.origin)
    recalls = {"r1": 22.25, "r5": 40.0, "r10": 50.0}
    metrics = {
        "epoch": 3,
        "split": "test",
        "retrieval": {"i2t": recalls, "t2i": recalls, "rsum": 224.5},
    }
    (tmp_path / "run" / "eval").mkdir()
    (tmp_path / "run" / "eval" / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path / "run"


def test_a_run_is_exported(students, run, tmp_path, images):
    assert export(run) == run / "export-hf"
    exported = load_saved(run / "export-hf")
    for name, tensor in students["clip"].student.state_dict().items():
        torch.testing.assert_close(exported.student.state_dict()[name], tensor, rtol=0, atol=0)
    st_kind = "sentence-transformers"
    assert export(run, st_kind) == run / "export-sentence-transformers"
    assert export(run, st_kind, head="uni") == run / "export-sentence-transformers-uni"
    assert export(run, out=tmp_path / "deep" / "er") == tmp_path / "deep" / "er"
    # An export is a student, too.
    again = export(run / "export-hf", st_kind, tmp_path / "from-export")
    assert (again / "modules.json").is_file()
    assert "| test | 22.25 |" in (run / "export-hf" / "README.md").read_text()
    with pytest.raises(SettingError) as setting_error:
        export(run, "onnx")
    assert setting_error.value.name == "kind"
    with pytest.raises(CusaError) as folder_error:
        export(run)
    assert folder_error.value.path == run / "export-hf"
    with pytest.raises(RunError) as run_error:
        export(run, out=tmp_path / "last", checkpoint="last")
    assert run_error.value.path == run


@pytest.mark.parametrize("other", ['"epoch": 2', '"epoch": 3, "step": 20'])
def test_figures_of_other_weights_are_left_out(run, other):
    path = run / "eval" / "metrics.json"
    path.write_text(path.read_text().replace('"epoch": 3', other))
    assert "| test |" not in (export(run) / "README.md").read_text()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 50_000,
        "[]",
        "{}",
        '{"split": "test"}',
        '{"split": 3, "retrieval": {}}',
        '{"epoch": NaN}',
        '"\\ud800"',
    ],
    ids=["empty", "deep", "list", "nothing", "no retrieval", "numbers", "nan", "half a character"],
)
def test_figures_of_other_types_are_one_line(run, content):
    path = run / "eval" / "metrics.json"
    path.write_text(content)
    with pytest.raises(RunError) as error:
        export(run)
    assert (error.value.path, "\n" in str(error.value)) == (path, False)
    assert not (run / "export-hf").exists()


@pytest.mark.parametrize("kind", ["cusa", "hf", "sentence-transformers"])
def test_a_card_reads_back(tmp_path, kind):
    write_card(tmp_path, _origin(), Usage(kind))
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data
    libraries = {
        "cusa": "cusa",
        "hf": "transformers",
        "sentence-transformers": "sentence-transformers",
    }
    assert data.library_name == libraries[kind]
    assert {"image-text-retrieval", "cusa"} <= set(data.tags)
    assert ("sentence-transformers" in data.tags) == (kind == "sentence-transformers")
    assert data.base_model == "made-up/clip"
    assert data.datasets == ["made-up"]
    results = {(r.dataset_split, r.metric_name): r.metric_value for r in data.eval_results}
    assert results["val", "i2t_r1"] == 41.25
    assert results["val", "rsum"] == 316.75
    assert len(results) == 7
    for part in (
        "| val | 41.25 | 60.00 |",
        "`vision` (`made-up/vision`)",
        "f" * 8,
        "0.1 * csa",
        "[0.1, 0.99]",
        "PATH",
    ):
        assert part in card.text
    loader = "SentenceTransformer(" if kind == "sentence-transformers" else "load_student("
    assert loader in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


def test_a_card_says_which_head_was_trained():
    assert "USA trained it" in model_card(_origin())
    assert "never trained" in model_card(_origin(("contrastive",)))
    assert "csa" not in model_card(_origin(("contrastive",))).split("## Results")[1]


def test_a_card_of_an_adapter_and_of_a_local_model(tmp_path):
    encoders = {m: _teacher(n, m) for m, n in (("image", "eyes"), ("text", "ears"))}
    origin = _origin(student="adapter", val={})
    provenance = Provenance("a name: with | signs", origin.provenance.splits, {}, encoders)
    card = ModelCard(model_card(_origin(student="adapter", val={}, provenance=provenance)))
    assert card.data.base_model is None
    assert card.data.eval_results is None
    assert card.data.datasets == ["a-name-with-signs"]
    for part in (
        "Not measured yet",
        "`ears` (`made-up/ears`)",
        "frozen encoders",
        "| image encoder |",
    ):
        assert part in card.text
    local = ModelCard(model_card(_origin(student=str(tmp_path / "my-clip"))))
    assert local.data.base_model is None
    assert "my-clip" in local.text
    assert str(tmp_path) not in local.text


def test_scores_that_are_none_are_left_out():
    recalls = {"r1": None, "r5": 40.0, "r10": 50.0}
    metrics = {"split": "test", "retrieval": {"i2t": recalls, "t2i": recalls, "rsum": None}}
    card = ModelCard(model_card(_origin(), None, metrics))
    found = {r.metric_name for r in card.data.eval_results if r.dataset_split == "test"}
    assert found == {"i2t_r5", "i2t_r10", "t2i_r5", "t2i_r10"}


def test_figures_of_another_data_set_stand_beside_our_own():
    recalls = {"r1": 22.25, "r5": 40.0, "r10": 50.0}
    scores = {"i2t": recalls, "t2i": recalls, "rsum": 224.5}
    card = ModelCard(
        model_card(_origin(), None, {"dataset": "elsewhere", "split": "val", "retrieval": scores})
    )
    found = {
        (r.dataset_name, r.metric_value) for r in card.data.eval_results if r.metric_name == "rsum"
    }
    assert found == {("made-up", 316.75), ("elsewhere", 224.5)}
    assert "| elsewhere | val | 22.25 |" in card.text
