"""The presets of the papers are the papers' models, on the grids that they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from tokenizer.presets import PRESETS as TOKENIZERS
from tokenizer.scales import Schedule, image_and_clip, single_grid
from tokenizer.settings import read_settings, to_dict
from training.cli import PRESETS
from training.config import GeneratorRun
from training.generator import Generator
from training.models import model_settings
from training.vocabulary import Vocabulary

IMAGE, VIDEO = single_grid(1, 16, 16), single_grid(5, 16, 16)
VAR = image_and_clip(1, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
PYRAMID = TOKENIZERS["small-s8"].schedule_for(17, 128, 128)
PAPERS = {  # model, codes, number of codes, steps
    "imagenet-raster": ("llamagen-l", IMAGE, 16384, 256),
    "imagenet-par-4": ("par-l", IMAGE, 16384, 67),
    "imagenet-nar": ("nar-l", IMAGE, 16384, 31),
    "imagenet-arpg": ("arpg-l", IMAGE, 16384, 32),
    "imagenet-var": ("var-d16", VAR, 4096, 10),
    "ucf101-par-4": ("par-xl", VIDEO, 64000, 323),
    "ucf101-par-16": ("par-xl", VIDEO, 64000, 95),
    "ucf101-nar": ("nar-video-lp", VIDEO, 64000, 35),
    "ucf101-arpg": ("arpg-xl", VIDEO, 64000, 64),
    "ucf101-next-scale": ("var-d16", PYRAMID, 4096, 18),
}


def test_every_preset_of_a_generator_is_tested() -> None:
    found = {path.stem for path in PRESETS.glob("*.yaml")}
    assert found - {"demo", "demo-tokenizer"} == PAPERS.keys()


@pytest.mark.parametrize(("name", "paper"), PAPERS.items(), ids=PAPERS)
def test_a_preset_builds_the_model_of_its_paper_and_takes_its_steps(
    name: str, paper: tuple[str, Schedule, int, int]
) -> None:
    model, schedule, num_codes, num_steps = paper
    config = read_settings(GeneratorRun, PRESETS / f"{name}.yaml")
    num_classes = 101 if name.startswith("ucf101") else 1000
    classes = tuple(str(each) for each in range(num_classes))
    with torch.device("meta"):
        generator = Generator(
            config.model,
            config.method,
            schedule,
            Vocabulary("class", classes, length=1),
            num_codes,
            feature_channels=32,
        )
    assert generator.layout_for(schedule, training=False).order.num_steps == num_steps
    wanted = model_settings(model)
    flat = flattened("method", to_dict(config.method)) | flattened("model", to_dict(config.model))
    dropout = flat.pop("model.block.dropout")
    assert dropout == (0.0 if "var" in model else 0.1)
    assert {key: flat[key] for key in wanted if key in flat} == {
        key: value for key, value in wanted.items() if key in flat
    }


@pytest.mark.parametrize("name", PAPERS)
def test_a_preset_says_what_to_expect_and_how_to_sample(name: str) -> None:
    head = Path(PRESETS / f"{name}.yaml").read_text().split("\nmethod:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "arXiv" in head
    assert "Expected" in head
    sampling = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())["sampling"]
    assert sampling["guidance"]["scale"] > 1


def flattened(prefix: str, values: dict) -> dict:
    flat: dict = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        flat |= flattened(name, value) if isinstance(value, dict) else {name: value}
    return flat
