"""A code that is put somewhere new stays there: nothing of its former place pushes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.shards import Loader
from tests.checkpoints import checkpoint_tensors
from tests.conftest import tiny_tokenizer
from tokenizer.learner import Learner
from tokenizer.lookups.lookup import Renewal
from tokenizer.losses import LossOutput
from training.config import DataConfig, TokenizerRun
from training.launch import local
from training.loop_config import OptimizerConfig, TrainerConfig
from training.optimizer import forget, make_optimizers

CODES = "tokenizer.quantizer.codebook.weight"


def test_forgotten_rows_stay_where_they_are_and_the_others_go_on() -> None:
    ends, chosen = [], torch.tensor([False, True, False, False, True, False])
    for forgets in (False, True):
        torch.manual_seed(0)
        module = nn.Linear(4, 6)
        optimizers = make_optimizers(module, lambda name, each: False, OptimizerConfig())
        for _ in range(4):
            module(torch.randn(8, 4)).square().mean().backward()
            before = module.weight.detach().clone()
            if forgets:
                forget(optimizers, {module.weight: Renewal(chosen, module.weight.detach())})
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            assert torch.equal(module.weight[chosen], before[chosen]) == forgets
        ends.append(module.weight.detach()[~chosen])
    assert torch.equal(*ends)


def test_momentum_of_matrices_is_forgotten_by_rows() -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 6)
    optimizers = make_optimizers(
        module, lambda name, each: each.ndim > 1, OptimizerConfig(matrices="muon")
    )
    module(torch.randn(8, 4)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    rows = torch.tensor([True] + [False] * 5)
    forget(optimizers, {module.weight: Renewal(rows, module.weight.detach())})
    momentum = optimizers[0].state[module.weight]["momentum"]
    assert momentum.any(dim=1).tolist() == [False] + [True] * 5


def run(data: Path, out: Path, **changes: Any) -> TokenizerRun:
    config = tiny_tokenizer().config
    quantizer = replace(
        config.quantizer, learned_by="gradient", restart_share=0.5, ema_decay=0.5, codebook_size=32
    )
    trainer = {
        "num_steps": 6,
        "global_batch_size": 4,
        "device": "cpu",
        "checkpoint_every": 1,
        "keep_checkpoints": 9,
        "preview_every": 0,
        "tensorboard": False,
        "ema_decay": 0.9,
    }
    return TokenizerRun(
        out=str(out),
        result=str(out / "tokenizer"),
        data=DataConfig(path=str(data)),
        tokenizer=replace(config, quantizer=quantizer),
        trainer=TrainerConfig(**(trainer | changes)),  # type: ignore[arg-type]
    )


@pytest.mark.slow
def test_in_the_loop_a_restarted_code_is_where_it_was_put_and_has_no_moments(
    pixel_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = Learner.forward

    def remember(self: Learner, *given: Any) -> LossOutput:
        output = real(self, *given)
        lookup = self.tokenizer.quantizer.codebook
        assert lookup._renewal is not None
        placed.append((lookup._renewal.rows.clone(), lookup._renewal.values.clone()))
        return output

    monkeypatch.setattr(Learner, "forward", remember)
    local.launch(run(pixel_shards, tmp_path))
    assert sum(int(rows.sum()) for rows, _ in placed) > 10
    for step, (rows, codes) in enumerate(placed, start=1):
        state = checkpoint_tensors(tmp_path / "checkpoints" / f"step_{step:08d}")
        assert torch.equal(state[f"model/{CODES}"][rows], codes[rows])
        assert torch.equal(state[f"average/{CODES}"][rows], codes[rows])
        for moment in ("exp_avg", "exp_avg_sq"):
            value = state[f"optimizer/{CODES}/{moment}"]
            assert not value[rows].any()
            assert value[~rows].any()
        assert not torch.equal(state[f"model/{CODES}"][~rows], codes[~rows])


@pytest.mark.slow
def test_a_killed_run_with_restarts_ends_where_the_undisturbed_one_does(
    pixel_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = local.launch(run(pixel_shards, tmp_path / "whole"))
    killed = run(pixel_shards, tmp_path / "killed", checkpoint_every=2)
    with monkeypatch.context() as patch:
        real = Loader.batch

        def dies_at_step_3(self: Loader, step: int) -> Any:
            if step == 3:
                raise KeyboardInterrupt
            return real(self, step)

        patch.setattr(Loader, "batch", dies_at_step_3)
        with pytest.raises(KeyboardInterrupt):
            local.launch(killed)
    expected, found = (
        checkpoint_tensors(whole.checkpoint),
        checkpoint_tensors(local.launch(killed).checkpoint),
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
