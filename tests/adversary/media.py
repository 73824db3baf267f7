"""Pictures and sounds, made and then damaged, or made so that a small file asks for much."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import soundfile
from PIL import Image, features

from regard.data.pictures import KINDS, read_frames
from regard.data.sound import sound_blocks

MOST = 200  # blocks of a sound that an attempt reads


@lru_cache(maxsize=1)
def sound_files() -> dict[str, bytes]:
    """A short recording in each kind of file."""
    samples = (np.sin(np.arange(8000) / 9) * 0.3).astype(np.float32)
    found = {}
    for kind, sub in (
        ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "MS_ADPCM"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"),
        ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AU", "ULAW"), ("NIST", "PCM_16"),
        ("CAF", "PCM_16"),
    ):  # fmt: skip
        file = io.BytesIO()
        soundfile.write(file, samples, 16_000, format=kind, subtype=sub)
        found[f"{kind} {sub}"] = file.getvalue()
    return found


@lru_cache(maxsize=1)
def picture_files() -> dict[str, bytes]:
    """A small picture in each kind of file, moving where the kind can be."""
    dice = np.random.default_rng(0)
    frames = [Image.fromarray(dice.integers(0, 255, (40, 50, 3), np.uint8)) for _ in range(3)]
    found = {}
    for kind in KINDS:
        if kind == "MPO" or (kind == "AVIF" and not features.check("avif")):
            continue
        moving = kind in ("PNG", "GIF", "WEBP", "TIFF")
        for name, several in ((kind, False), *(((f"moving {kind}", True),) if moving else ())):
            file = io.BytesIO()
            frames[0].save(file, kind, **({"save_all": True, "append_images": frames[1:]} if several else {}))
            found[name] = file.getvalue()
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        file = io.BytesIO()
        Image.new(mode, (31, 23)).save(file, "PNG")
        found[f"PNG {mode}"] = file.getvalue()
    for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        file = io.BytesIO()
        frames[0].save(file, "TIFF", compression=kind)
        found[f"TIFF {kind}"] = file.getvalue()
    return found


def damaged(raw: bytes, dice: random.Random) -> tuple[bytes, str]:
    """Bytes with a few changes, most of them where headers stand; and what was done."""
    changed = bytearray(raw)
    done = dice.choice(["bytes", "bytes", "sizes", "cut", "joined", "extended"])
    if done == "bytes":
        for _ in range(dice.choice([1, 2, 8, 60])):
            changed[dice.randrange(min(len(raw), dice.choice([64, 300, len(raw)])))] = dice.choice(
                [0, 255, 127, 128, 13]
            )
    elif done == "sizes":
        at = dice.randrange(min(len(raw) - 4, 120))
        number = dice.choice([0, 1, 2**15, 2**16 - 1, 50_000, 2**20, 2**31 - 1, 2**31, 2**32 - 1])
        changed[at : at + 4] = number.to_bytes(4, dice.choice(["little", "big"]))
    elif done == "cut":
        changed = changed[: dice.randrange(len(raw))]
    elif done == "joined":
        changed = changed[: len(raw) // 2] + changed[dice.randrange(len(raw)) :]
    else:
        changed += changed[: len(raw) // 2] + bytes(10**5)
    return bytes(changed), done


def bombs() -> dict[str, Callable[[], object]]:
    """Small files that ask for much: sizes of a header that are not believed, or are refused."""
    found: dict[str, Callable[[], object]] = {}
    for width, height in ((10_000, 10_000), (1, 49_999), (49_999, 1), (2**31 - 1, 2**31 - 1), (30_000, 3_000)):
        found[f"png {width}×{height}"] = lambda w=width, h=height: read_frames(png(w, h))
        found[f"gif {width}×{height}"] = lambda w=width, h=height: read_frames(
            b"GIF89a"
            + struct.pack("<HHBBB", min(w, 65535), min(h, 65535), 0, 0, 0)
            + b"\x2c"
            + struct.pack("<HHHHB", 0, 0, min(w, 65535), min(h, 65535), 0)
            + b"\x02\x02\x44\x01\x00\x3b"
        )
        found[f"ppm {width}×{height}"] = lambda w=width, h=height: read_frames(b"P6 %d %d 255 " % (w, h) + bytes(1000))
    found["gif of 20,000 frames"] = lambda: read_frames(
        b"GIF89a"
        + struct.pack("<HHBBB", 300, 300, 0x80, 0, 0)
        + bytes(6)
        + (b"\x2c" + struct.pack("<HHHHB", 0, 0, 300, 300, 0) + b"\x02\x02\x44\x01\x00") * 20_000
        + b"\x3b"
    )
    for rate, channels in ((2**31 - 1, 1), (16_000, 1024), (768_000, 64), (0, 1), (1, 1), (16_000, 0)):
        found[f"wav of {rate} Hz, {channels} channels"] = lambda r=rate, c=channels: hear(wav(r, c))
    for name in ("x.png", "x.jpg"):
        found[f"EPS as {name}"] = lambda name=name: read_frames(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n" + b"showpage\n" * 9, name
        )
    return found


@lru_cache(maxsize=1)
def png(width: int, height: int) -> bytes:
    """A PNG of one color with as many rows as fit into little."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = bytes(1 + min(width, 60_000) * 4)
    data = zlib.compress(row * min(height, max(1, 5 * 10**7 // len(row))), 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", data) + part(b"IEND", b"")


def wav(rate: int, channels: int) -> bytes:
    """A WAV file whose header claims four gigabytes."""
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 % 2**32, channels * 2 % 2**16, 16)
    return b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WAVEfmt " + struct.pack("<I", 16) + form + (
        b"data" + struct.pack("<I", 2**32 - 16) + bytes(2 * 1000 * max(1, channels))
    )  # fmt: skip


def hear(raw: bytes) -> None:
    """Read a sound block by block."""
    for _, _ in zip(range(MOST), sound_blocks(raw, "x.wav"), strict=False):
        pass
