import numpy as np
import pytest
from PIL import Image

from cusa.data.errors import CusaError
from cusa.data.images import ImageTransform, load_image


def test_transform_resizes_the_shorter_side_crops_the_centre_and_normalises():
    transform = ImageTransform(resize=4, crop=2, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[1:3, 3:5] = (255, 127, 0)
    out = transform(Image.fromarray(pixels))
    assert out.dtype == np.float32
    assert out.shape == (3, 2, 2)
    np.testing.assert_allclose(out[:, 0, 0], [2.0, (127 / 255 - 0.5) / 0.5, -0.5], rtol=1e-6)
    assert (out == out[:, :1, :1]).all()


@pytest.mark.parametrize(("size", "want"), [((10, 25), (4, 10)), ((25, 10), (10, 4)), ((4, 9), (4, 9))])
def test_resize_keeps_the_aspect_and_cuts_to_whole_pixels(size, want):
    from cusa.data.images import resize_shorter

    assert resize_shorter(Image.new("RGB", size), 4, "bicubic").size == want


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(mode):
    transform = ImageTransform(8, 8, (0, 0, 0), (1, 1, 1))
    assert transform(Image.new(mode, (9, 12))).shape == (3, 8, 8)


def test_deep_and_black_and_white_images_keep_their_greys(tmp_path):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "deep.png")), grey)
    Image.fromarray(grey > 99).save(tmp_path / "bw.png")
    assert load_image(tmp_path / "bw.png").mode == "L"
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(CusaError, match="floating-point"):
        load_image(tmp_path / "float.tiff")


def test_damaged_files_are_named(tmp_path):
    good = tmp_path / "good.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(good)
    assert load_image(good).size == (64, 64)
    (tmp_path / "truncated.jpg").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    for name, message in {
        "truncated": "cannot be decoded",
        "empty": "zero bytes",
        "text": "not an image",
        "missing": "does not exist",
        "folder": "cannot be decoded",
    }.items():
        with pytest.raises(CusaError, match=f"{name}.jpg .*{message}"):
            load_image(tmp_path / f"{name}.jpg")
