"""Pictures that people bring: of every kind, broken, huge."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regard.data.pictures import as_tensor, read_frames, read_picture, square
from regard.errors import DataError


def test_kinds_of_pictures(tmp_path: Path) -> None:
    """CMYK, 16 bits, a palette, grey with transparency, 1 bit: each becomes the colours it shows."""
    red = Image.new("RGB", (6, 5), (255, 0, 0))
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    red.quantize(4).save(tmp_path / "palette.png")
    Image.fromarray(np.full((5, 6), 32768, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (6, 5), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("1", (6, 5), 1).save(tmp_path / "bit.png")
    Image.new("LA", (6, 5), (0, 128)).save(tmp_path / "grey.png")
    wanted = {
        "cmyk.jpg": (255, 0, 0), "palette.png": (255, 0, 0), "deep.png": (127, 127, 127), "clear.png": (255, 255, 255),
        "bit.png": (255, 255, 255), "grey.png": (127, 127, 127),
    }  # fmt: skip
    for name, colour in wanted.items():
        picture = read_picture(tmp_path / name)
        assert picture.mode == "RGB"
        assert picture.size == (6, 5)
        assert np.abs(np.asarray(picture)[2, 3].astype(int) - colour).max() <= 3, name


def test_a_camera_s_turn_is_followed(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (4, 8)


def test_frames_of_a_moving_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), (60 * n, 0, 0)) for n in range(4)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=100)
    assert [np.asarray(f)[0, 0, 0] // 50 for f in read_frames(tmp_path / "moving.gif")] == [0, 1, 2, 3]
    assert len(read_frames(tmp_path / "moving.gif", most=2)) == 2
    assert read_picture(tmp_path / "moving.gif").size == (4, 4)


@pytest.mark.parametrize("kind", ["text", "cut", "empty"])
def test_what_is_no_picture(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cat.png"
    if kind == "text":
        path.write_text("a cat")
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=r"cat.png: no picture that can be read"):
        read_picture(path)


def test_missing_folder_and_huge(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(DataError, match="a folder, not a picture"):
        read_picture(tmp_path)
    huge = Image.new("1", (20_000, 20_000))
    huge.save(tmp_path / "huge.png")
    with pytest.raises(DataError, match=r"more than 100 million points is too large"):
        read_picture(tmp_path / "huge.png")


def test_square_keeps_the_whole_picture_in_the_middle() -> None:
    made = np.asarray(square(Image.new("RGB", (40, 20), (0, 0, 255)), 16))
    assert made.shape == (16, 16, 3)
    assert (made[0] == 255).all()
    assert (made[8, 0] == (0, 0, 255)).all()
    assert as_tensor(Image.fromarray(made)).shape == (3, 16, 16)
