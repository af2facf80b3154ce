"""Averaged weights: the formula, what it leaves alone, and going on."""

from __future__ import annotations

import torch
from torch import nn

from tokenizer.lookups.lookup import Renewal
from training.average import WeightAverage


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn_like(each))


def test_it_is_a_running_mean_whose_decay_begins_small() -> None:
    model = module()
    average = WeightAverage(model, decay=0.3)
    expected = model[0].weight.detach().clone()  # type: ignore[union-attr,operator]
    for update in range(1, 6):
        move(model)
        average.update()
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()  # type: ignore[union-attr,operator]
    torch.testing.assert_close(average.averages["0.weight"], expected)


def test_applied_it_is_the_module_for_a_while_and_buffers_are_the_modules_own() -> None:
    model = module()
    average = WeightAverage(model, decay=0.9)
    move(model)
    average.update()
    model[1].running_mean += 1  # type: ignore[operator]
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with average.applied():
        inside = {name: each.clone() for name, each in model.state_dict().items()}
    assert all(torch.equal(inside[name], each) for name, each in average.averages.items())
    assert not torch.equal(inside["0.weight"], before["0.weight"])
    assert torch.equal(inside["1.running_mean"], before["1.running_mean"])
    assert all(torch.equal(model.state_dict()[name], each) for name, each in before.items())


def test_rows_that_were_put_somewhere_new_begin_there() -> None:
    model = module()
    average = WeightAverage(model, decay=0.9)
    other = WeightAverage(model, decay=0.9)
    move(model)
    weight = model[0].weight
    assert isinstance(weight, nn.Parameter)
    rows = torch.tensor([False, True, False, True])
    average.update({weight: Renewal(rows, weight.detach())})
    other.update()
    found, usual = (each.averages["0.weight"] for each in (average, other))
    assert torch.equal(found[rows], weight.detach()[rows])
    assert torch.equal(found[~rows], usual[~rows])
    assert torch.equal(average.averages["0.bias"], other.averages["0.bias"])
