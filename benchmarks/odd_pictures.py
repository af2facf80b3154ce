"""Pictures that are not plain, as they lie in their files and as the decoder shows them.

python benchmarks/odd_pictures.py        writes docs/odd_pictures.png from $TESSERA_VIDEOS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.decode import open_decoder

VIDEOS = Path(os.environ.get("TESSERA_VIDEOS", Path(__file__).parents[2] / "shared" / "videos"))
OUT = Path(__file__).parents[1] / "docs" / "odd_pictures.png"
HEIGHT = 200
# file, seconds, what is odd
CASES = (
    ("portrait_4k60.mp4", 0.1, "turned by -90"),
    ("carphone_qcif.mp4", 1.0, "pixels 12:11"),
)


def main() -> int:
    missing = [name for name, _, _ in CASES if not (VIDEOS / name).exists()]
    if missing:
        print(f"no {missing[0]} at {VIDEOS} (TESSERA_VIDEOS names another folder)")
        return 1
    pairs = [_pair(name, seconds) for name, seconds, _ in CASES]
    width = sum(max(one.shape[1], two.shape[1]) + 8 for one, two in pairs)
    sheet = Image.new("RGB", (width, 2 * (HEIGHT + 22)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    left = 0
    for (name, _, what), pair in zip(CASES, pairs):
        for row, (pixels, how) in enumerate(zip(pair, ("as it lies", "as it is shown"))):
            top = row * (HEIGHT + 22)
            sheet.paste(Image.fromarray(pixels), (left, top + 18))
            draw.text((left + 2, top + 3), f"{what}, {how}", fill="black", font=font)
        left += max(each.shape[1] for each in pair) + 8
        print(f"{name}: {what}")
    sheet.save(OUT, optimize=True)
    print(OUT)
    return 0


def _pair(name: str, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """The stored frame by plain PyAV, and the decoder's, uint8 (200, w, 3)."""
    path = VIDEOS / name
    decoder = open_decoder("pyav")
    probe = decoder.probe(path)
    width = round(HEIGHT * probe.width / probe.height)
    shown = decoder.sample(path, [seconds], height=HEIGHT, width=width)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        starts = [
            frame.pts * stream.time_base - frames[0].pts * stream.time_base for frame in frames
        ]
        frame = frames[max(k for k, start in enumerate(starts) if start <= seconds)]
        stored = Image.fromarray(frame.to_ndarray(format="rgb24"))
    size = (round(HEIGHT * stored.width / stored.height), HEIGHT)
    return np.asarray(stored.resize(size, Image.Resampling.NEAREST)), shown.pixels[0]


if __name__ == "__main__":
    sys.exit(main())
