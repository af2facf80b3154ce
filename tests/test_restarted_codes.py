"""A code that is put somewhere new stays there: nothing of its former place pushes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.shards import Loader
from tests.conftest import tiny_tokenizer
from tokenizer.learner import Learner
from tokenizer.losses import LossOutput
from training.config import DataConfig, OptimizerConfig, TokenizerRun, TrainerConfig
from training.launch import local
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
                forget(optimizers, {module.weight: chosen})
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
    forget(optimizers, {module.weight: torch.tensor([True] + [False] * 5)})
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


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    names = ("model", "optimizer", "average")
    return {
        f"{name}:{key}": value
        for name in names
        for key, value in load_file(checkpoint / f"{name}.safetensors").items()
    }


def test_in_the_loop_a_restarted_code_is_where_it_was_put_and_has_no_moments(
    pixel_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = Learner.forward

    def remember(self: Learner, *given: Any) -> LossOutput:
        output = real(self, *given)
        ((codes, rows),) = self.tokenizer.quantizer.codebook.renewed().items()
        placed.append((rows.clone(), codes.detach().clone()))
        return output

    monkeypatch.setattr(Learner, "forward", remember)
    local.launch(run(pixel_shards, tmp_path))
    assert sum(int(rows.sum()) for rows, _ in placed) > 10
    for step, (rows, codes) in enumerate(placed, start=1):
        state = tensors(tmp_path / "checkpoints" / f"step_{step:08d}")
        assert torch.equal(state[f"model:{CODES}"][rows], codes[rows])
        assert torch.equal(state["average:quantizer.codebook.weight"][rows], codes[rows])
        for moment in ("exp_avg", "exp_avg_sq"):
            value = state[f"optimizer:{CODES}/{moment}"]
            assert not value[rows].any()
            assert value[~rows].any()
        assert not torch.equal(state[f"model:{CODES}"][~rows], codes[~rows])


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
    expected, found = tensors(whole.checkpoint), tensors(local.launch(killed).checkpoint)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
