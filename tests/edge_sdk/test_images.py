import io

import numpy as np
import pytest
from PIL import Image

from edge_sdk.errors import DataError
from edge_sdk.images import decode_image, find_images, fit_image


def test_an_image_of_the_right_size_is_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    np.testing.assert_array_equal(fit_image(Image.fromarray(pixels), 4, 6), pixels)


def test_a_wide_image_is_cropped_at_its_centre():
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 200
    fitted = fit_image(Image.fromarray(pixels), 32, 32)
    assert fitted.shape == (32, 32, 3)
    assert fitted.min() == 200


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_every_mode_becomes_rgb(mode, format_):
    buffer = io.BytesIO()
    try:
        Image.new(mode, (5, 4)).save(buffer, format_)
    except OSError:
        pytest.skip(f"{format_} cannot hold {mode}")
    assert decode_image(io.BytesIO(buffer.getvalue())).mode == "RGB"


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_a_pixel_are_scaled_not_clipped(tmp_path, mode):
    Image.fromarray(np.full((4, 4), 32896, np.uint16)).convert(mode).save(tmp_path / "deep.tiff")
    assert np.unique(np.asarray(decode_image(tmp_path / "deep.tiff"))).tolist() == [128]


def test_a_floating_point_image_is_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match="floating-point"):
        decode_image(tmp_path / "float.tiff")


def test_the_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert decode_image(tmp_path / "turned.jpg").size == (4, 8)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(20), b"BM" + bytes(60)]
)
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"photo\.jpg: not an image"):
        decode_image(path)


def test_a_truncated_image_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(DataError, match="truncated"):
        decode_image(path)


def test_an_image_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (64, 64)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match="bomb"):
        decode_image(tmp_path / "bomb.png")


def test_folders_give_their_images_sorted_with_classes(tmp_path):
    for name in ("b/2.png", "a/1.jpg", "top.png", "a/deep/3.png", "a/notes.txt", "a/._1.jpg", "paper.pdf"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = find_images([tmp_path])
    assert [(str(i.path.relative_to(tmp_path)), i.label) for i in found] == [
        ("a/1.jpg", "a"), ("a/deep/3.png", "a"), ("b/2.png", "b"), ("top.png", None),
    ]  # fmt: skip
    assert find_images([tmp_path / "a" / "notes.txt"])[0].label is None


def test_nothing_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        find_images([tmp_path / "x"])
    with pytest.raises(DataError, match="no image in this folder"):
        find_images([tmp_path])


def test_no_other_program_is_started_for_a_file_that_says_it_is_a_photograph(tmp_path):
    """Pillow takes PostScript by its content, and has Ghostscript run it."""
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="cannot identify image file"):
        decode_image(tmp_path / "a.jpg")
