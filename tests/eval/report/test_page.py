import base64
import io

from PIL import Image

from cusa.eval.report.page import thumbnail


def test_thumbnails(tmp_path):
    Image.effect_noise((300, 100), 50).save(tmp_path / "grey.png")
    uri = thumbnail(tmp_path / "grey.png")
    assert uri.startswith("data:image/jpeg;base64,")
    small = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert small.size == (176, 59)
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    for bad in ("text.jpg", "empty.jpg", "none.jpg", ".", "a\0b"):
        assert thumbnail(tmp_path / bad) is None
