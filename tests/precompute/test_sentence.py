"""Text models as teachers: Hugging Face models, text towers, sentence-transformers folders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cusa.data.errors import WEIGHTS, TeacherError
from cusa.data.store.reader import EmbeddingStore
from cusa.precompute.teachers import parse_teacher
from tests.helpers import make_pairs, make_tiny_vit, run, run_ok
from tests.tiny_models import SIZES, TEXTS, WORDS, save_text

BERT = ("BertModel", "BertConfig")
ROBERTA = {**SIZES, "max_position_embeddings": 34, "pad_token_id": 1}


def _load(folder):
    return parse_teacher(f"read={folder}").load("cpu")


def _unit(features):
    return torch.nn.functional.normalize(features, dim=-1).numpy()


def _alone(teacher, texts):
    """Rows of texts one by one: without padding."""
    return np.concatenate([teacher.rows([text], "cpu", "fp32") for text in texts])


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    save_text(tmp_path / "read", *BERT, **SIZES)
    for file in (tmp_path / "read").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(TeacherError) as caught:
        _load(tmp_path / "read")
    assert caught.value.path == tmp_path / "read"


@pytest.mark.parametrize(
    ("name", "config", "settings"),
    [
        ("GPT2Model", "GPT2Config", {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 40}),
        ("LlamaModel", "LlamaConfig", {**SIZES, "max_position_embeddings": 40}),
        (
            "T5EncoderModel",
            "T5Config",
            {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2},
        ),
    ],
)
def test_padding_changes_no_row(tmp_path, name, config, settings):
    """Also where the end token has to pad."""
    model = save_text(tmp_path / "read", name, config, pad=False, max_length=None, **settings)
    teacher = _load(tmp_path / "read")
    rows = teacher.rows(TEXTS, "cpu", "fp32")
    np.testing.assert_allclose(rows, _alone(teacher, TEXTS), atol=1e-6)
    tokens = teacher.tokenize(TEXTS[:1])["input_ids"]
    with torch.inference_mode():
        mean = model(input_ids=tokens).last_hidden_state.mean(dim=1)
    np.testing.assert_allclose(rows[:1], _unit(mean), atol=1e-6)


def test_captions_are_cut_where_the_positions_end_and_the_number_is_told(tmp_path):
    model = save_text(
        tmp_path / "read", "RobertaModel", "RobertaConfig", max_length=None, **ROBERTA
    )
    teacher = _load(tmp_path / "read")
    assert teacher.token_limit == teacher.transform["max_seq_length"] == 32
    long = " ".join(["dog"] * 50)
    assert teacher.token_counts(["a dog", long]).tolist() == [4, 52]
    cut = torch.tensor([[1, *[5] * 30, 2]])
    with torch.inference_mode():
        # Position numbers are counted from the padding's number on; token 1 is the padding's here.
        mask = torch.ones_like(cut)
        tokens = model(input_ids=cut, attention_mask=mask).last_hidden_state
    np.testing.assert_allclose(
        teacher.rows([long], "cpu", "fp32"), _unit(tokens.mean(dim=1)), atol=1e-6
    )
    manifest = make_pairs(tmp_path / "d")
    lines = manifest.read_text().splitlines()
    for number in (3, 4, 20):
        lines[number] = json.dumps({**json.loads(lines[number]), "caption": f"{long} {number % 2}"})
    manifest.write_text("\n".join(lines))
    vit, out = make_tiny_vit(tmp_path / "vit"), tmp_path / "s.h5"
    teachers = ("--teacher", f"see={vit}", "--teacher", f"read={tmp_path / 'read'}", "--workers", 0)
    text = run_ok("precompute", "--dataset", manifest, *teachers, "--out", out)
    assert "read: captions that were cut, as they have more than 32 tokens: 3" in text
    assert "that were cut" not in run_ok(
        "precompute", "--dataset", manifest, *teachers, "--out", out
    )


@pytest.mark.parametrize(
    ("name", "config", "more", "feature"),
    [
        (
            "CLIPTextModelWithProjection",
            "CLIPTextConfig",
            {"projection_dim": 24, "eos_token_id": 2},
            "text_embeds",
        ),
        ("CLIPTextModel", "CLIPTextConfig", {"eos_token_id": 2}, "pooler"),
        ("SiglipTextModel", "SiglipTextConfig", {"projection_size": 24}, "pooler"),
    ],
)
def test_text_towers_give_their_embedding(tmp_path, name, config, more, feature):
    model = save_text(
        tmp_path / "read", name, config, **SIZES, max_position_embeddings=20, pad_token_id=0, **more
    )
    teacher = _load(tmp_path / "read")
    assert teacher.transform["feature"] == feature
    assert teacher.token_limit == 20
    rows = teacher.rows(TEXTS, "cpu", "fp32")
    np.testing.assert_allclose(rows, _alone(teacher, TEXTS), atol=1e-6)
    padding = "max_length" if name.startswith("Siglip") else False
    tokens = torch.tensor([[1, 4, 5, 2] + [0] * (16 if padding else 0)])  # of "a dog"
    with torch.inference_mode():
        output = model(input_ids=tokens)
    want = output.text_embeds if feature == "text_embeds" else output.pooler_output
    assert teacher.dim == want.shape[1]
    np.testing.assert_allclose(rows[:1], _unit(want), atol=1e-6)


@pytest.mark.parametrize("name", ["BertModel", "CLIPTextModelWithProjection"])
def test_weights_that_are_missing_are_refused(tmp_path, name):
    """Random numbers would stand in their place, others each time."""
    config = name.replace("ModelWithProjection", "Model").replace("Model", "Config")
    save_text(tmp_path / "read", name, config, **SIZES)
    file = tmp_path / "read" / "model.safetensors"
    weights = load_file(file)
    save_file(
        {k: v for k, v in weights.items() if "layers.0" not in k and "layer.0" not in k},
        file,
        {"format": "pt"},
    )
    with pytest.raises(TeacherError) as caught:
        _load(tmp_path / "read")
    assert caught.value.location == WEIGHTS


def _sentence_folder(folder, path=""):
    """A sentence-transformers folder; its Transformer module lies below it at ``path``."""
    save_text(folder / path, *BERT, **SIZES)
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [
        {"idx": 0, "name": "0", "path": path, "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_captions_of_a_tokeniser_that_counts_characters_are_not_said_to_be_cut(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, WordEmbeddings
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    vectors = np.random.default_rng(0).normal(size=(len(WORDS), 8)).astype(np.float32)
    words = WordEmbeddings(WhitespaceTokenizer(WORDS, stop_words=[]), vectors, max_seq_length=8)
    model = SentenceTransformer(modules=[words, Pooling(8)], device="cpu")
    model.save(str(tmp_path / "read"), create_model_card=False)
    teacher = _load(tmp_path / "read")
    assert teacher.token_counts(["a red dog"]).tolist() == [9]
    assert teacher.token_limit is None


def test_a_tokeniser_written_in_python_counts_tokens(tmp_path):
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    ByT5Tokenizer().save_pretrained(tmp_path / "read")
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=384, **sizes)).save_pretrained(tmp_path / "read")
    assert _load(tmp_path / "read").token_counts(["a dog", ""]).tolist() == [
        6,
        1,
    ]  # one for each byte, and the end


@pytest.mark.parametrize("path", ["", "0_Transformer"])
def test_sentence_transformers_folders(tmp_path, path):
    folder = _sentence_folder(tmp_path / "read", path)
    rows = _load(folder).rows(TEXTS, "cpu", "fp32")
    save_text(tmp_path / "plain", *BERT, **SIZES)
    np.testing.assert_allclose(
        rows, _load(tmp_path / "plain").rows(TEXTS, "cpu", "fp32"), atol=1e-6
    )
    file = folder / path / "model.safetensors"
    weights = load_file(file)
    save_file(
        {k: v for k, v in weights.items() if "layer.0.attention" not in k}, file, {"format": "pt"}
    )
    with pytest.raises(TeacherError) as caught:
        _load(folder)
    assert caught.value.location == WEIGHTS


@pytest.mark.parametrize(
    "place", ["modules.json", "2_Router/router_config.json", "config.json", "tokenizer_config.json"]
)
def test_code_of_a_folder_is_never_run(tmp_path, monkeypatch, place):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.chdir(_sentence_folder(tmp_path / "read"))
    Path("own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Module: pass\n")
    if place == "modules.json":
        modules = json.loads(Path(place).read_text())
        modules[0]["type"] = "own.Module"
        Path(place).write_text(json.dumps(modules))
    elif place.startswith("2_Router"):
        Path("2_Router").mkdir()
        Path(place).write_text(
            json.dumps({"types": {"query_0": "own.Module"}, "structure": {"query": ["query_0"]}})
        )
    else:
        settings = json.loads(Path(place).read_text())
        names = {
            "AutoConfig": "own.Module",
            "AutoModel": "own.Module",
            "AutoTokenizer": ["own.Module", "own.Module"],
        }
        changes = {"model_type": "own", "auto_map": names, "tokenizer_class": "Own"}
        Path(place).write_text(json.dumps({**settings, **changes}))
    if place == "tokenizer_config.json":  # transformers has another tokeniser for the model's kind
        _load(tmp_path / "read")
    else:
        with pytest.raises(TeacherError):
            _load(tmp_path / "read")
    assert not (tmp_path / "executed").exists()


def test_captions_without_a_known_word(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW

    words = [str(number) for number in range(20)]
    SentenceTransformer(modules=[BoW(vocab=words)], device="cpu").save(
        str(tmp_path / "bag"), create_model_card=False
    )
    manifest = make_pairs(tmp_path / "d")
    manifest.write_text(
        manifest.read_text().replace("picture number 3, version 1", "unheard things")
    )
    vit = make_tiny_vit(tmp_path / "vit")
    teachers = ("--teacher", f"see={vit}", "--teacher", f"bag={tmp_path / 'bag'}", "--workers", 0)
    result = run("precompute", "--dataset", manifest, *teachers, "--out", tmp_path / "s.h5")
    assert result.exit_code == 1
    assert f"{manifest} line 8: caption id id3#1" in result.output
    assert "('unheard things'): teacher 'bag' gives a row of zeros" in result.output
    run_ok(
        "precompute",
        "--dataset",
        manifest,
        *teachers,
        "--out",
        tmp_path / "s.h5",
        "--on-error",
        "skip",
    )
    store = EmbeddingStore(tmp_path / "s.h5")
    row = store.split("train").captions[:].index("unheard things")
    assert store.embeddings("bag", "train").skipped.tolist() == [row]


@pytest.mark.parametrize("dim", ["NaN", [24], {"x": 1}])
def test_a_width_that_is_no_number_is_one_error(tmp_path, dim):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    save_text(tmp_path / "plain", *BERT, **SIZES)
    modules = [Transformer(str(tmp_path / "plain")), Pooling(SIZES["hidden_size"])]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "read"))
    path = tmp_path / "read" / "1_Pooling" / "config.json"
    settings = json.loads(path.read_text())
    [name] = [
        name for name in settings if name in ("word_embedding_dimension", "embedding_dimension")
    ]
    path.write_text(json.dumps({**settings, name: dim}))
    with pytest.raises(TeacherError) as raised:
        _load(tmp_path / "read")
    assert raised.value.path == tmp_path / "read"
