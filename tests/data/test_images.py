import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from cusa.data.errors import CusaError, ImageError, SettingError
from cusa.data.images import (
    ImageTransform,
    as_viewed,
    has_transparent_pixels,
    load_image,
    max_pixels,
)


def test_transform_resizes_the_shorter_side_crops_the_centre_and_normalises():
    transform = ImageTransform(resize=4, crop=2, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[1:3, 3:5] = (255, 127, 0)
    out = transform(Image.fromarray(pixels))
    assert out.dtype == np.float32
    assert out.shape == (3, 2, 2)
    np.testing.assert_allclose(out[:, 0, 0], [2.0, (127 / 255 - 0.5) / 0.5, -0.5], rtol=1e-6)
    assert (out == out[:, :1, :1]).all()


@pytest.mark.parametrize(
    ("size", "want"), [((10, 25), (4, 10)), ((25, 10), (10, 4)), ((4, 9), (4, 9))]
)
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
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "wide.tiff")
    for name in ("float.tiff", "wide.tiff"):  # white may be 1, 255 or any other number
        with pytest.raises(ImageError) as caught:
            load_image(tmp_path / name)
        assert caught.value.path == tmp_path / name


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


# Rows are what a file stores for the orientation, after the EXIF specification's table of where
# the stored 0th row and 0th column lie in the picture as it is seen.
STORED = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],  # row 0: top, column 0: right
    3: lambda seen: seen[::-1, ::-1],  # bottom, right
    4: lambda seen: seen[::-1],  # bottom, left
    5: lambda seen: seen.swapaxes(0, 1),  # left, top
    6: lambda seen: seen.swapaxes(0, 1)[::-1],  # right, top
    7: lambda seen: seen.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda seen: seen.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


def _seen():
    """48 x 32 pixels of which no two corners are alike; blocks of 16 survive JPEG."""
    blocks = np.array(
        [[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [90, 90, 90], [0, 250, 250]]],
        np.uint8,
    )
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


@pytest.mark.parametrize("orientation", sorted(STORED))
@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tiff", "mpo", "avif"])
def test_pictures_are_turned_upright(tmp_path, form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    if form == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    options = {
        "jpg": {"quality": 95, "subsampling": 0},
        "mpo": {"quality": 95, "subsampling": 0},
        "webp": {"lossless": True},
        "avif": {"quality": 100, "subsampling": "4:4:4"},
    }
    path = tmp_path / f"x.{form}"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](_seen())))
    stored.save(path, exif=exif, **options.get(form, {}))
    for upright in (load_image(path), as_viewed(Image.open(path)), as_viewed(load_image(path))):
        assert upright.size == (48, 32)
        assert np.abs(np.asarray(upright.convert("RGB")).astype(int) - _seen()).max() <= 12, form


def test_the_exif_block_of_a_png_may_come_after_its_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(STORED[6](_seen())))
    file = io.BytesIO()
    stored.save(file, "PNG")
    body, end = file.getvalue()[:-12], file.getvalue()[-12:]
    (tmp_path / "late.png").write_bytes(body + _chunk(b"eXIf", exif.tobytes()[6:]) + end)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "late.png")), _seen())
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    stored.save(tmp_path / "xmp.png", pnginfo=info)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "xmp.png")), _seen())


@pytest.mark.parametrize(
    "block", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_a_damaged_exif_block_does_no_harm(tmp_path, block):
    Image.fromarray(_seen()).save(tmp_path / "x.jpg", exif=block)
    assert load_image(tmp_path / "x.jpg").size == (48, 32)


def _drawing(alpha):
    """Black everywhere, with an alpha channel of the left half opaque, then so much."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, :2, 3] = 255
    pixels[:, 2:, 3] = alpha
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("alpha", "grey"), [(0, 255), (51, 204)])
@pytest.mark.parametrize(
    "form", ["RGBA.png", "LA.png", "RGBA.webp", "RGBA.tiff", "P.png", "PA in memory"]
)
def test_transparent_pixels_lie_over_white(tmp_path, form, alpha, grey):
    mode = form.split(".")[0].split()[0]
    picture = _drawing(alpha).convert(mode)
    if "." in form:
        picture.save(tmp_path / form, lossless=True)
        picture = load_image(tmp_path / form)
    want = np.full((4, 4, 3), grey, np.uint8)
    want[:, :2] = 0
    np.testing.assert_array_equal(np.asarray(as_viewed(picture).convert("RGB")), want)


def _chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def _png(depth, colour_type, row, transparent, width, more=b""):
    """One row of raw samples with a chunk that names the transparent colour."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *([(b"PLTE", more)] if more else []), (b"tRNS", transparent)]
    chunks += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize(
    ("depth", "colour_type", "row", "transparent", "palette", "want"),
    [
        (1, 0, b"\x40", b"\0\0", b"", [255, 255]),  # samples 0 and 1
        (2, 0, b"\x60", b"\0\2", b"", [85, 255]),  # 1 and 2
        (4, 0, b"\x5a", b"\0\5", b"", [255, 170]),  # 5 and 10
        (8, 0, b"\x07\x09", b"\0\7", b"", [255, 9]),
        (16, 0, b"\x01\x01\x02\x02", b"\1\1", b"", [255, 2]),
        (8, 2, b"\1\1\1\2\2\2", b"\0\1\0\1\0\1", b"", [255, 2]),
        (16, 2, b"\1\1" * 3 + b"\2\2" * 3, b"\1\1" * 3, b"", [255, 2]),
        (8, 3, b"\0\1", b"\0", b"\3\3\3\4\4\4", [255, 4]),  # one entry of the palette
        (8, 3, b"\0\1", b"\x33\xff", b"\0\0\0\4\4\4", [204, 4]),  # an alpha for each entry
    ],
)
def test_transparent_colours_lie_over_white(
    tmp_path, depth, colour_type, row, transparent, palette, want
):
    path = tmp_path / "x.png"
    path.write_bytes(_png(depth, colour_type, row, transparent, 2, palette))
    assert np.asarray(load_image(path).convert("RGB"))[0].tolist() == [[v] * 3 for v in want]
    with Image.open(path) as header:
        assert has_transparent_pixels(header)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [_drawing(0), Image.new("RGBA", (4, 4), "red")]
    for form in ("gif", "png"):
        frames[0].save(tmp_path / f"x.{form}", save_all=True, append_images=frames[1:])
        grey = np.asarray(load_image(tmp_path / f"x.{form}").convert("L"))
        assert grey.tolist() == [[0, 0, 255, 255]] * 4, form


@pytest.mark.parametrize(
    "mode", ["L", "P", "RGB", "RGBA", "LA", "CMYK", "1", "P and a colour that no pixel has"]
)
def test_opaque_upright_pictures_keep_their_bytes(tmp_path, mode):
    """Rows that were made before pictures were turned and laid over white can be told to be equal."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    picture = Image.fromarray(noise)
    if mode.startswith("P"):
        picture = picture.quantize(16)
    elif mode != "RGB":
        picture = picture.convert(mode)
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    picture.save(path, **({"transparency": 200} if mode.startswith("P and") else {}))
    with Image.open(path) as plain:
        assert not has_transparent_pixels(plain)
        plain.load()
        before = plain.convert("L") if mode == "1" else plain.copy()
    before.info.pop("transparency", None)
    viewed = load_image(path)
    assert (viewed.mode, viewed.tobytes()) == (before.mode, before.tobytes())
    transform = ImageTransform(8, 8, (0, 0, 0), (1, 1, 1))
    np.testing.assert_array_equal(transform(viewed), transform(before))


def test_pixels_have_a_limit_of_our_own(tmp_path, monkeypatch):
    Image.new("1", (14_000, 14_000)).save(tmp_path / "map.png")  # Pillow refuses 179 million pixels
    assert load_image(tmp_path / "map.png").size == (14_000, 14_000)
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
    monkeypatch.setenv("CUSA_MAX_PIXELS", "5999")
    Image.new("RGB", (100, 60)).save(tmp_path / "x.png")
    with pytest.raises(
        ImageError, match=r"100 x 60 pixels, more than 5,999.*CUSA_MAX_PIXELS=6000"
    ) as caught:
        load_image(tmp_path / "x.png")
    assert caught.value.path == tmp_path / "x.png"
    monkeypatch.setenv("CUSA_MAX_PIXELS", "6000")
    assert load_image(tmp_path / "x.png").size == (100, 60)
    for nonsense in ("many", "0", "-1", "1e9", "9" * 5000):
        monkeypatch.setenv("CUSA_MAX_PIXELS", nonsense)
        with pytest.raises(SettingError) as wrong:
            load_image(tmp_path / "x.png")
        assert wrong.value.name == "CUSA_MAX_PIXELS"
    monkeypatch.delenv("CUSA_MAX_PIXELS")
    assert max_pixels() == 200_000_000


def test_huge_jpegs_are_decoded_at_a_reduced_size(tmp_path):
    Image.new("L", (9_600, 9_800)).save(tmp_path / "scan.jpg")
    assert load_image(tmp_path / "scan.jpg").size == (4_800, 4_900)
    Image.new("L", (9_000, 9_000)).save(tmp_path / "less.jpg")
    assert load_image(tmp_path / "less.jpg").size == (9_000, 9_000)


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1)])
def test_pictures_that_are_too_narrow_to_resize_are_refused(size):
    transform = ImageTransform(224, 224, (0, 0, 0), (1, 1, 1))
    with pytest.raises(ImageError, match="too narrow"):
        transform(Image.new("L", size))
