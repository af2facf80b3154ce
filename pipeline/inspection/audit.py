"""The audit: are the codes of a dataset worth training on? A random sample is decoded and compared.

    audit = audit_dataset("runs/demo/data", "runs/demo/data/tokenizer", num_samples=64)
    audit.failures                      # [] or one sentence for each thing that is wrong

Spends seconds before a week of GPUs is spent: a tokenizer that is not the one that made the codes,
reconstructions that show too little, codes that encoding does not give again (so the frames are not
those of the build), a codebook that is hardly used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.inspection.reconstruction import Comparison, compare, fingerprint_in
from pipeline.inspection.summary import summarize
from pipeline.shards.format import TokenSet
from pipeline.shards.reader import Dataset, open_dataset
from pipeline.statistics import further_token_sets, overall_usage

MIN_PSNR, MIN_USAGE, MIN_AGREEMENT = 20.0, 0.05, 0.9


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was measured, in words and numbers; `is_passed` None: could not be said."""

    name: str
    found: str
    wanted: str
    is_passed: bool | None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All checks, and the samples that were compared."""

    checks: list[Check]
    comparisons: list[Comparison]

    @property
    def failures(self) -> list[str]:
        return [
            f"{each.name}: {each.found}, wanted {each.wanted}"
            for each in self.checks
            if each.is_passed is False
        ]

    def to_json(self) -> dict[str, Any]:
        """What `tessera audit --json` prints."""
        return {
            "passed": not self.failures,
            "checks": [
                {
                    "name": each.name,
                    "found": each.found,
                    "wanted": each.wanted,
                    "passed": each.is_passed,
                }
                for each in self.checks
            ],
            "samples": [
                {
                    "key": each.metadata.get("key"),
                    "psnr": each.psnr,
                    "flat_psnr": each.flat_psnr,
                    "agreement": each.agreement,
                    "reason": each.reason,
                }
                for each in self.comparisons
            ],
        }


def audit_dataset(
    root: str | Path,
    tokenizer: str | Path,
    *,
    num_samples: int = 64,
    seed: int = 0,
    min_psnr: float = MIN_PSNR,
    min_usage: float = MIN_USAGE,
) -> Audit:
    """Compares `num_samples` random samples with their sources; UserError when nothing can be.

    The codes are those of the token set that the tokenizer made.
    """
    found = fingerprint_in(tokenizer)
    token_set = _made_by(open_dataset(root), found)
    declared = token_set.tokenizer
    checks = [
        Check(
            name="tokenizer",
            found=found[:16],
            wanted=declared[:16] if declared else "any: the dataset names none",
            is_passed=None if declared is None else found == declared,
        )
    ]
    if checks[0].is_passed is False:  # its pictures would say nothing
        return Audit(checks=checks, comparisons=[])
    comparisons = compare(
        root,
        num_samples=num_samples,
        seed=seed,
        tokenizer=tokenizer,
        token_set=token_set.name,
    )
    checks += _picture_checks(comparisons, min_psnr)
    checks.append(_usage_check(root, token_set.name, min_usage))
    return Audit(checks=checks, comparisons=comparisons)


def _made_by(dataset: Dataset, tokenizer: str) -> TokenSet:
    """The token set of this tokenizer; the primary one when there is none."""
    made = [each for each in dataset.token_sets.values() if each.tokenizer == tokenizer]
    return made[0] if made else dataset.primary


def _picture_checks(comparisons: list[Comparison], min_psnr: float) -> list[Check]:
    compared = [each for each in comparisons if each.psnr is not None]
    checks = [
        Check(
            name="samples compared with their source",
            found=f"{len(compared)} of {len(comparisons)}{_missing(comparisons)}",
            wanted="at least 1",
            is_passed=bool(compared),
        )
    ]
    if not compared:
        return checks
    nears = np.array([each.psnr for each in compared])
    flat = float(np.mean([each.flat_psnr for each in compared]))
    near = float(nears.mean())
    worst = float(nears.min())
    checks += [
        Check(
            name="PSNR",
            found=f"{near:.1f} dB (worst {worst:.1f})",
            wanted=f"at least {min_psnr:.1f} dB",
            is_passed=near >= min_psnr,
        ),
        Check(
            name="PSNR above one flat colour",
            found=f"{near - flat:+.1f} dB (flat: {flat:.1f})",
            wanted="above 0 dB",
            is_passed=near > flat,
        ),
    ]
    shares = [each.agreement for each in compared if each.agreement is not None]
    if shares:
        checks.append(
            Check(
                name="codes that encoding gives again",
                found=f"{np.mean(shares):.2%}",
                wanted=f"at least {MIN_AGREEMENT:.0%}",
                is_passed=bool(np.mean(shares) >= MIN_AGREEMENT),
            )
        )
    return checks


def _usage_check(root: str | Path, token_set: str, min_usage: float) -> Check:
    statistics = summarize(root).statistics
    is_further = token_set in further_token_sets(statistics)
    usage = overall_usage(statistics, token_set if is_further else None)
    counted = usage is not None and usage.num_used is not None
    share = usage.num_used / usage.codebook_size if usage and usage.num_used is not None else 0.0
    bits = "" if usage is None or usage.entropy_bits is None else f", {usage.entropy_bits:.2f} bits"
    return Check(
        name="codes in use, whole dataset",
        found=f"{share:.1%}{bits}" if counted else "not counted",
        wanted=f"at least {min_usage:.1%}",
        is_passed=share >= min_usage if counted else None,
    )


def _missing(comparisons: list[Comparison]) -> str:
    reasons = sorted({each.reason for each in comparisons if each.reason})
    return f" (others: {', '.join(reasons)})" if reasons else ""
