"""Every example under docs/examples runs, learns, and does what docs/hosts.md says of it."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import cusa
from cusa.data.errors import DataError
from cusa.data.images import load_image
from cusa.data.store.reader import EmbeddingStore
from cusa.train.loss.config import LossConfig, Temperature
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.loss.functions import contrastive_loss, soft_label_loss
from cusa.train.teacher_rows import Teachers

DOCS = Path(cusa.__file__).parent.parent / "docs"
EXAMPLES = DOCS / "examples"
OPEN_CLIP = importlib.util.find_spec("open_clip")


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def example(monkeypatch):
    """Loads an example as a script finds its neighbours: with its own folder on the path."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield lambda name: _load(EXAMPLES / f"{name}.py")
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def _falls(losses, to):
    """The mean of the last ten losses is at most ``to`` of the first one."""
    assert sum(losses[-10:]) / 10 < to * losses[0], losses


def test_every_example_is_named_in_the_page_on_hosts():
    page = (DOCS / "hosts.md").read_text()
    names = {path.name for path in EXAMPLES.iterdir() if path.name != "__pycache__"}
    assert len(names) == 14
    for name in names:
        assert f"examples/{name}" in page, name


def test_examples_import_public_names():
    """From cusa itself and from cusa.hosts; made_up, which needs more, is none for a user."""
    for path in set(EXAMPLES.glob("*.py")) - {EXAMPLES / "made_up.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "cusa":
                is_public = node.module == "cusa" or node.module.startswith("cusa.hosts.")
                assert is_public, f"{path.name} imports {node.module}"


def test_what_the_page_quotes_is_in_the_examples():
    lines = {
        line.strip() for path in EXAMPLES.glob("*.py") for line in path.read_text().splitlines()
    }
    blocks = (DOCS / "hosts.md").read_text().split("```python\n")[1:]
    assert len(blocks) > 8
    for block in blocks:
        for line in block.split("```")[0].splitlines():
            assert line.strip() in lines, line


def test_plain_loop(example):
    _falls(example("plain_loop").main(), 0.4)


def test_an_example_runs_as_the_page_says():
    command = [sys.executable, EXAMPLES / "plain_loop.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "micro-batches of None",
        "micro-batches of 8",
    ]


def test_gradient_caching_trains_as_the_whole_batch_does(example):
    module = example("plain_loop")
    whole, cached = module.main(steps=12), module.main(steps=12, micro_batch=5)
    assert whole == pytest.approx(cached, rel=1e-4)


def _trained_everything(trainer, module):
    """The optimizer has every parameter that learns, and every one of them had a gradient."""
    learns = {name: p for name, p in module.named_parameters() if p.requires_grad}
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in learns.values()}
    untouched = [
        name for name, p in learns.items() if not trainer.optimizer.state[p]["exp_avg_sq"].any()
    ]
    assert not untouched


def _logged(trainer):
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def test_hugging_face_trainer(example, tmp_path):
    trainer = example("hf_trainer").main(tmp_path)
    losses = _logged(trainer)
    assert losses[-1] < 0.85 * losses[0]
    _trained_everything(trainer, trainer.model)
    assert any(name.startswith("heads.uni_image") for name, _ in trainer.model.named_parameters())
    start = CUSALoss().temperatures()
    moved = {
        name for name, value in trainer.model.loss.temperatures().items() if value != start[name]
    }
    assert moved == {"tau", "tau_csa", "tau_usa_image", "tau_usa_text"}  # tau_soft is fixed
    decayed = next(g["params"] for g in trainer.optimizer.param_groups if g["weight_decay"])
    assert not {id(p) for p in trainer.model.loss.parameters()} & {id(p) for p in decayed}
    assert {"contrastive", "csa", "usa"} <= set().union(*trainer.state.log_history)
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved["loss.tau"].item() == trainer.model.loss.tau.item()


def test_sentence_transformers_trainer(example, tmp_path):
    trainer = example("sentence_transformers_trainer").main(tmp_path)
    losses = _logged(trainer)
    assert losses[-1] < 0.85 * losses[0]
    start = CUSALoss().temperatures()
    moved = {
        name for name, value in trainer.loss.cusa.temperatures().items() if value != start[name]
    }
    assert moved == {"tau", "tau_csa", "tau_usa_image", "tau_usa_text"}
    _trained_everything(trainer, trainer.loss)
    heads = [name for name, _ in trainer.model.named_parameters() if not name.startswith("0.")]
    assert len(heads) == 4  # in the model, with which they are saved: weight and bias of two


@torch.no_grad()
def _cusa_by_hand(model, store, split, encode, loss):
    """The loss over a split in batches of 32 pairs, with its own teachers' rows."""
    table, values, sizes = store.split(split), [], []
    teachers = [torch.from_numpy(np.asarray(store.embeddings(t, split).gather(range(n))))
                for t, n in (("vision", table.n_images), ("words", table.n_captions))]  # fmt: skip
    for start in range(0, table.n_captions, 32):
        captions = np.arange(start, min(start + 32, table.n_captions))
        images = table.caption_image[captions]
        pictures = [
            load_image(store.image_root / table.image_paths[i]).convert("RGB") for i in images
        ]
        features = encode(model, pictures, [table.captions[c] for c in captions])
        ids = torch.from_numpy(images)
        values.append(loss(*features, teachers[0][images], teachers[1][captions], ids).total.item())
        sizes.append(len(captions))
    return np.average(values, weights=sizes)


def test_hugging_face_evaluates_val_with_the_teachers_of_val(example, tmp_path):
    from transformers import AutoProcessor

    trainer = example("hf_trainer").main(tmp_path, steps=2)
    processor = AutoProcessor.from_pretrained(tmp_path / "clip")

    def encode(model, pictures, captions):
        given = processor(
            images=pictures, text=captions, padding=True, truncation=True, return_tensors="pt"
        )
        image = model.encoder.get_image_features(pixel_values=given["pixel_values"]).pooler_output
        text = model.encoder.get_text_features(
            input_ids=given["input_ids"], attention_mask=given["attention_mask"]
        ).pooler_output
        heads = model.heads
        return (
            heads["image"](image),
            heads["text"](text),
            heads["uni_image"](image),
            heads["uni_text"](text),
        )

    found = trainer.evaluate()["eval_loss"]
    store = EmbeddingStore(tmp_path / "store.h5")
    assert found == pytest.approx(
        _cusa_by_hand(trainer.model.eval(), store, "val", encode, trainer.model.loss), rel=1e-4
    )
    collator, pairs = trainer.data_collator, [trainer.train_dataset[0], trainer.eval_dataset[0]]
    with pytest.raises(DataError) as caught:
        collator(pairs)
    assert caught.value.name == "split"


def test_sentence_transformers_evaluates_val_with_the_teachers_of_val(example, tmp_path):
    trainer = example("sentence_transformers_trainer").main(tmp_path, steps=2)

    def encode(model, pictures, captions):
        image, text = (model(model.preprocess(items)) for items in (pictures, captions))
        names = ("sentence_embedding", "uni_image_embedding", "uni_text_embedding")
        return image[names[0]], text[names[0]], image[names[1]], text[names[2]]

    found = trainer.evaluate()["eval_loss"]
    store = EmbeddingStore(tmp_path / "store.h5")
    assert found == pytest.approx(
        _cusa_by_hand(trainer.model.eval(), store, "val", encode, trainer.loss.cusa), rel=1e-4
    )


def test_a_sentence_transformer_keeps_its_heads_when_saved(example, tmp_path):
    from sentence_transformers import SentenceTransformer

    trainer = example("sentence_transformers_trainer").main(tmp_path, steps=2)
    trainer.model.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


# Where there is no torchvision, open_clip gets the stand-in; transformers must not see it.
REAL_TRAINERS = """
import runpy, sys
from transformers.utils import is_torchvision_available
if not is_torchvision_available():
    sys.path.insert(0, sys.argv[1])
runpy.run_path(sys.argv[2], run_name="__main__")
"""


def test_the_real_trainers_one_after_another():
    """In a process of its own: open_clip changes the root logger."""
    if importlib.util.find_spec("open_clip_train") is None:
        pytest.skip("needs open_clip's trainer: see the Makefile")
    stand_in = Path(__file__).parent.parent / "hosts" / "stand_in"
    command = [sys.executable, "-c", REAL_TRAINERS, stand_in, EXAMPLES / "real_trainers.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=EXAMPLES)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.endswith("bit for bit")]
    assert [row[0] for row in rows] == ["transformers", "sentence-transformers", "open_clip_torch"]
    for _, _, val_loss, tau_csa, *_ in rows:
        assert 0 < float(val_loss) < 10
        assert float(tau_csa) != CUSALoss().temperatures()["tau_csa"]


# Lightning uses names that torch is about to rename, and advises on workers.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_lightning(example, tmp_path):
    module = example("lightning_module")
    store = module.make_data(tmp_path).store
    whole = module.fit(store, tmp_path / "whole", 4)
    stopped = module.fit(store, tmp_path / "stopped", 2)
    checkpoint = Path(stopped.checkpoint_callback.best_model_path)
    resumed = module.fit(store, tmp_path / "resumed", 4, checkpoint)

    trained = whole.lightning_module
    for name, value in trained.state_dict().items():
        assert torch.equal(value, resumed.lightning_module.state_dict()[name]), name
    figures, again = whole.callback_metrics, resumed.callback_metrics
    assert figures["val_total"] == again["val_total"]
    assert figures["train_total"] < stopped.callback_metrics["train_total"]
    start = CUSALoss().temperatures()
    learned = trained.loss.temperatures()
    moved = {name for name, value in learned.items() if value != start[name]}
    assert moved == {"tau", "tau_csa", "tau_usa_image", "tau_usa_text"}
    decayed = []
    for group in whole.optimizers[0].param_groups:
        if group["weight_decay"]:
            decayed += map(id, group["params"])
    assert decayed
    assert not set(decayed) & set(map(id, trained.loss.parameters()))

    # With the teachers' rows of val: one batch holds all of its pairs.
    (batch,) = trained.val_dataloader()
    (pixels, tokens), caption_rows = batch
    rows = Teachers(store, "val").rows(caption_rows)
    image, text = trained.image_trunk(pixels), trained.text_trunk(tokens)
    features = {
        name: head(text if "text" in name else image) for name, head in trained.heads.items()
    }
    expected = trained.loss(*features.values(), rows.image, rows.text, rows.image_ids)
    assert figures["val_total"].item() == pytest.approx(expected.total.item(), rel=1e-5)


def test_cross_attention_host(example):
    _falls(example("sgraf_style").main(), 0.6)


def test_cross_attention_similarity_is_what_the_loops_say(example):
    rng = torch.Generator().manual_seed(0)
    regions, words = torch.randn(3, 4, 5, generator=rng), torch.randn(3, 2, 5, generator=rng)
    got = example("sgraf_style").attended_similarity(regions, words, sharpness=3.0)
    for i in range(3):
        for j in range(3):
            r, cosines = F.normalize(regions[i], dim=-1), []
            for word in F.normalize(words[j], dim=-1):
                attended = ((3.0 * r @ word).softmax(0)[:, None] * r).sum(0)
                cosines.append(F.cosine_similarity(attended, word, dim=0))
            assert got[i, j].item() == pytest.approx(torch.stack(cosines).mean().item(), abs=1e-6)


def test_on_similarities_is_the_sum_of_the_functions():
    rng = torch.Generator().manual_seed(0)
    s, *features = torch.rand(5, 6, 6, generator=rng)
    ids = torch.tensor([0, 1, 1, 2, 3, 4])
    terms = CUSALoss(LossConfig(alpha=1.0, beta=0.75)).on_similarities(s, *features, ids)
    uni_v, uni_t, teacher_v, teacher_t = (F.normalize(x) @ F.normalize(x).T for x in features)
    con = (contrastive_loss(s, 0.05, ids, "paper") + contrastive_loss(s.T, 0.05, ids, "paper")) / 2
    csa = (soft_label_loss(s, teacher_v, 0.45) + soft_label_loss(s.T, teacher_t, 0.45)) / 2
    usa = (soft_label_loss(uni_v, teacher_v, 0.45) + soft_label_loss(uni_t, teacher_t, 0.45)) / 2
    assert terms.total.item() == pytest.approx((con + csa + 0.75 * usa).item(), rel=1e-5)


def test_matching_head(example):
    history = example("matching_head").main()
    for name in ("contrastive", "usa"):
        _falls([losses[name] for losses in history], 0.5)
    # One pair in three matches. A head that knows this alone is at the entropy of 1/3, 0.637.
    assert sum(losses["matching"] for losses in history[-10:]) / 10 < 0.632


def test_hinge_loss(example):
    config, history = example("hinge_loss").main(steps=20, batch_size=16)
    assert config.beta == pytest.approx(0.75 * config.alpha)
    assert config.alpha > 10  # the paper's weights, times a factor
    _falls([hinge for hinge, _ in history], 0.95)


def test_the_hinge_counts_the_hardest_negative_of_each_query(example):
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.5, 0.6], [0.0, 0.7, 0.9]])
    hinge = example("hinge_loss").max_hinge
    # By image: 0.1, 0.3, 0; by caption: 0, 0.5 from image 0 (0.8), 0.
    assert hinge(similarity, torch.arange(3)).item() == pytest.approx(0.9)
    # Captions 0 and 1 are of one image: 0, 0.3, 0; 0, 0.4 from image 2 (0.7), 0.
    assert hinge(similarity, torch.tensor([5, 5, 6])).item() == pytest.approx(0.7)


def test_mixup(example):
    module = example("mixup")
    history = module.main(steps=25)
    for losses in zip(*history, strict=True):
        _falls(losses, 0.8)
    pixels = torch.arange(8.0)[:, None, None, None].expand(8, 3, 2, 2)
    images, targets, is_mixed = module.mix_some(pixels)
    assert is_mixed.tolist() == [True, True] + [False] * 6
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
    torch.testing.assert_close(images[:, 0, 0, 0], targets @ torch.arange(8.0))


def test_region_features(example):
    _falls(example("region_features").main(), 0.75)


def test_momentum_queue(example):
    _falls(example("momentum_queue").main(steps=40), 0.6)


def test_sigmoid_host(example):
    history = example("siglip").main()
    _falls([sigmoid for sigmoid, _ in history], 0.6)
    _falls([soft_labels for _, soft_labels in history], 0.7)


@pytest.fixture
def open_clip():
    """open_clip's losses. Its package imports torchvision, which has no build for every torch;
    loss.py does not.
    """
    if OPEN_CLIP is None:
        pytest.skip("needs open_clip_torch: pip install --no-deps open_clip_torch")
    return _load(Path(OPEN_CLIP.submodule_search_locations[0]) / "loss.py")


def test_open_clip(example, open_clip):
    _falls(example("open_clip_loss").main(open_clip.ClipLoss()), 0.4)


def _normalised(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_our_contrastive_term_is_open_clips(open_clip):
    v, t, scale = _normalised(9, 5, seed=0), _normalised(9, 5, seed=1), 14.0
    config = LossConfig(
        terms=("contrastive",),
        contrastive_scaling="infonce",
        tau=Temperature(1 / scale, 0.01, 0.1, learnable=False),
    )
    want = open_clip.ClipLoss()(v, t, scale)
    assert CUSALoss(config)(v, t).contrastive.item() == pytest.approx(want.item(), abs=1e-6)
