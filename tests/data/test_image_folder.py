"""Which files of a folder are images."""

import subprocess
import sys


def test_images_are_known_before_anything_else_has_loaded_pillows_formats():
    code = "from cusa.data.image_folder import is_image_name; print(is_image_name('a.JPG'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
