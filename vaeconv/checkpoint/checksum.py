"""CRC-32 as zip files have it, at the speed of memory where isal is there."""

from __future__ import annotations

try:  # Intel's and Arm's library, whose result is that of zlib at many times its speed
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this platform
    from zlib import crc32

__all__ = ["crc32"]
