"""Any model as an encoder gives what its own library gives; and many items through it."""

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cusa.data.errors import (
    FORWARD_PASS,
    CusaError,
    DataError,
    EmbeddingsError,
    FileFormatError,
    ImageError,
    RunError,
    StudentError,
    TeacherError,
)
from cusa.data.foreign.rows import read_rows
from cusa.data.images import load_image
from cusa.eval.models.any_model import load_encoder
from cusa.eval.models.batched import encode_images, encode_texts
from cusa.eval.models.devices import one_at_a_time
from cusa.eval.models.student import load_student
from cusa.train.build_student import build_student
from cusa.train.config_building import build_config
from cusa.train.saving.export import export_hf, export_sentence_transformers
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.run_dir import Checkpoints
from cusa.train.saving.student_folder import WEIGHTS_FILE, Origin, SavedStudent, save_student
from tests.helpers import (
    Fault,
    fault_of,
    make_images,
    make_tiny_clip,
    make_tiny_sentence,
    make_tiny_vit,
)

TEXTS = [
    "picture number 7",
    "Version 3",
    "number 1 version 2 number 3 version 4 picture 5",
    "picture",
]


def make_siglip(folder):
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    make_tiny_clip(folder)
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {**size, "vocab_size": 60, "max_position_embeddings": 16, "projection_size": 32}
    vision = {**size, "image_size": 32, "patch_size": 16}
    torch.manual_seed(4)
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Models of every kind, a student whose checkpoints differ, and images, one of them grey."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("models")
    clip = make_tiny_clip(folder / "clip")
    make_siglip(folder / "siglip")
    make_tiny_vit(folder / "vit")
    make_tiny_sentence(folder / "bert")
    SentenceTransformer(str(folder / "bert"), device="cpu").save(
        str(folder / "words"), create_model_card=False
    )
    SentenceTransformer(str(clip), device="cpu").save(
        str(folder / "st-clip"), create_model_card=False
    )
    config = build_config(
        {"student": {"name": str(clip)}, "loss": {"terms": ["contrastive", "usa"]}}
    )
    student, towers = build_student(config.student)
    origin = Origin(config, Provenance("made-up", {}, {}, {}), 1, 1, {}, 1)
    save_student(folder / "run" / "best" / WEIGHTS_FILE, student, origin)
    towers.save(folder / "run" / "best")
    saved = SavedStudent(student.eval(), towers, origin)
    export_hf(saved, folder / "exported")
    export_sentence_transformers(saved, folder / "st-exported")
    weights = {f"student.{name}": -tensor for name, tensor in student.state_dict().items()}
    Checkpoints(folder / "run").save(2, weights, {"origin": origin.to_dict()})
    make_images(folder / "images", 7)
    Image.open(folder / "images" / "000.jpg").convert("L").rotate(90).save(
        folder / "images" / "grey.png"
    )
    return folder


@pytest.fixture(scope="module")
def paths(home):
    return sorted((home / "images").iterdir())


def unit(rows):
    return torch.nn.functional.normalize(torch.as_tensor(rows), dim=-1).numpy()


# --- what is loaded


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_dual_encoder_gives_its_own_features(home, paths, kind):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = home / kind
    encoder = load_encoder(str(folder), "cpu")
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer, processor = (
        AutoTokenizer.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder),
    )
    with torch.no_grad():
        pixels = processor(
            images=[Image.open(p).convert("RGB") for p in paths], return_tensors="pt"
        )
        images = unit(model.get_image_features(**pixels).pooler_output)
        texts = []
        for text in TEXTS:  # one by one: nothing is padded but where the model wants it
            if kind == "siglip":
                tokens = tokenizer(text, padding="max_length", max_length=16, return_tensors="pt")
                tokens = {"input_ids": tokens["input_ids"]}
            else:
                tokens = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
                tokens = {k: tokens[k] for k in ("input_ids", "attention_mask")}
            texts.append(unit(model.get_text_features(**tokens).pooler_output)[0])
    got = encoder.image_rows([str(paths[0]), *paths[1:-1], Image.open(paths[-1])], batch_size=3)
    assert list(got) == ["cross"]
    np.testing.assert_allclose(got["cross"], images, atol=1e-5)
    np.testing.assert_allclose(encoder.text_rows(TEXTS, 3)["cross"], texts, atol=1e-5)
    assert (encoder.name, encoder.heads, encoder.uni_head) == (kind, ("cross",), "cross")
    assert encoder.modalities == {"image", "text"}
    assert encoder.description["kind"] == "hf"
    assert encoder.description["normalizer"] == "none"
    assert encoder.description["source"] == str(folder)
    assert encoder.description["transform"]["text"]["padding"] == (
        "max_length" if kind == "siglip" else "longest"
    )
    json.dumps(encoder.description)
    assert (
        encoder.image_rows([])["cross"].shape
        == encoder.text_rows([])["cross"].shape
        == (0, images.shape[1])
    )
    assert got["cross"].dtype == np.float32


@pytest.mark.parametrize("name", ["words", "bert", "st-clip", "st-exported"])
def test_sentence_transformers_models(home, paths, name):
    from sentence_transformers import SentenceTransformer

    encoder = load_encoder(str(home / name), "cpu")
    model = SentenceTransformer(str(home / name), device="cpu")
    np.testing.assert_allclose(
        encoder.text_rows(TEXTS, 3)["cross"], unit(model.encode(TEXTS)), atol=1e-5
    )
    assert encoder.description["kind"] == "sentence-transformers"
    json.dumps(encoder.description)
    if name in ("words", "bert"):
        assert encoder.modalities == {"text"}
        with pytest.raises(EmbeddingsError) as refused:
            encoder.image_rows(paths)
        assert (refused.value.name, refused.value.location) == (name, "image")
    else:
        assert encoder.modalities == {"image", "text"}
        opened = [load_image(path).convert("RGB") for path in paths]
        np.testing.assert_allclose(
            encoder.image_rows(paths, 3)["cross"], unit(model.encode(opened)), atol=1e-5
        )


def test_a_prompt_of_the_models_own_is_used(home, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(home / "words"), device="cpu", prompts={"q": "number 1 "}, default_prompt_name="q"
    )
    model.save(str(tmp_path / "m"), create_model_card=False)
    rows = load_encoder(str(tmp_path / "m"), "cpu").text_rows(["picture"])["cross"]
    np.testing.assert_allclose(rows, unit(model.encode(["picture"])), atol=1e-5)
    plain = load_encoder(str(home / "words"), "cpu")
    np.testing.assert_allclose(rows, plain.text_rows(["number 1 picture"])["cross"], atol=1e-5)
    assert abs(rows - plain.text_rows(["picture"])["cross"]).max() > 1e-3


def test_vision_models_and_teachers(home, paths):
    from transformers import AutoImageProcessor, AutoModel

    vit = load_encoder(str(home / "vit"), "cpu")
    model = AutoModel.from_pretrained(home / "vit").eval()
    processor = AutoImageProcessor.from_pretrained(home / "vit")
    with torch.no_grad():
        pixels = processor(
            images=[Image.open(p).convert("RGB") for p in paths], return_tensors="pt"
        )
        np.testing.assert_allclose(
            vit.image_rows(paths, 2)["cross"], unit(model(**pixels).pooler_output), atol=1e-5
        )
    assert (vit.name, vit.modalities, vit.description["kind"]) == ("vit", {"image"}, "hf")
    with pytest.raises(EmbeddingsError) as refused:
        vit.text_rows(TEXTS)
    assert (refused.value.name, refused.value.location) == ("vit", "text")
    named = load_encoder(f"mine={home / 'vit'}", "cpu")
    assert (named.name, named.modalities, named.description["kind"]) == (
        "mine",
        {"image"},
        "teacher",
    )
    np.testing.assert_array_equal(named.image_rows(paths)["cross"], vit.image_rows(paths)["cross"])
    assert (
        named.weights_sha256
        == vit.weights_sha256
        != load_encoder(str(home / "clip"), "cpu").weights_sha256
    )
    minilm = load_encoder("minilm", "cpu")
    assert (minilm.name, minilm.modalities, minilm.description["kind"]) == (
        "minilm",
        {"text"},
        "teacher",
    )
    rows = minilm.text_rows(
        ["a dog on a beach", "a puppy at the sea shore", "two plates of pasta"]
    )["cross"]
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.3


def test_students(home, paths, tmp_path, monkeypatch):
    expected = load_student(home / "run", "cpu")
    for spec, name in (
        (home / "run", "run"),
        (home / "run" / "best", "run"),
        (home / "exported", "exported"),
    ):
        encoder = load_encoder(str(spec), "cpu")
        assert (encoder.name, encoder.heads, encoder.uni_head) == (name, ("cross", "uni"), "uni")
        assert encoder.modalities == {"image", "text"}
        assert encoder.description["kind"] == "run"
        assert encoder.description["normalizer"] == "albef"
        assert encoder.description["source"] == str(spec)
        json.dumps(encoder.description)
        for head, rows in encoder.text_rows(TEXTS).items():
            np.testing.assert_allclose(rows, expected.encode_text(TEXTS, head), atol=1e-5)
        for head, rows in encoder.image_rows(paths).items():
            np.testing.assert_allclose(rows, expected.encode_image(paths, head), atol=1e-5)
    last = load_encoder(str(home / "run"), "cpu", checkpoint="last")
    assert last.weights_sha256 != encoder.weights_sha256
    assert abs(last.text_rows(TEXTS)["cross"] - expected.encode_text(TEXTS)).max() > 0.01
    monkeypatch.chdir(home / "run")
    assert load_encoder(".", "cpu").name == "run"


def test_students_normalise_captions_and_others_take_them_as_written(home):
    for name, same in (("run", True), ("clip", False)):
        rows = load_encoder(str(home / name), "cpu").text_rows(["picture 7", "Picture - 7!"])[
            "cross"
        ]
        assert np.allclose(rows[0], rows[1], atol=1e-5) == same


def test_a_folder_comes_before_a_name(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").symlink_to(home / "clip")
    assert load_encoder("lr=1", "cpu").name == "lr=1"
    (tmp_path / "minilm").symlink_to(home / "run")
    assert load_encoder("minilm", "cpu").description["kind"] == "run"


def _load_error(spec, error_class):
    """The error of a model that cannot be loaded: one line, with no option of another command."""
    with pytest.raises(error_class) as refused:
        load_encoder(spec, "cpu")
    message = str(refused.value)
    assert "\n" not in message
    assert "--teacher" not in message
    return refused.value


def test_what_cannot_be_loaded(home, tmp_path):
    from transformers import CLIPModel

    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").touch()
    for name, file, content in (
        ("odd", "config.json", '{"model_type": "nothing-known"}'),
        ("torn", "config.json", "{"),
        ("modules", "modules.json", "{"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(content)
    CLIPModel.from_pretrained(home / "clip").config.save_pretrained(tmp_path / "weightless")
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    for path in (home / "clip").iterdir():
        (lacking / path.name).write_bytes(path.read_bytes())
    from safetensors.torch import load_file, save_file

    weights = load_file(lacking / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "text_model" not in k}, lacking / "model.safetensors"
    )
    named = {
        "nope": RunError,
        str(tmp_path / "nowhere"): RunError,
        str(tmp_path / "file"): RunError,
        "owner/model": RunError,
        "x=nowhere": TeacherError,
        str(tmp_path / "empty"): RunError,
        str(tmp_path / "odd"): RunError,
        str(tmp_path / "weightless"): RunError,
        str(lacking): StudentError,
    }
    for spec, error_class in named.items():
        assert _load_error(spec, error_class).name == spec
    hub_name = "sentence-transformers/all-mpnet-base-v2"
    assert _load_error("mpnet", TeacherError).name == hub_name
    assert _load_error("minilm=/no/where", TeacherError).path == Path("/no/where")
    unfinished_run = tmp_path / "begun"
    assert _load_error(str(unfinished_run), RunError).path == unfinished_run
    for name, file in (("torn", "config.json"), ("modules", "modules.json")):
        error = _load_error(str(tmp_path / name), FileFormatError)
        assert (error.path, error.location) == (tmp_path / name / file, "line 1")
    with pytest.raises(RunError) as refused:
        load_encoder(str(home / "exported"), "cpu", checkpoint="last")
    assert refused.value.path == home / "exported"
    encoder = load_encoder(str(home / "clip"), "cpu")
    with pytest.raises(DataError) as refused:
        encoder.text_rows(["picture", " "])
    assert refused.value.name == "caption"
    with pytest.raises(ValueError, match="batch_size"):
        encoder.text_rows(["picture"], 0)


def test_on_a_gpu_threads_compute_one_at_a_time():
    assert isinstance(one_at_a_time("cuda:1"), type(threading.Lock()))
    with one_at_a_time("cpu") as first, one_at_a_time("cpu") as second:
        assert first is second is None


# --- many items


class Recorder:
    """An encoder whose rows say what they are of; it remembers the batches."""

    name, heads, uni_head, modalities = (
        "made-up",
        ("cross", "uni"),
        "uni",
        frozenset({"image", "text"}),
    )
    weights_sha256, description = "", {}

    def __init__(self, change=lambda rows: rows):
        self.asked, self.threads, self._change = [], set(), change

    def _rows(self, numbers):
        self.threads.add(threading.current_thread().name)
        rows = np.array([[n, n + 0.5] for n in numbers], np.float32).reshape(-1, 2)
        return {"cross": self._change(rows), "uni": -rows}

    def image_rows(self, images, batch_size=64):
        self.asked.append([Path(image).stem for image in images])
        return self._rows([int(Path(image).stem) for image in images])

    def text_rows(self, texts, batch_size=256):
        self.asked.append(list(texts))
        return self._rows([int(text.split()[-1]) for text in texts])


def numbered(n):
    return [Path(f"{i}.jpg") for i in range(1, n + 1)]


@pytest.mark.parametrize(
    ("n", "batch_size", "workers"), [(1, 4, 1), (8, 4, 2), (23, 3, 4), (23, 1, 2), (5, 9, 3)]
)
def test_images_come_in_order(n, batch_size, workers):
    n_encoded, encoder = [], Recorder()
    threads = torch.get_num_threads()
    rows = encode_images(encoder, numbered(n), batch_size, workers, n_encoded.append)
    want = np.array([[i, i + 0.5] for i in range(1, n + 1)], np.float32)
    np.testing.assert_array_equal(rows["cross"], want)
    np.testing.assert_array_equal(rows["uni"], -want)
    assert rows["cross"].dtype == np.float32
    assert sum(n_encoded) == n
    assert max(map(len, encoder.asked)) <= batch_size
    assert encoder.asked[0][0] == "1"
    assert len(encoder.threads) > 1 or n <= batch_size
    assert torch.get_num_threads() == threads


def test_images_are_not_read_far_ahead():
    encoder, ahead = Recorder(), []
    encode_images(encoder, numbered(60), 2, 2, lambda _: ahead.append(len(encoder.asked)))
    assert all(begun - done <= 6 for done, begun in enumerate(ahead))


def test_equal_texts_are_encoded_once_and_long_ones_together():
    n_encoded, encoder = [], Recorder()
    texts = ["a 5", "word word 3", "a 5", "word 4", "a 5", "word word 1", "word 4"]
    rows = encode_texts(encoder, texts, 2, n_encoded.append)
    np.testing.assert_array_equal(rows["cross"][:, 0], [5, 3, 5, 4, 5, 1, 4])
    np.testing.assert_array_equal(rows["uni"][:, 1], -np.array([5, 3, 5, 4, 5, 1, 4]) - 0.5)
    assert encoder.asked == [["word word 1", "word word 3"], ["word 4", "a 5"]]
    assert n_encoded == [2, 5]


def test_nothing_to_encode(home):
    encoder = load_encoder(str(home / "run"), "cpu")
    for rows in (encode_images(encoder, []), encode_texts(encoder, [])):
        assert {head: head_rows.shape for head, head_rows in rows.items()} == {
            "cross": (0, 24),
            "uni": (0, 24),
        }


@pytest.mark.parametrize("kind", ["clip", "siglip", "st-clip", "st-exported", "run"])
def test_batches_do_not_change_rows(home, paths, kind):
    """Whatever their size, their order, and the threads; texts of many lengths pad one another."""
    encoder = load_encoder(str(home / kind), "cpu")
    texts = [" ".join(f"number {i * k % 50}" for k in range(1 + i % 7)) for i in range(40)]
    for head in encoder.heads:
        alone = np.concatenate([encoder.text_rows([text])[head] for text in texts])
        np.testing.assert_allclose(encode_texts(encoder, texts, 7)[head], alone, atol=2e-6)
        np.testing.assert_allclose(
            encode_texts(encoder, texts[::-1], 64)[head], alone[::-1], atol=2e-6
        )
        alone = np.concatenate([encoder.image_rows([path])[head] for path in paths])
        np.testing.assert_allclose(encode_images(encoder, paths, 3, 2)[head], alone, atol=2e-6)
        np.testing.assert_allclose(encode_images(encoder, paths, 64)[head], alone, atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_rows_that_are_not_finite_are_refused_where_a_model_gives_them(home, paths, tmp_path):
    folder = Path(shutil.copytree(home / "clip", tmp_path / "clip"))
    settings_file = folder / "preprocessor_config.json"
    settings = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps({**settings, "image_std": [0.5, 0.0, 0.5]}))
    encoder = load_encoder(str(folder), "cpu")
    with pytest.raises(EmbeddingsError) as refused:
        encoder.image_rows(paths)
    assert refused.value.location == FORWARD_PASS
    with pytest.raises(ImageError) as refused:
        encode_images(encoder, paths, 2)
    assert refused.value.path == paths[0]
    assert np.isfinite(encoder.text_rows(["picture number 1"])["cross"]).all()


def test_images_that_cannot_be_read_or_encoded(home, paths, tmp_path):
    encoder = load_encoder(str(home / "vit"), "cpu")
    (tmp_path / "torn.jpg").write_bytes(paths[0].read_bytes()[:300])
    for file in ("torn.jpg", "gone.jpg"):
        with pytest.raises(ImageError) as refused:
            encode_images(encoder, [*paths, tmp_path / file], 3, 2)
        assert refused.value.path == tmp_path / file

    class Picky(Recorder):
        def image_rows(self, images, batch_size=64):
            if Path("5.jpg") in images:
                raise ValueError("height and width must be > 0\nand more")
            return super().image_rows(images)

    with pytest.raises(ImageError) as refused:
        encode_images(Picky(), numbered(9), 4, 2)
    assert fault_of(refused.value) == Fault(ImageError, path=Path("5.jpg"))
    assert refused.value.path == Path("5.jpg")


def test_memory_that_is_too_small():
    def fail(*_args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    encoder = SimpleNamespace(image_rows=fail, text_rows=fail)
    with pytest.raises(CusaError) as refused:
        encode_images(encoder, numbered(3), 16)
    assert refused.value.name == "batch_size"
    with pytest.raises(CusaError) as refused:
        encode_texts(encoder, ["a"], 8)
    assert refused.value.name == "batch_size"


@pytest.mark.parametrize(
    ("option", "error_word"),
    [("batch_size", "batch_size"), ("workers", "max_workers")],
)
def test_options_out_of_range(option, error_word):
    with pytest.raises(ValueError, match=error_word):
        encode_images(Recorder(), numbered(3), **{option: 0})


def test_rows_go_to_a_file_and_come_back(home, paths, tmp_path):
    rows = encode_images(load_encoder(str(home / "vit"), "cpu"), paths)["cross"]
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "ids.json").write_text(json.dumps([path.name for path in paths]))
    foreign = read_rows(tmp_path / "rows.npy", tmp_path / "ids.json")
    assert foreign.ids == [path.name for path in paths]
    np.testing.assert_array_equal(foreign.rows, rows)
