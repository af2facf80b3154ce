"""There is one attention, one block, one training loop and one sampling loop for generators."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tokenizer", "pipeline", "training", "benchmarks")
OF_THE_IMAGE_TOKENIZER = "tokenizer/image.py"  # whose attention among pixels is of its layout

MEASURED = {"benchmarks/sampling.py"}  # times the blocks on the steps of the loop, one by one
BESIDE = "training/plain_loop.py"  # what the speed of the training loop is compared with


@cache
def sources() -> dict[str, str]:
    """The text of every file; what benchmarks wrote into `benchmarks/out` is none of ours."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in paths
        if not path.is_relative_to(ROOT / "benchmarks" / "out")
    }


@cache
def nodes_of(file: str) -> list[ast.AST]:
    """Calls, classes and imports in a file."""
    wanted = ast.Call | ast.ClassDef | ast.Import | ast.ImportFrom
    return [node for node in ast.walk(ast.parse(sources()[file])) if isinstance(node, wanted)]


def nodes(word: str = "") -> list[tuple[str, ast.AST]]:
    """Those of all files in which the word stands, with the file's name."""
    files = [file for file, text in sources().items() if word in text]
    return [(file, node) for file in files for node in nodes_of(file)]


def calls(name: str) -> list[str]:
    """The file of each call of a function or method of this name."""
    return [
        file
        for file, node in nodes(name)
        if isinstance(node, ast.Call)
        and name in (getattr(node.func, "attr", None), getattr(node.func, "id", None))
    ]


def test_there_is_one_attention() -> None:
    attentions = calls("scaled_dot_product_attention")
    assert attentions == [OF_THE_IMAGE_TOKENIZER, "training/attention.py"]
    assert not calls("MultiheadAttention")
    # Nobody writes one by hand either: probabilities are made where codes are drawn, only.
    assert set(calls("softmax")) == {"training/drawing.py"}
    assert set(calls("attend")) == {"training/transformer.py"}


def test_there_is_one_mask_rule() -> None:
    assert set(calls("visible")) == {"training/attention.py"}
    assert not calls("tril") + calls("triu")


def test_there_is_one_block() -> None:
    modules = [
        (file, node.name)
        for file, node in nodes("Module")
        if isinstance(node, ast.ClassDef) and "Module" in ast.unparse(ast.Tuple(node.bases))
    ]
    blocks = {each for each in modules if "Block" in each[1] and each[1] != "ResidualBlock"}
    assert blocks == {("training/transformer.py", "Block")}
    data_only = ("training/methods/", "training/compat/")
    assert not [each for each in modules if each[0].startswith(data_only)]
    assert set(calls("Block")) == {"training/transformer.py"}


def test_there_is_one_training_loop() -> None:
    # The judge of samples fits a classifier of its own; all else is trained by the trainer.
    assert set(calls("backward")) - {BESIDE} == {"training/judge.py", "training/trainer.py"}
    assert calls("plain_loop") == ["training/bench_rounds.py"]
    assert calls("backward").count("training/trainer.py") == 1
    # A task is asked for what is learned and for what is held out; a lookup's losses are no task's.
    assert calls("losses") == ["tokenizer/quantizer.py", *["training/trainer.py"] * 2]


def test_there_is_one_sampling_loop() -> None:
    assert [each for each in calls("loop_steps") if each not in MEASURED] == ["training/sampler.py"]
    assert calls("draw") == ["training/sampler.py"]
    assert set(calls("new_cache")) - MEASURED == {"training/compiled.py"}
    assert calls("run_and_cache") == ["training/sampler.py"]


def test_methods_are_orders_and_layouts_only() -> None:
    imported = {
        name
        for file in sources()
        if file.startswith("training/methods/")
        for node in nodes_of(file)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert not any(name.split(".")[0] == "torch" for name in imported)
