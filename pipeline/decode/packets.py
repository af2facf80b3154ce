"""Packets: which frames a file has and when, without decoding any."""

from __future__ import annotations

import math
from contextlib import closing
from typing import NamedTuple

import av
import numpy as np

from pipeline.decode.container import OpenVideo
from pipeline.decode.decoder import DecodeLimits, DecodeSettings, Media
from pipeline.decode.errors import TooLarge, UnsupportedCodec
from pipeline.decode.h264 import has_idr


class Packets(NamedTuple):
    """Of each packet, by pts: int64 pts (n,), and whether it is displayed, bool (n,).

    `refreshes`: a key packet of H.264 holds no picture that is coded alone (IDR); the pictures from
    there on are whole only after some time. `stream_index` is the stream's place in the file.
    """

    pts: np.ndarray
    displayed: np.ndarray
    refreshes: bool
    stream_index: int


def read_packets(media: Media, limits: DecodeLimits, settings: DecodeSettings) -> Packets:
    """The packets of a file's video.

    Raises UnsupportedCodec where pts are missing, or a clock that begins anew repeats them.
    """
    pts: list[int] = []
    displayed: list[bool] = []
    refreshes = False
    last_dts: float = -math.inf
    with closing(OpenVideo(media, limits, settings)) as video:
        for packet in video.packets():
            if packet.pts is None:
                raise UnsupportedCodec(f"{video.name}: a packet has no pts")
            if packet.dts is not None:
                if packet.dts < last_dts:
                    raise UnsupportedCodec(f"{video.name}: its clock begins anew")
                last_dts = packet.dts
            if len(pts) == limits.max_frames:
                raise TooLarge(f"{video.name}: more than max_frames ({limits.max_frames})")
            pts.append(packet.pts)
            displayed.append(not packet.is_discard)
            refreshes |= _refreshes(packet)
        ticks = max(pts) - min(pts) if pts else 0
        if ticks * video.time_base[0] > limits.max_seconds * video.time_base[1]:
            raise TooLarge(f"{video.name}: over max_seconds ({limits.max_seconds:g})")
        order = np.argsort(pts, kind="stable")
        return Packets(
            pts=np.array(pts, np.int64)[order],
            displayed=np.array(displayed, bool)[order],
            refreshes=refreshes,
            stream_index=video.stream_index,
        )


def _refreshes(packet: av.Packet) -> bool:
    context = packet.stream.codec_context
    if not packet.is_keyframe or context.codec.canonical_name != "h264":
        return False
    return not has_idr(bytes(packet), bytes(context.extradata or b""))
