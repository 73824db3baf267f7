"""Pictures that people bring: of every kind, broken, huge."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regard.data import pictures
from regard.data.pictures import as_tensor, given_picture, read_drawing, read_frames, read_picture, square
from regard.data.sound import read_sound
from regard.errors import DataError


def test_kinds_of_pictures(tmp_path: Path) -> None:
    """CMYK, 16 bits, a palette, gray with transparency, 1 bit: each becomes the colors it shows."""
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


def test_a_picture_of_pillow_s_is_read_as_its_file() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    clear = np.full((4, 6), 30000, np.uint16)
    clear[0, 0], clear[1, 1] = 55746, 65535
    colors = np.random.default_rng(0).integers(0, 255, (4, 6, 4), dtype=np.uint8)
    for picture, how in (
        (Image.fromarray(colors[..., :3]), {"exif": exif}), (Image.fromarray(colors), {}),
        (Image.fromarray(clear), {"transparency": 55746}), (Image.fromarray(clear), {}),
        (Image.fromarray(colors[..., :3]).quantize(4), {"transparency": 1}),
    ):  # fmt: skip
        file = io.BytesIO()
        picture.save(file, "PNG", **how)
        opened = Image.open(io.BytesIO(file.getvalue()))
        mode = opened.mode
        assert given_picture(opened).tobytes() == read_picture(file.getvalue()).tobytes()
        assert opened.mode == mode
    deep = io.BytesIO()
    Image.fromarray(clear).save(deep, "PNG", transparency=55746)
    assert read_picture(deep.getvalue()).getpixel((0, 0)) == (255, 255, 255)
    assert read_picture(deep.getvalue()).getpixel((1, 0)) == (116, 116, 116)
    for broken in (Image.new("RGB", (0, 5)), Image.open(io.BytesIO(deep.getvalue()[:60])), Image.new("La", (5, 5))):
        with pytest.raises(DataError, match=r"^picture: "):
            given_picture(broken)


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


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "I;16"])
def test_a_large_picture_is_made_smaller_band_by_band_as_if_whole(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bands of a few rows, turned by its camera, against the whole picture's own means."""
    monkeypatch.setattr(pictures, "DRAFT", 20)
    monkeypatch.setattr(pictures, "BAND", 400)
    rows, columns = np.mgrid[:96, :128]
    points = np.stack([rows * 2, columns, (rows + columns) % 200], -1).astype(np.uint8)
    whole = Image.fromarray(points)
    if mode == "RGBA":
        whole.putalpha(Image.fromarray((columns % 256).astype(np.uint8)))
    elif mode == "I;16":
        whole = Image.fromarray((rows * 600).astype(np.uint16))
    else:
        whole = whole.convert(mode)
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    path = tmp_path / "cat.png"
    whole.save(path, exif=exif, **({"transparency": 3} if mode == "P" else {}))
    got = np.asarray(read_picture(path)).astype(float)
    assert got.shape == (32, 24, 3)  # a quarter of 128 and of 96, turned
    monkeypatch.setattr(pictures, "DRAFT", 1000)
    want = np.asarray(read_picture(path).reduce(4)).astype(float)
    assert np.abs(got - want).max() <= 2


def test_a_long_picture_is_made_smaller_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "WHOLE", 1000)
    Image.new("RGB", (300, 10)).save(tmp_path / "long.png")
    assert read_picture(tmp_path / "long.png").size == (150, 5)


def test_a_recording_is_sent_where_it_is_heard(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"a recording\? `regard transcribe` hears"):
        read_picture(tmp_path / "a.wav")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a picture\? `regard caption` sees"):
        read_sound(tmp_path / "a.png")


def test_a_drawing_is_of_a_kind_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "1F400.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # Pillow would run Ghostscript
    with pytest.raises(DataError, match="of no kind that is known here"):
        read_drawing(path)
    Image.new("RGBA", (2, 2), (1, 2, 3, 4)).save(path)
    assert read_drawing(path).getpixel((0, 0)) == (1, 2, 3, 4)
