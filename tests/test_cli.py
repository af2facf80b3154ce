"""The command: wrong input is one line and exit code 2 before any work; help is quick and light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import _parser, main


def fails_with(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a wrong command prints."""
    try:
        code = main(list(argv))
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    assert code == 2
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    return captured.err


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def build_yaml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "build.yaml"
    path.write_text(text)
    return str(path)


def test_a_missing_folder_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, out: Path
) -> None:
    line = fails_with(
        capsys, "select", "demo", "--sources", f"[{tmp_path}/nothing]", "--out", str(out)
    )
    assert f"{tmp_path}/nothing" in line
    assert not out.exists()


def test_an_empty_folder_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, out: Path
) -> None:
    (tmp_path / "empty").mkdir()
    line = fails_with(
        capsys, "select", "demo", "--sources", f"[{tmp_path}/empty]", "--out", str(out)
    )
    assert f"{tmp_path}/empty" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sources: [a]\nout: b\nselct: {}\n", "unknown key 'selct'; did you mean 'select'?"),
        (
            "sources: [a]\nout: b\nselect:\n  val_shar: 0.1\n",
            "unknown key 'select.val_shar'; did you mean 'select.val_share'?",
        ),
        ("sources: [a]\nout: b\nclips:\n  fps: fast\n", "clips.fps must be number, not 'fast'"),
        ("sources: [a]\nout: b\nclips:\n  fps: 0\n", "clips.fps (0.0) must be above 0"),
        ("sources: [a]\nout: b\nclips:\n  buckets: [9x64]\n", "'9x64' must read FRAMESxHEIGHT"),
        ("sources: [a]\nout: b\ndecoder: ffmpeg\n", "must be one of pyav, decord"),
        ("sources: [a]\nout: b\nselect: 3\n", "select must be a section of keys"),
        ("sources: a\nout: b\n", "sources must be list of text, not 'a' (str); write [a]"),
        ("out: b\n", "'sources' is required"),
        ("- a\n- b\n", "expected keys and values, found list"),
        ("sources: [a\n", "not valid YAML"),
    ],
)
def test_a_wrong_key_type_or_value_names_file_key_and_remedy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, expected: str
) -> None:
    path = build_yaml(tmp_path, text)
    line = fails_with(capsys, "build", path)
    assert path in line
    assert expected in line


def test_a_missing_config_lists_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert "presets: demo" in fails_with(capsys, "build", "nonsense")
    assert "no such file" in fails_with(capsys, "build", "nonsense.yaml")


def test_an_output_folder_that_cannot_be_written_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small_videos: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    target = str(tmp_path / "file" / "data")
    line = fails_with(capsys, "select", "demo", "--sources", f"[{small_videos}]", "--out", target)
    assert target in line
    assert "cannot be written" in line


def test_a_build_without_a_tokenizer_says_so_before_any_decoding(
    capsys: pytest.CaptureFixture[str], out: Path, small_videos: Path
) -> None:
    line = fails_with(capsys, "build", "demo", "--sources", f"[{small_videos}]", "--out", str(out))
    assert "tessera tokenizer train" in line
    assert not out.exists()


@pytest.mark.parametrize("weights", ["null", "/nowhere/coca.pt"])
def test_coca_without_weights_is_one_line_before_any_decoding(
    capsys: pytest.CaptureFixture[str], out: Path, small_videos: Path, weights: str
) -> None:
    line = fails_with(
        capsys,
        "select",
        "demo",
        *("--sources", f"[{small_videos}]", "--out", str(out)),
        *("--captions.coca", "true", "--captions.coca_weights", weights),
    )
    assert "coca" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train", "demo", "--data", "/nowhere", "--out", "x"], "/nowhere"),
        (["train", "demo", "--data", "/nowhere"], "out is required"),
        (["sample", "/nowhere"], "/nowhere"),
        (["edit", "/nowhere", "clip.mp4", "--first_frames", "1"], "/nowhere"),
        (["evaluate", "/nowhere"], "/nowhere"),
        (["tokenizer", "train", "demo-tokenizer", "--data", "/nowhere"], "/nowhere"),
        (["tokenizer", "info", "/nowhere"], "/nowhere"),
        (["stats", "/nowhere"], "/nowhere"),
        (["inspect", "/nowhere.tar"], "/nowhere.tar"),
        (["demo", "--videos", "/nowhere", "--out", "/nowhere/out"], "/nowhere"),
        (["bild", "x"], "bild"),
        (["build", "demo", "--no-such-flag", "1"], "--no-such-flag"),
    ],
)
def test_every_command_names_what_is_not_there(
    capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
) -> None:
    assert expected in fails_with(capsys, *argv)


def test_help_of_every_command_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("demo", "build", "train", "sample", "edit", "evaluate", "stats", "inspect"):
        with pytest.raises(SystemExit):
            _parser().parse_args([command, "--help"])
        text = capsys.readouterr().out
        assert f"tessera {command}" in text.split("example", 1)[1], command


def test_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        "for command in ('stats', 'submit'):\n"
        "    try:\n        main([command, '--help'])\n    except SystemExit:\n        pass\n"
        "loaded = {'torch', 'ray', 'av', 'open_clip'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow  # in small: `make contracts`, which reads the imports
def test_training_imports_where_the_pipelines_libraries_are_absent() -> None:
    code = (
        "import sys\n"
        "for name in ('ray', 'av', 'decord', 'webdataset', 'pyarrow', 'open_clip'):\n"
        "    sys.modules[name] = None\n"
        "import pkgutil, importlib, training, tokenizer\n"
        "for package in (training, tokenizer):\n"
        "    for each in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not each.name.endswith(('__main__', 'launch.ray')):\n"
        "            importlib.import_module(each.name)\n"
    )
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
