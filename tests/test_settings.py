"""Settings: YAML and flags fill dataclasses; what does not fit is named with the nearest key."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal

import pytest

from tokenizer.settings import (
    UserError,
    add_flags,
    from_dict,
    given_flags,
    read_settings,
    save_settings,
    section,
    setting,
    to_dict,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = setting(0.5, "a share of 100%")
    mode: Literal["fast", "slow"] = setting("fast", "how")

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate ({self.rate}) must not be negative")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str | None = setting(None, "a name")
    sizes: tuple[int, ...] = setting((1, 2), "sides")
    weights: dict[str, float] = setting(help="weights", default_factory=dict)
    active: bool = setting(True, "a switch")
    inner: Inner = section(Inner, "the inner part")


def written(tmp_path, text):
    path = tmp_path / "it.yaml"
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_hold():
    assert read_settings(Outer, None) == Outer()


def test_a_file_fills_the_settings_and_flags_win(tmp_path):
    path = written(tmp_path, "name: a\nsizes: [3, 4]\ninner: {rate: 1, mode: slow}\n")
    settings = read_settings(Outer, path, {"inner.rate": "1e-3", "sizes": "[5]"})
    assert settings == Outer(name="a", sizes=(5,), inner=Inner(rate=0.001, mode="slow"))


def test_saved_settings_read_back_equal(tmp_path):
    settings = Outer(name="ü", weights={"a": 1.5}, active=False, inner=Inner(mode="slow"))
    save_settings(settings, tmp_path / "it.yaml")
    assert read_settings(Outer, tmp_path / "it.yaml") == settings
    assert from_dict(Outer, to_dict(settings), "here") == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae: a", "unknown key 'nmae'; did you mean 'name'?"),
        ("inner: {rat: 1}", "unknown key 'inner.rat'; did you mean 'inner.rate'?"),
        ("inner: {mode: fest}", "inner.mode ('fest') must be one of fast, slow"),
        ("inner: {rate: -1}", "inner.rate (-1.0) must not be negative"),
        ("inner: 3", "inner must be a section of keys, not 3 (int)"),
        ("sizes: [1, x]", "sizes[1] must be int, not 'x' (str)"),
        ("active: 1", "active must be true|false, not 1 (int)"),
        ("name: 3", "name must be"),
        ("- 1", "expected keys and values, found list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_an_error_names_the_file_the_key_and_what_is_allowed(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_settings(Outer, path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_flag_is_not_blamed_on_the_file(tmp_path):
    path = written(tmp_path, "name: a")
    for key, value in (("inner.rate", "abc"), ("inner.mode", "fest"), ("sizes", "[1, x]")):
        with pytest.raises(UserError, match=rf"^flags: {key}") as error:
            read_settings(Outer, path, {key: value})
        assert str(path) not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_settings(Outer, tmp_path / "absent.yaml")


def test_flags_exist_for_nested_keys_and_only_given_ones_override():
    parser = argparse.ArgumentParser()
    add_flags(parser, Outer, leave_out=("name",))
    arguments = parser.parse_args(["--inner.rate", "2", "--active", "false"])
    settings = read_settings(Outer, None, given_flags(arguments))
    assert settings == Outer(active=False, inner=Inner(rate=2.0))
    assert "a share of 100%" in parser.format_help()
    assert "--name" not in parser.format_help()


def test_a_flag_into_a_value_is_refused():
    with pytest.raises(UserError, match="'name' is a value, not a section"):
        read_settings(Outer, None, {"name": "a", "name.first": "b"})
