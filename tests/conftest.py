"""What all tests share: one torch thread, the data beside the project, small videos.

It is imported by the process that only distributes tests, too, so it loads no torch.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.corpus import steady_x264
from pipeline.sources import patience
from tests.ranks import Ranks
from tests.web import Web, serving

if TYPE_CHECKING:
    from tokenizer.model import Tokenizer

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Properties have no deadline: a machine that is busy with something else fails none."""
    if not config.getoption("numprocesses", None):  # the process that only distributes has no use
        from hypothesis import settings

        settings.register_profile("tessera", deadline=None)
        settings.load_profile("tessera")


def pytest_collection_finish() -> None:
    """Modules and tests stay: the collector need not look through them again and again."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # else bindings call what is left of them a leak


@pytest.fixture(autouse=True)
def _exact_small_numbers() -> Iterator[None]:
    """Training in this process rounds denormal numbers to zero; the next test must not."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


class _Here:
    """What an expendable process answers, from this one."""

    def __init__(self, memory_bytes: int, preload: Sequence[str]) -> None:
        pass

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def call(self, function: Callable[[], Any], *, seconds: float) -> Any:
        return function()


@pytest.fixture(scope="session", autouse=True)
def _decoded_here() -> Iterator[Any]:
    """Reports decode their pictures in the test's process: another costs more than the build."""
    from pipeline.inspection import originals

    expendable = originals.Expendable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(originals, "Expendable", _Here)
        yield expendable


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch, _decoded_here: Any) -> None:
    """Pictures are decoded in a process of their own, as they are outside of tests."""
    monkeypatch.setattr("pipeline.inspection.originals.Expendable", _decoded_here)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that takes `golden_folder` for every folder of the family in its marker."""
    if "golden_folder" in metafunc.fixturenames:
        from tests.golden import FAMILIES, golden_folders

        marker = metafunc.definition.get_closest_marker("golden")
        assert marker is not None
        (family,) = marker.args
        assert family in (*FAMILIES, "*"), f"{family} is not in tests.golden.FAMILIES"
        folders = golden_folders(family)
        names = [folder.name for folder in folders] or ["none"]
        metafunc.parametrize("golden_folder", folders or [family], ids=names, indirect=True)


@pytest.fixture
def golden_folder(request: pytest.FixtureRequest) -> Path:
    """A folder of the family that the test's marker names."""
    if not isinstance(request.param, Path):
        from tests.golden import absent

        absent(request.param)
    return request.param


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real, odd and broken videos; the test is skipped where it is absent."""
    folder = Path(os.environ.get("TESSERA_VIDEOS", ROOT.parent / "shared" / "videos"))
    if not (folder / "MANIFEST.csv").exists():
        pytest.skip(f"no videos at {folder} (TESSERA_VIDEOS names another folder)")
    return folder


@pytest.fixture(scope="session")
def torchcodec() -> None:
    """Skips the test where torchcodec, an optional extra, or FFmpeg's libraries are missing."""
    from pipeline.decode.torchcodec import load_torchcodec
    from tokenizer.settings import UserError

    try:
        load_torchcodec()
    except UserError as error:
        if os.environ.get("TESSERA_REQUIRE_TORCHCODEC"):
            raise
        pytest.skip(str(error))


def write_mp4(path: Path, frames: np.ndarray, fps: int = 24) -> Path:
    """An H.264 file of uint8 frames [t, h, w, 3]."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"crf": "14", **steady_x264()}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def moving_square(num_frames: int, seed: int, size: int = 64) -> np.ndarray:
    """A bright square that crosses a textured frame; another seed looks clearly different."""
    generator = np.random.default_rng(seed)
    background = generator.integers(20, 90, (1, 8, 8, 3), dtype=np.uint8)
    frames = np.repeat(background.repeat(size // 8, 1).repeat(size // 8, 2), num_frames, 0)
    color = generator.integers(120, 255, 3)
    x, y = generator.integers(2, size // 4, 2)
    for index in range(num_frames):
        at = min(x + index, size - 16)
        frames[index, y : y + 16, at : at + 16] = color
    return frames


@pytest.fixture(scope="session")
def write_film() -> Callable[[Path, int], Path]:
    """A function that writes an mp4 of 30 frames to a path, another one for another seed."""
    return lambda path, seed: write_mp4(path, moving_square(30, seed))


@pytest.fixture(scope="session")
def small_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six labelled mp4 files of three shots each, an image, and one broken file."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("videos")
    for number in range(6):
        shots = [moving_square(30, 10 * number + shot) for shot in range(3)]
        label = "even" if number % 2 == 0 else "odd"
        write_mp4(folder / label / f"{number}.mp4", np.concatenate(shots))
    Image.fromarray(moving_square(1, 99)[0]).save(folder / "even" / "still.png")
    (folder / "odd" / "broken.mp4").write_bytes(b"this is not a video" * 50)
    return folder


CLIP_SHAPES = {"t5_h16_w16": (5, 16, 16), "t1_h16_w16": (1, 16, 16)}


@pytest.fixture(scope="session")
def code_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random codes of a tiny tokenizer, 20 clips in each of two buckets, labels and captions."""
    return write_random_shards(tmp_path_factory.mktemp("codes") / "data", "codes")


@pytest.fixture(scope="session")
def pixel_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random frames, 20 clips in each of two buckets."""
    return write_random_shards(tmp_path_factory.mktemp("pixels") / "data", "frames")


@pytest.fixture(scope="session")
def grid_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random codes of a tokenizer with one scale: each latent frame is a grid of 2 x 2."""
    return write_random_shards(tmp_path_factory.mktemp("grid") / "data", "codes", scales=(2,))


def tiny_tokenizer(seed: int = 0, scales: tuple[int, ...] = (1, 2)) -> Tokenizer:
    """An untrained tokenizer of 16 codes; clips of 5 x 16 x 16 become 10 of them."""
    import torch

    from tokenizer.autoencoder_config import AutoencoderConfig
    from tokenizer.config import TokenizerConfig
    from tokenizer.model import Tokenizer
    from tokenizer.quantizer_config import QuantizerConfig

    autoencoder = AutoencoderConfig(
        patch=8, temporal_patch=4, spatial_stride=8, temporal_stride=4, channels=(8,)
    )
    quantizer = QuantizerConfig(codebook_size=16, codebook_dim=4, scales=scales, num_phi=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = Tokenizer(TokenizerConfig(autoencoder=autoencoder, quantizer=quantizer))
        tokenizer.quantizer.codebook.set_codes(torch.randn(16, 4))
    return tokenizer.eval()


def write_random_shards(
    root: Path,
    kind: str,
    num_clips: int = 20,
    scales: tuple[int, ...] = (1, 2),
    shapes: Mapping[str, tuple[int, int, int]] = CLIP_SHAPES,
    held_out: int = 0,
) -> Path:
    """A dataset as `tessera build` leaves it, of `kind` codes or frames; `shapes` by bucket.

    `held_out` more clips of each are split val.
    """
    from pipeline.shards.dataset_writer import DatasetWriter
    from pipeline.shards.format import Bucket, TokenSet
    from tokenizer.folder import save_tokenizer

    tokenizer = tiny_tokenizer(scales=scales)
    token_set = TokenSet(name="frames", kind="frames", dtype="uint8")
    if kind == "codes":
        save_tokenizer(tokenizer, root / "tokenizer")
        token_set = TokenSet(
            name="codes",
            kind="codes",
            dtype="uint16",
            codebook_size=16,
            tokenizer=tokenizer.fingerprint,
        )
    schedules = {name: tokenizer.schedule_for(*shape) for name, shape in shapes.items()}
    buckets = [
        Bucket(
            name=name,
            num_frames=num_frames,
            height=height,
            width=width,
            schedule=schedules[name] if kind == "codes" else None,
        )
        for name, (num_frames, height, width) in shapes.items()
    ]
    random = np.random.default_rng(0)
    with DatasetWriter(root, [token_set], buckets) as writer:
        for name, (num_frames, height, width) in shapes.items():
            for number in range(num_clips + held_out):
                array = random.integers(0, 16, schedules[name].num_tokens).astype(np.uint16)
                if kind == "frames":
                    array = random.integers(0, 256, (num_frames, height, width, 3)).astype(np.uint8)
                caption = ("a red seven", "a green three moving left")[number % 2]
                metadata = {"label": str(number % 3), "caption": caption}
                key = f"{name}_{number:03d}"
                split = "train" if number < num_clips else "val"
                writer.write(key, {token_set.name: array}, metadata, split=split, bucket=name)
    return root


@pytest.fixture(scope="session")
def coca_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """coca_ViT-B-32 with random weights; open_clip leaves the last projection uninitialised."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = open_clip.create_model("coca_ViT-B-32").state_dict()
    state["text_decoder.text_projection"].normal_(std=0.04)
    path = tmp_path_factory.mktemp("coca") / "coca.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


@pytest.fixture(scope="session")
def random_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's tokenizer with fewer channels and random weights: enough to make codes."""
    import torch

    from tokenizer.folder import save_tokenizer
    from tokenizer.model import Tokenizer
    from tokenizer.presets import PRESETS

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny = PRESETS["tiny"]
    narrow = replace(tiny.autoencoder, channels=(8,))
    save_tokenizer(Tokenizer(replace(tiny, autoencoder=narrow)), folder)
    return folder


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two processes that talk over gloo, for all tests that need them."""
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[Ranks]:
    with Ranks(4) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket of an S3 server on loopback; its address and keys are in the environment."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="lab")
        yield "s3://lab"
    server.stop()


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server of the empty folder tmp_path/web; what it refuses is asked for again at once."""
    monkeypatch.setattr(patience, "_PAUSE_SECONDS", 0.001)
    (tmp_path / "web").mkdir()
    with serving(tmp_path / "web") as web:
        yield web
