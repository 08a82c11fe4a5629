"""Loading with checks: limits of positions, tokenisers, hostile and damaged files."""

import io
import json
import os
import pickle
import zipfile

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from cusa.data.errors import FileFormatError, ImageError, StudentError, TeacherError
from cusa.data.pretrained import (
    load_config,
    load_embedding_model,
    load_image_processor,
    one_line_load_errors,
    processed,
)
from cusa.data.tokenization import load_tokenizer, position_limit, token_limit, tokenized
from tests.helpers import Fault, fault_of
from tests.tiny_models import SIZES, save_processor, save_tokenizer

SMALL = {**SIZES, "vocab_size": 40}
ROBERTA = {**SMALL, "max_position_embeddings": 34, "pad_token_id": 1}
DECODER = {
    "vocab_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
}


@pytest.mark.parametrize(
    ("model", "settings", "limit"),
    [
        ("Bert", {**SMALL, "max_position_embeddings": 20}, 20),
        ("Roberta", ROBERTA, 32),
        ("XLMRoberta", ROBERTA, 32),
        ("MPNet", ROBERTA, 32),
        (
            "GPT2",
            {"vocab_size": 40, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 20},
            20,
        ),
        ("OPT", {**DECODER, "hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32}, 20),
    ],
)
def test_a_text_of_as_many_tokens_as_there_are_positions_is_the_longest(model, settings, limit):
    config = getattr(transformers, f"{model}Config")(**settings)
    text_model = getattr(transformers, f"{model}Model")(config).eval()
    assert position_limit(text_model) == limit
    with torch.inference_mode():
        text_model(input_ids=torch.full((1, limit), 7))
        with pytest.raises((IndexError, RuntimeError)):
            text_model(input_ids=torch.full((1, limit + 1), 7))


def test_relative_positions_are_no_limit_of_texts():
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(vocab_size=40, **sizes)
    assert position_limit(transformers.T5Model(config)) is None


def test_positions_of_images_are_no_limit_of_texts():
    text = {**SMALL, "max_position_embeddings": 20}
    vision = {**SIZES, "image_size": 32, "patch_size": 16}  # 5 positions
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    assert position_limit(transformers.CLIPModel(config)) == 20


@pytest.mark.parametrize(("max_length", "limit"), [(None, 32), (9, 9), (500, 32)])
def test_the_smaller_limit_counts(tmp_path, max_length, limit):
    save_tokenizer(tmp_path, max_length=max_length)
    tokenizer = load_tokenizer(str(tmp_path), TeacherError)
    model = transformers.RobertaModel(transformers.RobertaConfig(**ROBERTA))
    assert token_limit(tokenizer, model) == limit
    tokens = tokenized(tokenizer, ["a dog", "a dog " * 40], limit, "longest")
    assert tokens["input_ids"].shape == (2, limit)
    assert tokens["attention_mask"].sum(dim=1).tolist() == [4, limit]


def test_without_any_limit_nothing_is_cut(tmp_path):
    save_tokenizer(tmp_path, max_length=None)
    tokenizer = load_tokenizer(str(tmp_path), TeacherError)
    config = transformers.T5Config(
        vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    assert token_limit(tokenizer, transformers.T5EncoderModel(config)) is None
    assert tokenized(tokenizer, ["a dog " * 300], None, "longest")["input_ids"].shape == (1, 602)


@pytest.mark.parametrize("kind", ["BertTokenizer", "CLIPTokenizer", "T5Tokenizer", "GPT2Tokenizer"])
def test_a_folder_without_the_files_of_a_tokenizer_has_none(tmp_path, kind):
    """transformers makes one up that has no words."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    for error_class in (TeacherError, StudentError):
        with pytest.raises(error_class) as caught:
            load_tokenizer(str(tmp_path), error_class)
        assert caught.value.path == tmp_path


def test_the_end_token_pads_where_no_other_does(tmp_path):
    save_tokenizer(tmp_path, pad=False)
    tokenizer = load_tokenizer(str(tmp_path), TeacherError)
    tokens = tokenized(tokenizer, ["a dog", "a"], 77, "longest")
    assert tokens["input_ids"].tolist() == [[1, 4, 5, 2], [1, 4, 2, 2]]
    assert tokens["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TeacherError) as caught:
        load_tokenizer(str(tmp_path), TeacherError)
    assert (caught.value.path, caught.value.name) == (tmp_path, str(tmp_path))


def test_images_that_are_too_narrow_never_reach_the_processor(tmp_path):
    save_processor(tmp_path)
    processor = load_image_processor(str(tmp_path))
    assert type(processor).__name__.endswith("Pil")
    assert processed(processor, [Image.new("L", (50, 90))])["pixel_values"].shape == (1, 3, 32, 32)
    with pytest.raises(ImageError):
        processed(processor, [Image.new("L", (1, 1_000_000))])


class Hostile:
    def __reduce__(self):
        return os.mkdir, (os.environ["CUSA_TEST_MARK"],)


def _hostile_pickle():
    return pickle.dumps(Hostile())


def _hostile_zip():
    file = io.BytesIO()
    torch.save({"embeddings": Hostile()}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "make", [_hostile_pickle, _hostile_zip, lambda: b"\x80\x02garbage", lambda: b""]
)
def test_pickled_weights_are_never_run(tmp_path, monkeypatch, make):
    monkeypatch.setenv("CUSA_TEST_MARK", str(tmp_path / "executed"))
    folder = tmp_path / "model"
    model = transformers.BertModel(transformers.BertConfig(**SMALL))
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(make())
    with pytest.raises(TeacherError) as caught:
        with one_line_load_errors("model", str(folder), TeacherError, "mend it"):
            transformers.AutoModel.from_pretrained(folder, trust_remote_code=False)
    assert caught.value.path == folder
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "file", ["config.json", "preprocessor_config.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("content", ["[]", "{", "5", "NaN", '{"a":' * 5000])
def test_files_of_settings_that_are_no_objects_are_named(tmp_path, file, content):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / file).write_text(content)
    with pytest.raises(FileFormatError) as caught:
        load_config(str(tmp_path))
    assert caught.value.path == tmp_path / file


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("hidden_size"), "KeyError: 'hidden_size'"),
        (
            ValueError("Pass `trust_remote_code=True`"),
            "it needs code of its own, which is not run; use a model",
        ),
        (
            ImportError("\nX requires the Torchvision library but\nit was not"),
            "it needs torchvision; pip install",
        ),
        (RuntimeError("first\nsecond"), r"\(first\)"),
        (MemoryError(), r"\(MemoryError\)|MemoryError"),
    ],
)
def test_whatever_a_library_raises_is_one_line(error, message):
    with pytest.raises(StudentError) as caught:
        with one_line_load_errors("student", "owner/model", StudentError, "pass another"):
            raise error
    assert fault_of(caught.value) == Fault(StudentError, name="owner/model")
    assert caught.value.name == "owner/model"
    assert "\n" not in str(caught.value)
    with pytest.raises(KeyboardInterrupt), one_line_load_errors("x", "y", StudentError, "z"):
        raise KeyboardInterrupt


def test_pictures_keep_their_values_whatever_the_backend(tmp_path):
    """Only Pillow's backend: pixels must not depend on whether torchvision is installed."""
    save_processor(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    config["image_processor_type"] = "BitImageProcessorFast"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert type(load_image_processor(str(tmp_path))).__name__ == "BitImageProcessorPil"


def test_a_vocabulary_of_impossible_numbers_is_refused(tmp_path):
    """The library lists all numbers below the highest, gigabytes of them, when it is asked for its
    settings.
    """
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["picture"] = 2**31
    path.write_text(json.dumps(content))
    with pytest.raises(StudentError) as raised:
        load_tokenizer(str(tmp_path), StudentError)
    assert raised.value.path == tmp_path


def _compressed(path):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _with_a_flipped_bit(path):
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        weights = max(archive.infolist(), key=lambda member: member.file_size)
    content[weights.header_offset + 200 + weights.file_size // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_compressed, _with_a_flipped_bit])
def test_pickled_weights_that_would_be_read_wrong_are_refused(tmp_path, damage):
    """transformers maps the file: compressed bytes became weights, and a changed one was not
    noticed.
    """
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(tmp_path)
    weights = tmp_path / "pytorch_model.bin"
    torch.save(load_file(tmp_path / "model.safetensors"), weights)
    (tmp_path / "model.safetensors").unlink()
    load_embedding_model(str(tmp_path))
    damage(weights)
    with pytest.raises(FileFormatError) as caught:
        load_embedding_model(str(tmp_path))
    assert caught.value.path == weights


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    model = transformers.BertModel(transformers.BertConfig(**SMALL))
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias[3] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(FileFormatError) as caught:
        load_embedding_model(str(tmp_path))
    assert (caught.value.path, caught.value.name) == (tmp_path, "encoder.layer.0.output.dense.bias")


@pytest.mark.parametrize(
    "settings", [{"num_hidden_layers": 2**70}, {"vision_config": {"num_hidden_layers": 1e9}}]
)
def test_layers_without_end_are_refused_before_any_is_built(tmp_path, settings):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", **settings}))
    with pytest.raises(FileFormatError) as caught:
        load_config(str(tmp_path))
    assert (caught.value.path, caught.value.location) == (
        tmp_path / "config.json",
        "num_hidden_layers",
    )
