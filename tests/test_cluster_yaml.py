"""The cluster's description: valid for Ray, consistent with itself, and explained."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
CLUSTER: dict[str, Any] = yaml.safe_load(TEXT)
SELF_EVIDENT = {"cluster_name", "provider", "auth", "head_node_type", "available_node_types"}


def ray_schema() -> dict[str, Any]:
    """Ray's own schema, from the installed wheel, without importing Ray."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "autoscaler" / "ray-schema.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_it_is_valid_under_rays_own_schema() -> None:
    jsonschema.validate(CLUSTER, ray_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(CLUSTER | {"max_worker": 1}, ray_schema())


def test_its_numbers_agree() -> None:
    types = CLUSTER["available_node_types"]
    assert CLUSTER["head_node_type"] in types
    workers = {name: each for name, each in types.items() if name != CLUSTER["head_node_type"]}
    assert CLUSTER["max_workers"] == sum(each["max_workers"] for each in workers.values())
    assert all(each["min_workers"] <= each["max_workers"] for each in workers.values())


def test_decoders_may_vanish_and_trainers_may_not() -> None:
    types = CLUSTER["available_node_types"]
    spot = [name for name in types if "InstanceMarketOptions" in types[name]["node_config"]]
    assert spot == ["decoder"]
    assert "GPU" not in types["decoder"]["resources"]
    assert types["gpu"]["resources"]["GPU"] > 0
    assert types["head"]["resources"] == {"CPU": 0}


def test_every_machine_has_the_project_and_the_token() -> None:
    mounts = CLUSTER["file_mounts"]
    assert mounts["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert mounts["/home/ubuntu/tessera"] == "."
    assert (ROOT / "constraints.txt").exists()
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in CLUSTER[name] if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token" in starts[0]
    assert "--dashboard-host=127.0.0.1" in CLUSTER["head_start_ray_commands"][-1]


def test_every_choice_is_explained_above_it() -> None:
    lines = TEXT.splitlines()
    for key in set(CLUSTER) - SELF_EVIDENT:
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
        assert lines[place - 1].startswith("# "), f"{key} has no comment above it"
    choices = ("min_workers", "labels", "idle_timeout_s", "priority", "InstanceMarketOptions")
    for key in (*choices, "availability_zone", "cache_stopped_nodes"):
        for place, line in enumerate(lines):
            if re.match(rf"\s+{key}:", line):
                assert lines[place - 1].lstrip().startswith("# "), f"line {place + 1}: {key}"
