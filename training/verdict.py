"""What a judge of real clips says of groups of clips: accuracies, and Frechet distances.

judge, key = judge_of(run_dir, train, fingerprint, config, print)
verdict(judge, train, held_out, rebuilt, samples.frames, promised)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from tokenizer.frechet import frechet_distance
from training.draws import numpy_generator
from training.evaluate_config import JudgeConfig
from training.judge import (
    Judge,
    agreement,
    attribute_values,
    joint_agreement,
    judge_key,
    load_judge,
    save_judge,
    train_judge,
)
from training.real_clips import Clips

_DRAWS = 8


def judge_of(
    run_dir: Path,
    train: Clips,
    fingerprint: str,
    config: JudgeConfig,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Judge | None, str | None]:
    """The judge of these clips and its key: that in RUN/judge, or trained; None without labels."""
    if not attribute_values(train.attributes):
        say("no judge: the clips have no labels to tell apart")
        return None, None
    key = judge_key(fingerprint, len(train), config)
    judge = load_judge(run_dir / "judge", key)
    if judge is not None:
        say(f"judge: the one of these clips and settings in {run_dir / 'judge'}")
        return judge, key
    started = time.process_time()
    judge = train_judge(train.frames, train.attributes, config)
    save_judge(judge, run_dir / "judge", key)
    say(
        f"judge: trained {config.num_steps} steps in "
        f"{time.process_time() - started:.0f} CPU-seconds"
    )
    return judge, key


def verdict(
    judge: Judge | None,
    train: Clips,
    held_out: Clips,
    rebuilt: UInt8[np.ndarray, "n t h w c"],
    samples: UInt8[np.ndarray, "m t h w c"],
    promised: list[dict[str, str]],
) -> dict[str, Any]:
    """Accuracies, and Frechet distances of equally many clips to one set of real clips.

    Of held-out clips, of these as `rebuilt` from their codes, and of samples, each of which should
    show what is `promised` of it.
    """
    if judge is None:
        return {"accuracy": {}, "joint_accuracy": {}, "frechet": {}}
    real, real_values = judge.look(held_out.frames)
    copied, copied_values = judge.look(rebuilt)
    made, made_values = judge.look(samples)
    known, _ = judge.look(train.frames)
    known = known[numpy_generator(0, "frechet").permutation(len(known))]
    size = min(len(made), len(real), len(known) // 2)
    half = len(known) // 2
    reference, other = known[half:], known[:half]
    frechet: dict[str, Any] = {}
    if size > 1:
        groups = {"samples": made, "reconstructions": copied, "real_held_out": real}
        frechet = {
            name: _distance_of(size, features, reference)
            for name, features in (groups | {"real_train": other}).items()
        }
        frechet["num_clips"] = size
    judged = {
        "real_held_out": (real_values, held_out.attributes),
        "reconstructions": (copied_values, held_out.attributes),
        "samples": (made_values, promised),
    }
    names = {name for each in promised for name in each}
    joint = {group: joint_agreement(*each, names) for group, each in judged.items()}
    return {
        "accuracy": {group: agreement(*each) for group, each in judged.items()},
        "joint_accuracy": {} if None in joint.values() else joint,
        "frechet": frechet,
    }


def _distance_of(
    size: int, features: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"]
) -> float:
    """The Frechet distance of `size` clips: few are further away than many, so that all groups are
    told of equally many. The mean of several draws where there are more."""
    draws = _DRAWS if len(features) > size else 1
    random = numpy_generator(0, "frechet draws")
    return float(
        np.mean([
            frechet_distance(features[random.permutation(len(features))[:size]], reference)
            for _ in range(draws)
        ])
    )  # fmt: skip
