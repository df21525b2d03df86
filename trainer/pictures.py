"""Images as a picture that a page can hold."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_MOST_PIXELS = 1024


def sheet(image_NCHW: Tensor, across: int) -> str:
    """Images with values in 0..1, row by row, as the data URI of one PNG; no wider than 1,024 pixels.

    Of other than 1, 3 or 4 channels the first is shown, in grey.
    """
    from PIL import Image

    if image_NCHW.shape[1] not in _MODES:
        image_NCHW = image_NCHW[:, :1]
    # beyond this a page would be slow to load: fewer pixels of each
    step = -(-image_NCHW.shape[3] * across // _MOST_PIXELS)
    pixels = (image_NCHW.nan_to_num().clamp(0, 1) * 255).round().numpy().astype(np.uint8)[:, :, ::step, ::step]
    count, channels, height, width = pixels.shape
    down = -(-count // across)
    whole = np.full((down * across, channels, height + 1, width + 1), 255, np.uint8)  # a white line between them
    whole[:count, :, :height, :width] = pixels
    whole = whole.reshape(down, across, channels, height + 1, width + 1).transpose(0, 3, 1, 4, 2)
    flat = whole.reshape(down * (height + 1), across * (width + 1), channels)
    file = io.BytesIO()
    mode = _MODES[channels]
    Image.fromarray(flat[..., 0] if mode == "L" else flat, mode).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
