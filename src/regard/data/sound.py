"""Sound: reading recordings of any kind, and their log-mel spectrograms."""

import io
from collections.abc import Iterator
from functools import lru_cache
from math import ceil, inf, log10
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from jaxtyping import Float
from torch import Tensor

from regard.errors import ConfigError, DataError
from regard.storage import check_possible

RATE = 16_000  # samples a second of a model's input
WINDOW, HOP = 400, 160  # samples of a window (25 ms), and between two (10 ms)
TRANSFORM = 512  # samples of a Fourier transform, the window centered in them
BLOCK = 30  # seconds read at a time
FLOOR = 1e-5  # added to a band's energy before the logarithm
# kinds of files that are read; libsndfile knows more
KINDS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF", "AU", "NIST", "W64", "RF64", "CAF")
FASTEST = 768_000  # samples a second
CHANNELS = 64
VALUES = 2**23  # samples of all channels read at a time, where 30 seconds have more
DAY = 24 * 3600  # seconds of a recording at most: a small file may claim years of silence
SLOWEST = 1000  # samples a second; a header with a lower rate is damaged, and would give hours of sound
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")
LOUDEST = 1e6  # largest absolute sample; full scale is 1
Samples = Float[Tensor, "samples"]


class TooLong(DataError):
    """A recording that is longer than the limit."""


def read_sound(source: Path | bytes, name: str = "", longest: float = 3600.0) -> Samples:
    """A whole recording as 16 kHz mono, -1 … 1.

    Args:
        source: a file, or its bytes.
        name: for messages.
        longest: seconds, an hour by default; a longer one is refused before it is all in memory.

    Raises:
        DataError: as `sound_blocks`; it is too long.
    """
    name = name or ("recording" if isinstance(source, bytes) else str(source))
    blocks, read = [torch.zeros(0)], 0
    for block in sound_blocks(source, name):
        blocks.append(block)
        read += len(block)
        if read > longest * RATE:
            raise TooLong(f"{name}: expected at most {longest:g} seconds; got more: cut it into shorter ones")
    return torch.cat(blocks)


def sound_blocks(source: Path | bytes, name: str = "") -> Iterator[Samples]:
    """A recording in blocks of at most 30 seconds, as 16 kHz mono; only one block is in memory.

    Raises:
        DataError: the file is missing, damaged or of no kind that is read (WAV, FLAC, Ogg, MP3, AIFF, AU, NIST, CAF);
            below 1,000 or above 768,000 samples a second; more than 64 channels; longer than a day.
    """
    name = name or ("recording" if isinstance(source, bytes) else str(source))
    try:
        if isinstance(source, Path):
            check_possible(source)
        if isinstance(source, Path) and not source.is_file():
            what = "a folder" if source.is_dir() else "a pipe or a device" if source.exists() else ""
            raise DataError(f"{name}: {what}, not a recording" if what else f"{name}: no such file")
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            if file.samplerate < SLOWEST:
                raise DataError(f"{name}: expected at least {SLOWEST:,} samples a second; got {file.samplerate:,}")
            if file.format not in KINDS:
                raise DataError(f"{name}: no recording that can be read: {file.format} files are not read: convert it")
            if file.samplerate > FASTEST or file.channels > CHANNELS:
                raise DataError(
                    f"{name}: expected at most {FASTEST:,} samples a second and {CHANNELS} channels; got "
                    f"{file.samplerate:,} and {file.channels:,}"
                )
            read = 0
            resampler = soxr.ResampleStream(file.samplerate, RATE, 1, dtype="float32")
            size = min(BLOCK * file.samplerate, VALUES // file.channels)
            while True:
                block = file.read(size, dtype="float32", always_2d=True)
                last = len(block) < size
                read += len(block)
                if read > DAY * file.samplerate:
                    raise TooLong(f"{name}: expected at most {DAY // 3600} hours; got more: cut it into shorter ones")
                mono = block.mean(1)
                if not (np.abs(mono) <= LOUDEST).all():  # False for NaN too
                    raise DataError(f"{name}: a sample is infinite or NaN, or far beyond -1 … 1")
                yield torch.from_numpy(np.array(resampler.resample_chunk(mono, last=last), dtype=np.float32)).flatten()
                if last:
                    return
    except DataError:
        raise
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, RuntimeError) as error:
        hint = ": a picture? `regard caption` sees" if name.lower().endswith(PICTURES) else ""
        raise DataError(f"{name}: no recording that can be read: {_reason(error)}{hint}") from error


def seconds(path: Path) -> float:
    """The duration of a recording.

    Raises:
        DataError: it cannot be read.
    """
    try:
        info: Any = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise DataError(f"{path}: no recording that can be read: {_reason(error)}") from error
    return float(info.frames / info.samplerate)


def frames(samples: int) -> int:
    """Number of spectrogram frames of `samples` samples."""
    return 1 + max(0, samples - TRANSFORM) // HOP


def log_mel(samples: Samples, bands: int = 80, tract: float = 1.0) -> Float[Tensor, "bands frames"]:
    """log10 of the energy in mel bands, a frame every 10 ms, less the recording's mean in each band.

    The mel scale is m = 2595 · log10(1 + f / 700) (O'Shaughnessy 1987), the bands triangles between 20 Hz and 8 kHz.

    Args:
        samples: at 16 kHz.
        bands: how many.
        tract: factor of all frequencies, vocal tract length perturbation (Jaitly and Hinton 2013).

    Raises:
        ConfigError: no band or too many, or a tract that is not from 0.5 to 2.
    """
    if not 1 <= bands <= 10_000 or not 0.5 <= tract <= 2:
        raise ConfigError(f"expected 1 to 10,000 bands and a tract from 0.5 to 2; got {bands} bands, tract {tract}")
    if len(samples) < TRANSFORM:
        samples = torch.nn.functional.pad(samples, (0, TRANSFORM - len(samples)))
    spectrum = torch.stft(
        samples, TRANSFORM, HOP, WINDOW, torch.hann_window(WINDOW), center=False, return_complex=True
    )  # [257, frames]
    energy = _filters(bands, tract) @ spectrum.abs().square()
    levels = (energy + FLOOR).log10()
    return levels - levels.mean(1, keepdim=True)


@lru_cache(maxsize=32)
def _filters(bands: int, tract: float = 1.0) -> Float[Tensor, "bands 257"]:
    """Triangles of height 1 over the frequencies of a 512-point transform, evenly spaced in mel.

    With a tract a, places below 4800 · min(a, 1) / a Hz stand at f · a, those above on a line to 8 kHz.
    """
    edges = torch.linspace(_mel(20.0), _mel(RATE / 2), bands + 2, dtype=torch.float64)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    positions = torch.linspace(0, RATE / 2, 257, dtype=torch.float64)
    bend, top = 4800 * min(tract, 1) / tract, RATE / 2
    rest = top - (top - bend * tract) / (top - bend) * (top - positions)
    positions = torch.where(positions <= bend, positions * tract, rest)
    up = (positions - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    down = (hertz[2:, None] - positions) / (hertz[2:] - hertz[1:-1])[:, None]
    return torch.minimum(up, down).clamp(min=0).float()


def _mel(hertz: float) -> float:
    return 2595 * log10(1 + hertz / 700)


def segments(samples: Samples, longest: float = 15.0) -> list[tuple[int, int]]:
    """First and last sample of segments of at most `longest` seconds, cut at the quietest moments.

    Raises:
        ConfigError: `longest` is below 0.2 seconds: the quietest tenth of a second is looked for in its later half.
    """
    if not 0.2 <= longest < inf:
        raise ConfigError(f"longest must be a number of seconds of at least 0.2; got {longest}")
    most = int(longest * RATE)
    cuts, start = [], 0
    while len(samples) - start > most:
        # the quietest tenth of a second in the segment's later half
        window = samples[start + most // 2 : start + most].square()
        energy = window[: len(window) // 1600 * 1600].reshape(-1, 1600).mean(1)
        cut = start + most // 2 + int(energy.argmin()) * 1600 + 800
        cuts.append((start, cut))
        start = cut
    return [*cuts, (start, len(samples))]


def faster(samples: Samples, factor: float) -> Float[Tensor, "_"]:
    """The recording at another speed and pitch (Ko et al. 2015).

    Raises:
        ConfigError: the factor is not from 0.01 to 100.
    """
    if not 0.01 <= factor <= 100:
        raise ConfigError(f"factor must be a number from 0.01 to 100; got {factor}")
    if factor == 1.0:
        return samples
    return torch.from_numpy(soxr.resample(samples.numpy(), RATE, ceil(RATE / factor)).astype(np.float32))


def _reason(error: BaseException) -> str:
    if isinstance(error, soundfile.LibsndfileError):  # whose text names the file
        return str(error.error_string)
    lines = str(error).strip().splitlines()
    return lines[-1].removeprefix("Error : ") if lines else type(error).__name__
