"""TransNetV2 and PySceneDetect: true shapes, our records, clear refusals."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.build import build
from pipeline.config import BuildConfig
from pipeline.shots import check_detector, detector_facts, find_shots
from pipeline.shots.records import Shot
from pipeline.shots.settings import ShotSettings
from pipeline.shots.transnet import detect, load_transnet, probabilities
from pipeline.shots.transnet_network import TransNetV2, our_names
from tokenizer.settings import UserError

PUBLISHED = {  # names and shapes in the authors' transnetv2-pytorch-weights.pth
    "SDDCNN.0.DDCNN.0.Conv3D_1.layers.0.weight": (32, 3, 1, 3, 3),
    "SDDCNN.0.DDCNN.0.Conv3D_8.layers.1.weight": (16, 32, 3, 1, 1),
    "SDDCNN.0.DDCNN.0.bn.running_var": (64,),
    "SDDCNN.0.DDCNN.1.Conv3D_2.layers.0.weight": (32, 64, 1, 3, 3),
    "SDDCNN.1.DDCNN.0.Conv3D_4.layers.0.weight": (64, 64, 1, 3, 3),
    "SDDCNN.2.DDCNN.1.Conv3D_4.layers.1.weight": (64, 128, 3, 1, 1),
    "SDDCNN.2.DDCNN.1.bn.weight": (256,),
    "frame_sim_layer.projection.weight": (128, 448),
    "frame_sim_layer.projection.bias": (128,),
    "frame_sim_layer.fc.weight": (128, 101),
    "color_hist_layer.fc.weight": (128, 101),
    "fc1.weight": (1024, 4864),
    "cls_layer1.weight": (1, 1024),
    "cls_layer2.bias": (1,),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "transnet.safetensors"
    save_file(TransNetV2().state_dict(), path)
    return path


def film(num_frames: int = 120) -> np.ndarray:
    generator = np.random.default_rng(0)
    takes = generator.integers(0, 255, (3, 9, 16, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    return takes.repeat(num_frames // 3, axis=0)


def test_the_published_names_lead_to_weights_of_these_shapes() -> None:
    ours = TransNetV2().state_dict()
    renamed = our_names({name: torch.empty(shape) for name, shape in PUBLISHED.items()})
    assert {name: tensor.shape for name, tensor in renamed.items()} == {
        name: ours[name].shape for name in renamed
    }
    assert sum(tensor.numel() for tensor in TransNetV2().parameters()) == 7_616_258


def test_the_network_agrees_with_a_slow_twin_of_its_similarities() -> None:
    from pipeline.shots.transnet_network import _colours, _similarities

    frames = torch.randint(0, 256, (1, 7, 27, 48, 3), dtype=torch.uint8)
    histograms = torch.zeros(7, 512)
    for index, frame in enumerate(frames[0].reshape(7, -1, 3).int().tolist()):
        for red, green, blue in frame:
            histograms[index, red // 32 * 64 + green // 32 * 8 + blue // 32] += 1
    histograms /= histograms.norm(dim=1, keepdim=True)
    torch.testing.assert_close(_colours(frames)[0], histograms)
    found = _similarities(histograms[None])[0]
    for frame in range(7):
        for place in range(101):
            other = frame + place - 50
            expected = histograms[frame] @ histograms[other] if 0 <= other < 7 else 0.0
            assert float(found[frame, place]) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("num_frames", [1, 49, 50, 51, 120])
def test_every_frame_has_its_own_probabilities_whatever_the_windows(num_frames: int) -> None:
    def brightness(window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert window.shape == (1, 100, 27, 48, 3)
        level = window.float().mean(dim=(2, 3, 4)) / 255
        return level, -level

    frames = np.zeros((num_frames, 36, 64, 3), np.uint8)
    frames += np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    change, in_change = probabilities(brightness, frames)  # type: ignore[arg-type]
    np.testing.assert_allclose(change, 1 / (1 + np.exp(-np.arange(num_frames) / 255)), rtol=1e-5)
    np.testing.assert_allclose(change + in_change, 1, rtol=1e-5)


@pytest.mark.slow
def test_weights_of_the_true_shapes_give_probabilities(weights: Path) -> None:
    change, in_change = probabilities(load_transnet(weights), film()[:30])
    assert change.shape == in_change.shape == (30,)
    assert np.all((change > 0) & (change < 1) & (change != in_change))


def test_runs_of_the_network_become_cuts_and_transitions(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, in_change = np.zeros(120, np.float32), np.zeros(120, np.float32)
    change[[19, 64]], in_change[18:20], in_change[60:70] = 0.9, 0.9, 0.9
    in_change[90:100] = 0.9
    monkeypatch.setattr(
        "pipeline.shots.transnet.probabilities", lambda network, frames: (change, in_change)
    )
    frames = film()
    frames[95] = 0
    settings = ShotSettings(detect="transnetv2", transnet_weights=str(weights))
    cuts, graduals = detect(frames, settings)
    assert list(cuts) == [20]
    assert [tuple(each) for each in graduals] == [("dissolve", 60, 70), ("fade", 90, 100)]
    pieces = find_shots(np.arange(120), frames, (1, 24), settings)
    assert [piece.start_index for piece in pieces] == [0, 20, 60, 70, 90, 100]


def test_facts_name_the_weights_and_not_where_they_lie(weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    one, two = (
        detector_facts(ShotSettings(detect="transnetv2", transnet_weights=str(path)))
        for path in (weights, copy)
    )
    assert one == two
    assert one["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_what_are_no_weights_of_it_is_refused_in_one_line(weights: Path, tmp_path: Path) -> None:
    state = TransNetV2().state_dict()
    torch.save({**state, "change.weight": torch.zeros(2, 1024)}, tmp_path / "shape.pth")
    torch.save({**state, "more": torch.zeros(1)}, tmp_path / "more.pth")
    del state["hidden.bias"]
    torch.save(state, tmp_path / "fewer.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("shape.pth", "more.pth", "fewer.pth", "text.pth", "text.safetensors", "list.pth"):
        with pytest.raises(UserError, match=rf"{name}: not .*weights") as caught:
            load_transnet(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        detector_facts(ShotSettings(detect="transnetv2", transnet_weights=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="transnet_weights must name a file"):
        ShotSettings(detect="transnetv2")


def test_a_detector_is_tried_before_anything_is_decoded(weights: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    other = ShotSettings(detect="transnetv2", transnet_weights=str(tmp_path / "other.pth"))
    with pytest.raises(UserError, match="not the weights of TransNetV2"):
        build(BuildConfig(sources=(str(tmp_path),), out=str(tmp_path / "data"), shots=other))
    ours = ShotSettings(detect="transnetv2", transnet_weights=str(weights))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert check_detector(ours) == f"TransNetV2, weights of sha256 {digest}"
    assert check_detector(ShotSettings()) is None


def test_pyscenedetect_finds_hard_cuts_in_our_frames() -> None:
    pytest.importorskip("scenedetect")
    settings = ShotSettings(detect="pyscenedetect")
    pieces = find_shots(np.arange(120), film(), (1, 24), settings)
    assert [piece.start_index for piece in pieces] == [0, 40, 80]
    assert all(isinstance(piece, Shot) for piece in pieces)
    assert detector_facts(settings)["package_version"]


def test_where_pyscenedetect_is_missing_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tessera\[scenedetect\]'"):
        detector_facts(ShotSettings(detect="pyscenedetect"))
