"""How fast training is said to be: figures agree with each other, and the comparison is fair."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizer.settings import UserError, read_settings
from training.__main__ import main
from training.bench_config import ON_CUDA, BenchConfig
from training.trace import spent_in

TINY = (
    *("--depth", "2", "--width", "16", "--heads", "2", "--grid", "[2, 2, 2]", "--batch_size", "3"),
    *("--codebook_size", "16", "--clips", "40", "--dropped", "1", "--steps", "4", "--rounds", "2"),
)


def bench(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What a tiny benchmark prints."""
    assert main(["bench", "train", *TINY, *flags]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_figures_agree_with_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, trace = tmp_path / "train.json", tmp_path / "steps.json.gz"
    told = bench(
        capsys,
        *("--method", "arpg", "--out", str(out), "--trace", str(trace), "--profiled_steps", "1"),
    )
    report = json.loads(out.read_text())
    assert report["tokens_per_step"] == 3 * 2 * 2 * 2
    for name in ("loop", "plain"):
        of = report[name]
        assert of["tokens_per_second"] * of["seconds_per_step"] == pytest.approx(24)
        done = 1e12 * of["teraflops"] * of["seconds_per_step"]
        assert done == pytest.approx(report["flops_per_step"])
        least, most = of["least_and_most_seconds"]
        assert 0 < least <= of["seconds_per_step"] <= most
        assert of["cpu_seconds_per_step"] > 0
        assert of["peak_memory_mib"] > 10
        assert of["loss"] == pytest.approx(2.77, abs=0.3)  # log 16: codes are random
    for name in ("seconds", "cpu_seconds"):
        ratio = report["loop_over_plain"][name]
        loop, plain = (report[which][f"{name}_per_step"] for which in ("loop", "plain"))
        assert ratio["of_medians"] == pytest.approx(loop / plain)
        assert len(ratio["of_rounds"]) == 2
        assert min(ratio["of_rounds"]) > 0
    reader = report["reader"]
    assert 0 < reader["share_of_step_cpu"] < 1
    per_second = report["flops_per_step"] / report["loop"]["seconds_per_step"]
    share = per_second / report["measured_matmul_flops"]
    assert 0 < report["share_of_measured_matmul"] == pytest.approx(share)
    by_cpu = report["flops_per_step"] / report["loop"]["cpu_seconds_per_step"]
    by_cpu *= report["threads"] / report["measured_matmul_flops"]
    assert report["share_by_cpu_time"] == pytest.approx(by_cpu)
    assert report["published_flops"] is report["mfu"] is None  # of a CPU
    spent = report["time"]["seconds_per_step"]
    assert report["time"]["of"] == "operators"
    assert min(spent.values()) >= 0
    assert min(spent[name] for name in ("matmul", "attention", "optimizer", "other")) > 0
    assert spent_in(trace).span == pytest.approx(sum(spent.values()))
    assert "| plain loop | " in told
    assert "of which the loop has" in told
    assert "| optimizer | " in told


@pytest.mark.slow
def test_the_plain_loop_learns_what_the_loop_learns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the same weights, by the same steps, on the same batches."""
    out = tmp_path / "train.json"
    bench(
        capsys,
        *("--condition", "none", "--out", str(out), "--rounds", "1", "--profiled_steps", "0"),
    )
    report = json.loads(out.read_text())
    assert report["plain"]["loss"] == pytest.approx(report["loop"]["loss"], rel=1e-5)
    assert "time" not in report


def write_trace(path: Path, pieces: list[tuple[str, str, float, float]]) -> Path:
    """A trace of (category, name, start, duration)."""
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name"}]
    events += [
        {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": duration, "pid": 1, "tid": 1}
        for kind, name, start, duration in pieces
    ]
    with gzip.open(path, "wt") as file:
        json.dump({"traceEvents": events}, file)
    return path


def test_kernels_are_told_apart_by_their_names(tmp_path: Path) -> None:
    adam = "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>"
    pieces = [
        ("cpu_op", "aten::mm", 0.0, 900.0),
        ("kernel", "nvjet_tst_256x128_64x4_1x2_h_bz_coopA_NNT", 100.0, 30.0),
        ("kernel", "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", 140.0, 10.0),
        ("kernel", "triton_tem_fused_flex_attention_backward_7", 150.0, 20.0),
        ("kernel", "pytorch_flash::flash_fwd_kernel", 170.0, 5.0),
        ("kernel", adam, 200.0, 8.0),
        ("kernel", "triton_poi_fused_mul_silu_3", 210.0, 4.0),
        ("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 220.0, 80.0),
    ]
    spent = spent_in(write_trace(tmp_path / "trace.json.gz", pieces))
    assert spent.of == "kernels"
    assert {name: round(1e6 * each) for name, each in spent.by_category.items()} == {
        "matmul": 40,
        "attention": 25,
        "optimizer": 8,
        "copies": 80,
        "other": 4,
    }
    assert spent.span == pytest.approx(200e-6)
    assert spent.longest[0][0].startswith("Memcpy")


def test_an_operator_has_no_time_of_those_that_it_calls(tmp_path: Path) -> None:
    pieces = [
        ("cpu_op", "aten::linear", 0.0, 100.0),
        ("cpu_op", "aten::mm", 10.0, 70.0),
        ("user_annotation", "Optimizer.step#AdamW.step", 100.0, 50.0),
        ("cpu_op", "aten::mul", 110.0, 30.0),
        ("cpu_op", "aten::empty", 111.0, 9.0),
    ]
    spent = spent_in(write_trace(tmp_path / "trace.json.gz", pieces))
    assert spent.of == "operators"
    microseconds = {name: round(1e6 * each) for name, each in spent.by_category.items()}
    assert microseconds == {"matmul": 70, "attention": 0, "optimizer": 50, "copies": 0, "other": 30}


def test_the_model_of_a_gpu_is_24_x_1024_on_sequences_of_1280() -> None:
    config = read_settings(BenchConfig, None, ON_CUDA)
    assert (config.depth, config.width, config.precision) == (24, 1024, "bfloat16")
    assert config.compile
    assert config.grid[0] * config.grid[1] * config.grid[2] == 1280
    assert (config.dropped, config.steps) == (20, 50)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--width 100 --heads 3", "heads (3) must divide width (100)"),
        ("--grid [2,4,8]", "with h = w"),
        ("--clips 2", "clips (2) must be at least batch_size"),
        ("--steps 0", "steps (0) must be at least 1"),
        ("--trace t.json.gz --profiled_steps 0", "there is none with profiled_steps 0"),
        ("--out /nowhere/train.json", "there is no folder /nowhere"),
    ],
)
def test_wrong_settings_are_one_line(
    flags: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "train", *flags.split()]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_that_is_said_before_anything_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "train", "--device", "cuda"]) == 2
    assert "no usable GPU" in capsys.readouterr().err


def test_a_setting_that_there_is_not_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'depth'"):
        read_settings(BenchConfig, None, {"deptt": "3"})
