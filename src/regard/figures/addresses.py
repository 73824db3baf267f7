"""Pictures and sounds as data: addresses, which hold what they name: a page that has them loads nothing."""

import base64
import io
import wave
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def picture_address(picture: Image.Image) -> str:
    """A picture as PNG."""
    held = io.BytesIO()
    picture.convert("RGB").save(held, "PNG")
    return _address("image/png", held.getvalue())


def sound_address(samples: NDArray[Any], rate: int) -> str:
    """Samples between -1 and 1, at `rate` a second, as WAV of 16 bits."""
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return _address("audio/wav", held.getvalue())


def spectrogram_address(features: NDArray[Any]) -> str:
    """Log-mel features `[bands, frames]` as a gray picture, low bands below."""
    low, high = float(features.min()), float(features.max())
    grey = (features[::-1] - low) / max(1e-6, high - low) * 255
    return picture_address(Image.fromarray(grey.astype(np.uint8)))


def _address(kind: str, raw: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(raw).decode('ascii')}"
