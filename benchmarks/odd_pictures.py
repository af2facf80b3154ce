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
from pipeline.decode.decoder import Crop

VIDEOS = Path(os.environ.get("TESSERA_VIDEOS", Path(__file__).parents[2] / "shared" / "videos"))
OUT = Path(__file__).parents[1] / "docs" / "odd_pictures.png"
HEIGHT = 200
# file, seconds, what is odd, the crop that is looked at (of the displayed picture)
CASES: tuple[tuple[str, float, str, Crop | None], ...] = (
    ("interlaced_480i.mp4", 0.3, "two fields", (240, 120, 240, 160)),
    ("portrait_4k60.mp4", 0.1, "turned by -90", None),
    ("carphone_qcif.mp4", 1.0, "pixels 12:11", None),
)


def main() -> int:
    missing = [name for name, *_ in CASES if not (VIDEOS / name).exists()]
    if missing:
        print(f"no {missing[0]} at {VIDEOS} (TESSERA_VIDEOS names another folder)")
        return 1
    pairs = [_pair(*case) for case in CASES]
    width = sum(max(one.shape[1], two.shape[1]) + 8 for one, two in pairs)
    sheet = Image.new("RGB", (width, 2 * (HEIGHT + 22)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    left = 0
    for (name, _, what, _), pair in zip(CASES, pairs):
        for row, (pixels, how) in enumerate(zip(pair, ("as it lies", "as it is shown"))):
            top = row * (HEIGHT + 22)
            sheet.paste(Image.fromarray(pixels), (left, top + 18))
            draw.text((left + 2, top + 3), f"{what}, {how}", fill="black", font=font)
        left += max(each.shape[1] for each in pair) + 8
        print(f"{name}: {what}")
    sheet.save(OUT, optimize=True)
    print(OUT)
    return 0


def _pair(name: str, seconds: float, what: str, crop: Crop | None) -> tuple[np.ndarray, np.ndarray]:
    """The stored frame by plain PyAV, and the decoder's, uint8 (200, w, 3)."""
    path = VIDEOS / name
    decoder = open_decoder("pyav")
    probe = decoder.probe(path)
    x, y, width, height = crop or (0, 0, probe.width, probe.height)
    shown = decoder.sample(
        path, [seconds], height=HEIGHT, width=round(HEIGHT * width / height), crop=crop
    )
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        starts = [
            frame.pts * stream.time_base - frames[0].pts * stream.time_base for frame in frames
        ]
        frame = frames[max(k for k, start in enumerate(starts) if start <= seconds)]
        stored = Image.fromarray(frame.to_ndarray(format="rgb24"))
    if crop is not None:  # the stored pixels are not square
        scale = probe.stored_width / probe.width
        stored = stored.crop((round(x * scale), y, round((x + width) * scale), y + height))
    size = (round(HEIGHT * stored.width / stored.height), HEIGHT)
    return np.asarray(stored.resize(size, Image.Resampling.NEAREST)), shown.pixels[0]


if __name__ == "__main__":
    sys.exit(main())
