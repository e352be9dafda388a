"""Draw what ``vaeconv compare`` shows of the trained fixtures, for the README: ``make picture``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from vaeconv import CompareOptions, ModelSpec, compare

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures"


def main(picture: str) -> None:
    """Write the contact sheet of four photographs, as JPEG because a README is loaded often."""
    base = ModelSpec(path=str(FIXTURES / "trained.ckpt"), name="base", ema=True)
    tuned = ModelSpec(path=str(FIXTURES / "finetuned.safetensors"), name="fine-tuned")
    with tempfile.TemporaryDirectory() as folder:
        options = CompareOptions(limit=4, sheet=2)
        compare([base, tuned], FIXTURES / "photos" / "held-out", folder, options)
        with Image.open(Path(folder, "sheet.png")) as sheet:
            sheet.convert("RGB").save(picture, quality=88)
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
