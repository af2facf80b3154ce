"""Feature extractors: named, hashed, the same for the same seed, and nothing loaded by half."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenizer.extractors import InceptionFeatures, RandomFeatures
from tokenizer.frechet import frechet_distance
from tokenizer.settings import UserError
from training.features import open_extractor
from training.judge import Judge, save_judge


def clips(seed: int, batch: int = 6, num_frames: int = 5, side: int = 24) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    shape = (batch, num_frames, side, side, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=draw)


def test_random_features_follow_from_the_seed_and_say_so() -> None:
    state = torch.get_rng_state()
    first, second, other = RandomFeatures(3), RandomFeatures(3), RandomFeatures(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.name == "random3d-3"
    assert (first.name, first.sha256) == (second.name, second.sha256)
    assert first.sha256 != other.sha256
    np.testing.assert_array_equal(first(clips(0)), second(clips(0)))
    assert "regression only" in first.about


@pytest.mark.parametrize(("num_frames", "side"), [(1, 8), (5, 24), (9, 64)])
def test_random_features_take_clips_of_any_shape(num_frames: int, side: int) -> None:
    assert RandomFeatures()(clips(0, 2, num_frames, side)).shape == (2, 64)


def test_a_random_distance_grows_with_the_damage() -> None:
    extractor, source = RandomFeatures(), clips(0, batch=12)
    distances = []
    for noise in (0, 20, 80):
        damaged = (source.int() + noise * torch.randn(source.shape).sign().int()).clamp(0, 255)
        distances.append(frechet_distance(extractor(damaged.byte()), extractor(source)))
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances[0] < distances[1] < distances[2]


def test_a_judge_gives_its_features_under_the_hash_of_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = Judge({"motion": ("left", "right")}).eval()
    save_judge(judge, tmp_path, "these clips")
    extractor = open_extractor(f"judge:{tmp_path}")
    assert extractor.name == f"judge-{extractor.sha256[:8]}"
    frames = clips(0)
    np.testing.assert_array_equal(extractor(frames), judge.look(frames.numpy())[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("i3d", "must be one of random, judge:DIR, inception:FILE"),
        ("judge", "name the weights, as in judge:PATH"),
        ("random:x", "the seed must be a whole number"),
        ("judge:/nowhere", "no judge here"),
        ("inception:/nowhere.pth", "no such file"),
    ],
)
def test_an_extractor_that_is_not_there_is_one_clear_error(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        open_extractor(text)


def test_a_damaged_judge_is_refused(tmp_path: Path) -> None:
    save_judge(Judge({"motion": ("left", "right")}), tmp_path, "these clips")
    (tmp_path / "judge.json").write_text('{"values": ["left"], "made_from": "these"}')
    with pytest.raises(UserError, match="damaged judge"):
        open_extractor(f"judge:{tmp_path}")


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_weights_with_code_in_them_are_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "inception.pth"
    with path.open("wb") as file:
        pickle.dump({"weight": Harmful()}, file)
    with pytest.raises(UserError, match=r"inception\.pth"):
        InceptionFeatures(path)
    assert "executed" not in capsys.readouterr().out


def test_weights_of_another_network_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "inception.pth"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"is missing.*and .* more"):
        InceptionFeatures(path)


@pytest.mark.slow
def test_inception_gives_a_row_per_frame(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    network = models.inception_v3(weights=None, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    extractor = InceptionFeatures(tmp_path / "inception.pth")
    features = extractor(clips(0, batch=2, num_frames=2))
    assert features.shape == (4, 2048)
    assert extractor.name == f"inception_v3-{extractor.sha256[:8]}"
