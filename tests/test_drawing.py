"""Codes drawn from logits, and what guidance and filters are in each step."""

from __future__ import annotations

import math

import pytest
import torch

from training.config import GuidanceConfig, SampleConfig
from training.drawing import Filters, draw, filtered, filters_at, uniforms
from training.guidance import Moment, guidance_scale

MOMENTS = [Moment(0, 3, 0, 1, 8), Moment(1, 3, 1, 4, 8), Moment(2, 3, 4, 8, 8)]


def test_codes_are_drawn_with_the_probabilities_of_the_logits() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(1, 3000, 3)
    uniform = (torch.arange(3000, dtype=torch.float64)[None] + 0.5) / 3000
    drawn = draw(logits, uniform, Filters())
    assert torch.bincount(drawn[0]).tolist() == [1500, 900, 600]


def test_a_code_of_no_probability_is_never_drawn() -> None:
    logits = torch.tensor([[[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]])
    for value in (0.0, 0.5, 1 - 1e-16):
        assert int(draw(logits, torch.tensor([[value]], dtype=torch.float64), Filters())) in (
            1,
            3,
        )


def test_filters_keep_the_likeliest() -> None:
    logits = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]).log()
    assert (filtered(logits, Filters(top_k=2)) > -math.inf).tolist() == [
        [[False, False, True, True]]
    ]
    assert (filtered(logits, Filters(top_p=0.65)) > -math.inf).tolist() == [
        [[False, False, True, True]]
    ]
    assert (filtered(logits, Filters(top_p=0.1)) > -math.inf).tolist() == [
        [[False, False, False, True]]
    ]
    assert torch.equal(filtered(logits, Filters()), logits)


def test_codes_that_tie_with_the_kth_all_stay() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert (filtered(logits, Filters(top_k=2)) > -math.inf).tolist() == [[True, True, True, False]]
    tied = filtered(torch.tensor([[1.0, 1.0, 0.0]]), Filters(top_k=1))
    assert tied.softmax(dim=-1).tolist() == [[0.5, 0.5, 0.0]]


def test_the_likeliest_code_always_stays() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0]])
    for filters in (Filters(top_p=1e-9), Filters(0.01, 1, 1e-9), Filters(temperature=1e-3)):
        assert int(draw(logits[None], torch.tensor([[0.9]]).double(), filters)) == 1


def test_filters_go_from_the_first_steps_to_the_last_steps() -> None:
    constant = SampleConfig(temperature=0.8, top_k=7, top_p=0.9)
    assert {filters_at(constant, moment) for moment in MOMENTS} == {Filters(0.8, 7, 0.9)}
    moving = SampleConfig(
        temperature=1.0, last_temperature=0.0, top_k=10, last_top_k=2, top_p=1.0, last_top_p=0.5
    )
    assert [filters_at(moving, moment) for moment in MOMENTS] == [
        Filters(1.0, 10, 1.0),
        Filters(0.5, 6, 0.75),
        Filters(0.0, 2, 0.5),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, r"temperature \(-1.0\) must not be negative"),
        ({"last_top_p": 0.0}, r"last_top_p \(0.0\) must lie in \(0, 1\]"),
        ({"top_k": 5, "last_top_k": 0}, "0 keeps all codes"),
        ({"num_steps": 0}, r"num_steps \(0\) must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleConfig(**wrong)  # type: ignore[arg-type]


def test_each_sample_has_uniform_numbers_of_its_own() -> None:
    together = uniforms(0, range(4), 50)
    assert torch.equal(together[2:], torch.cat([uniforms(0, [2], 50), uniforms(0, [3], 50)]))
    assert len(together.unique()) == 200
    assert not torch.equal(together, uniforms(1, range(4), 50))


def test_guidance_schedules_are_functions_of_the_step_and_of_the_cells_done() -> None:
    def scales(**settings: object) -> list[float]:
        config = GuidanceConfig(scale=3.0, **settings)  # type: ignore[arg-type]
        return [guidance_scale(config, moment) for moment in MOMENTS]

    assert scales(kind="constant") == [3, 3, 3]
    assert scales(kind="linear") == [1.25, 2, 3]
    assert scales(kind="ramp") == [1, 2, 3]
    assert scales(kind="interval", start=0.1, end=0.5) == [1, 3, 1]
