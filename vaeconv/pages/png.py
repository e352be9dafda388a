"""Images as PNG files, as large as people can see them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

_SIDE = 256  # pixels that a small image is enlarged to, at most


def encode_png(rgb: Pixels) -> bytes:
    """Encode ``[h, w, 3]``; the same pixels give the same bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


def enlargement(height: int, width: int) -> int:
    """Tell by which whole factor a small image is shown larger."""
    return max(1, _SIDE // max(height, width))
