"""The package has one attention, one block, one training loop, one sampling loop."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

TRAINING = Path(__file__).resolve().parent.parent / "training"


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """Everything in the sources, with the name of its file."""
    return [
        (path.relative_to(TRAINING).as_posix(), node)
        for path in sorted(TRAINING.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]


def calls(name: str) -> list[str]:
    """The file of each call of a function or method of this name."""
    return [
        file
        for file, node in nodes()
        if isinstance(node, ast.Call)
        and name in (getattr(node.func, "attr", None), getattr(node.func, "id", None))
    ]


def test_there_is_one_attention() -> None:
    assert calls("scaled_dot_product_attention") == ["attention.py"]
    assert not calls("MultiheadAttention")
    # Nobody writes one by hand either: probabilities are made where codes are drawn, only.
    assert set(calls("softmax")) == {"drawing.py"}
    assert set(calls("attend")) == {"transformer.py"}


def test_there_is_one_mask_rule() -> None:
    assert set(calls("visible")) == {"attention.py"}
    assert not calls("tril") + calls("triu")


def test_there_is_one_block() -> None:
    modules = [
        (file, node.name)
        for file, node in nodes()
        if isinstance(node, ast.ClassDef) and "Module" in ast.unparse(ast.Tuple(node.bases))
    ]
    assert [each for each in modules if "Block" in each[1]] == [("transformer.py", "Block")]
    assert not [each for each in modules if each[0].startswith(("methods/", "compat/"))]
    assert set(calls("Block")) == {"transformer.py"}


def test_there_is_one_training_loop() -> None:
    # The judge of samples fits a classifier of its own; all else is trained by the trainer.
    assert set(calls("backward")) == {"judge.py", "trainer.py"}
    assert calls("backward").count("trainer.py") == 1
    assert calls("losses") == []  # a task is asked through the module that the trainer wraps
    assert calls("_losses") == ["trainer.py"]


def test_there_is_one_sampling_loop() -> None:
    assert calls("loop_steps") == ["sampler.py"]
    assert calls("draw") == ["sampler.py"]
    assert set(calls("new_cache")) == {"compiled.py"}
    assert calls("cache_for") == ["sampler.py"]


def test_methods_are_orders_and_layouts_only() -> None:
    imported = {
        name
        for file, node in nodes()
        if file.startswith("methods/")
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert not any(name.split(".")[0] == "torch" for name in imported)
