"""Captions: sidecars in text and JSON, hostile ones too, and CoCa from a file of weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.captions import Sidecar, SidecarError, find_sidecars, read_sidecar, read_sidecars
from tokenizer.settings import UserError


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_a_text_file_captions_the_whole_video(tmp_path: Path) -> None:
    sidecar = read_sidecar(write(tmp_path / "a.txt", "  a cat\n on a  mat \n"))
    assert sidecar.for_span(3, 4) == ("a cat on a mat", None, {})
    assert read_sidecar(write(tmp_path / "b.txt", "\n")).for_span(0, 1) == (None, None, {})


def test_a_clip_takes_the_span_that_overlaps_it_most(tmp_path: Path) -> None:
    value = {
        "caption": "all",
        "label": "7",
        "attributes": {"color": "red", "size": 3},
        "license": "CC0-1.0",
        "consent": "given",
        "clips": [
            {"start_seconds": 0, "end_seconds": 2, "caption": "first", "label": 1},
            {"start_seconds": 2, "end_seconds": 4, "attributes": {"color": "blue"}},
        ],
    }
    sidecar = read_sidecar(write(tmp_path / "a.json", value))
    assert (sidecar.license, sidecar.consent) == ("CC0-1.0", "given")
    both = {"color": "red", "size": "3"}
    assert sidecar.for_span(0.1, 1.9) == ("first", "1", both)
    assert sidecar.for_span(1.5, 2.4) == ("first", "1", both)
    assert sidecar.for_span(1.6, 4.4) == ("all", "7", {"color": "blue", "size": "3"})
    assert sidecar.for_span(3.5, 5.0) == ("all", "7", both)  # a third of the clip is too little
    assert sidecar.for_span(9, 10) == ("all", "7", both)
    assert Sidecar().for_span(0, 1) == (None, None, {})


def test_the_nearest_sidecar_of_each_kind_is_found_json_first() -> None:
    there: set[str] = set()
    found = lambda name: find_sidecars(name, there.__contains__)  # noqa: E731
    assert found("f/a.mp4") == ()
    for name in ("a.cls", "a.txt", "a.mp4.txt", "a.json", "a.mp4.json"):
        there.add(f"f/{name}")
    assert found("f/a.mp4") == ("f/a.mp4.json", "f/a.mp4.txt", "f/a.cls")
    assert found("f/a.jpg") == ("f/a.json", "f/a.txt", "f/a.cls")
    assert found("a.jpg") == ()


def test_what_the_json_leaves_out_comes_from_the_text_and_the_class(tmp_path: Path) -> None:
    named = {"a.json": {"license": "CC0"}, "b.json": {"caption": "mine", "label": "dog"}}
    for name, value in named.items():
        write(tmp_path / name, value)
    write(tmp_path / "a.txt", "a cat")
    write(tmp_path / "a.cls", "7\n")
    texts = [str(tmp_path / name) for name in ("a.txt", "a.cls")]
    both = read_sidecars([str(tmp_path / "a.json"), *texts])
    assert (both.license, both.for_span(0, 1)) == ("CC0", ("a cat", "7", {}))
    both = read_sidecars([str(tmp_path / "b.json"), *texts])
    assert both.for_span(0, 1) == ("mine", "dog", {})
    assert read_sidecars(texts[1:]).for_span(0, 1) == (None, "7", {})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "Expecting"),
        ("[1, 2]", "mapping"),
        ("null", "mapping"),
        ({"caption": 3.5, "label": ["x"]}, "label must be text"),
        ({"caption": True}, "caption must be text"),
        ({"attributes": [1]}, "attributes must be a mapping"),
        ({"attributes": {"a": {}}}, "attributes.a must be text"),
        ({"clips": {}}, "clips must be a list"),
        ({"clips": [3]}, r"clips\[0\] must be a mapping"),
        ({"clips": [{"start_seconds": 0}]}, "end_seconds must be a number"),
        ({"clips": [{"start_seconds": 1, "end_seconds": 1}]}, "must be after"),
        ('{"clips": [{"start_seconds": NaN, "end_seconds": 1}]}', "finite"),
        ('{"clips": [{"start_seconds": 1' + "0" * 400 + ', "end_seconds": 1}]}', "finite"),
        ('{"caption": "\\ud800"}', "surrogate"),
        ("[" * 200_000, "nested too deeply"),
        ({"caption": "x" * 200_000}, "longer than"),
    ],
)
def test_a_bad_sidecar_is_one_line_that_names_it(tmp_path: Path, value, said: str) -> None:
    path = write(tmp_path / "a.json", value)
    with pytest.raises(SidecarError, match=said) as caught:
        read_sidecar(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.kind == "sidecar"


def test_bytes_that_are_no_text_and_files_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(SidecarError, match="UTF-8"):
        read_sidecar(tmp_path / "a.txt")
    with pytest.raises(SidecarError, match="cannot be read"):
        read_sidecar(tmp_path / "none.json")
    with open(tmp_path / "big.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(SidecarError, match="larger than"):
        read_sidecar(tmp_path / "big.json")


LETTERS = st.characters(exclude_categories=["Cs"])  # all of UTF-8; its list by codec takes seconds

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(LETTERS, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["caption", "label", "attributes", "clips", "start_seconds", "x"])
            | st.sampled_from(["end_seconds", "license"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(value=JSON)
def test_any_json_is_a_sidecar_or_a_sidecar_error(value, tmp_path_factory) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any.json", json.dumps(value))
    try:
        sidecar = read_sidecar(path)
    except SidecarError:
        return
    caption, label, attributes = sidecar.for_span(0.0, 1.0)
    assert caption is None or caption == " ".join(caption.split()) != ""
    assert label is None or isinstance(label, str)
    assert all(isinstance(each, str) for pair in attributes.items() for each in pair)


def test_missing_weights_are_one_line_before_anything_is_loaded(tmp_path: Path) -> None:
    from pipeline.coca import load_captioner

    with pytest.raises(UserError, match=r"none\.safetensors: the CoCa weights cannot be read"):
        load_captioner(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "text.pt").write_text("no weights")
    for name in ("text.safetensors", "text.pt"):
        with pytest.raises(UserError, match="not a file of weights") as caught:
            load_captioner(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"not known; give one of .*coca_ViT-B-32"):
        load_captioner(tmp_path / "text.pt", model="ViT-B-32")


@pytest.mark.slow
def test_weights_of_another_model_are_named(tmp_path: Path) -> None:
    import torch

    from pipeline.coca import load_captioner

    torch.save({"state_dict": {"module.a": torch.zeros(2)}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="not the weights of coca_ViT-B-32: lacks"):
        load_captioner(tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(UserError, match="no state dict"):
        load_captioner(tmp_path / "b.pt")


@pytest.mark.slow
def test_coca_captions_real_clips_from_a_file_of_weights(coca_weights: Path, monkeypatch) -> None:
    import hashlib

    import open_clip
    import torch
    from safetensors.torch import load_file

    from pipeline import coca
    from pipeline.corpus import render_clips

    monkeypatch.setattr(coca, "MAX_TOKENS", 4)
    captioner = coca.load_captioner(coca_weights)
    assert captioner.model_id == "coca_ViT-B-32"
    expected = hashlib.sha256(coca_weights.read_bytes()).hexdigest()
    assert captioner.weights_sha256 == expected

    clips = [frames for frames, _ in render_clips(num_clips=2, seed=0)]
    still = clips[0][:1]
    captions = captioner.caption([clips[0], still, clips[1]])
    assert len(captions) == 3
    assert all(captions)
    assert captioner.caption([clips[0], still, clips[1]]) == captions
    assert captioner.caption([]) == []

    # One frame is plain CoCa: open_clip's own forward picks the same tokens.
    plain = open_clip.create_model("coca_ViT-B-32").eval()
    plain.load_state_dict(load_file(coca_weights))
    image = captioner._prepare(still)
    tokens = torch.tensor([[49406]])
    with torch.inference_mode():
        for _ in range(4):
            logits = plain(image, tokens, output_labels=False)["logits"][:, -1]
            logits[:, [0, 49406]] = -torch.inf
            tokens = torch.cat([tokens, logits.argmax(1, keepdim=True)], 1)
    assert captions[1] == " ".join(open_clip.decode(tokens[0, 1:]).split())

    # Several frames are looked at as one sequence, and which ones they are matters.
    eight = captioner._look_at(torch.stack([captioner._prepare(clips[0])]))
    one = captioner._look_at(captioner._prepare(still)[None])
    assert eight.shape == one.shape
    assert not torch.allclose(eight, one)


@pytest.mark.slow
def test_long_clips_are_seen_in_eight_frames_cut_to_the_centre(coca_weights: Path) -> None:
    from pipeline.coca import load_captioner

    captioner = load_captioner(coca_weights)
    wide = np.zeros((30, 100, 300, 3), np.uint8)
    wide[:, :, 100:200] = 255
    prepared = captioner._prepare(wide)
    assert tuple(prepared.shape) == (8, 3, 224, 224)
    assert float(prepared.min()) > 1.5
    with pytest.raises(ValueError, match="uint8"):
        captioner.caption([wide.astype(np.float32)])
