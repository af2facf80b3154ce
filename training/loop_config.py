"""Settings of the one training loop, whatever it trains; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenizer.settings import section, setting


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    matrices: Literal["muon", "adamw"] = setting("muon", "optimizer of the matrices in the blocks")
    matrix_learning_rate: float = setting(3e-3, "peak learning rate of those matrices")
    learning_rate: float = setting(2e-3, "peak learning rate of everything else (AdamW)")
    beta1: float = setting(0.9, "AdamW: decay of the gradient's mean")
    beta2: float = setting(0.95, "AdamW: decay of the gradient's square")
    momentum: float = setting(0.95, "Muon: momentum")
    newton_schulz_steps: int = setting(4, "Muon: iterations of the orthogonalisation")
    weight_decay: float = setting(0.0, "decoupled weight decay of matrices")
    clip_norm: float = setting(1.0, "largest norm of the gradient; 0 leaves it alone")

    def __post_init__(self) -> None:
        for name in ("matrix_learning_rate", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be positive")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must lie in [0, 1)")
        for name in ("weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative")
        if self.newton_schulz_steps < 1:
            raise ValueError(f"newton_schulz_steps ({self.newton_schulz_steps}) must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorOptimizerConfig(OptimizerConfig):
    """The critics' own optimizer: a short memory, since what they look at changes."""

    matrices: Literal["muon", "adamw"] = setting("adamw", "optimizer of the convolutions")
    matrix_learning_rate: float = setting(2e-4, "peak learning rate of the convolutions")
    learning_rate: float = setting(2e-4, "peak learning rate of everything else (AdamW)")
    beta1: float = setting(0.5, "AdamW: decay of the gradient's mean")
    beta2: float = setting(0.9, "AdamW: decay of the gradient's square")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    kind: Literal["constant", "linear", "cosine", "wsd"] = setting(
        "wsd", "learning rate over the steps; wsd: warm-up, stable, linear decay"
    )
    warmup_steps: int = setting(20, "steps from zero to the peak")
    stable_share: float = setting(
        0.4, "wsd: share of the steps after the warm-up before the decay begins"
    )
    final_ratio: float = setting(0.0, "learning rate at the end, relative to the peak")

    def __post_init__(self) -> None:
        if not 0 <= self.stable_share <= 1:
            raise ValueError(f"stable_share ({self.stable_share}) must lie in [0, 1]")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not be negative")
        if not 0 <= self.final_ratio <= 1:
            raise ValueError(f"final_ratio ({self.final_ratio}) must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    num_steps: int = setting(400, "optimizer steps")
    global_batch_size: int = setting(
        24, "clips in a batch, over all ranks; data.batch_sizes says others for some shapes"
    )
    batches_per_step: int = setting(
        1, "batches whose gradients are added up for a step; each of them has one shape"
    )
    micro_batch_size: int | None = setting(
        None,
        "generators: most clips that a rank computes at once, which changes nothing but memory "
        "and what dropout in the blocks draws (default: all it has); gradients of several passes "
        "are kept whole on each rank",
    )
    seed: int = setting(0, "everything drawn in training follows from it")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where to train")
    log_every: int = setting(10, "steps between lines of metrics")
    checkpoint_every: int = setting(200, "steps between checkpoints; the last step always has one")
    keep_checkpoints: int = setting(2, "newest checkpoints to keep")
    keep_every: int = setting(
        0, "checkpoints after a multiple of so many steps are kept for good; 0: none"
    )
    save_aside: bool = setting(
        True, "checkpoints are copied and written while training goes on, one at a time"
    )
    tensorboard: bool = setting(True, "also write the metrics for TensorBoard")
    wandb: str | None = setting(
        None, "also send the metrics to this project of Weights & Biases (pip install wandb)"
    )
    preview_every: int = setting(
        300,
        "steps between previews: samples of a generator, reconstructions of a tokenizer and the "
        "health of its codes; 0: none",
    )
    preview_clips: int = setting(8, "generators: clips that a preview samples")
    validate_every: int = setting(
        0, "steps between losses of held-out clips; 0: none (see validation_clips)"
    )
    validation_clips: int = setting(512, "most clips of data.validation_split, of each shape")
    profile_steps: tuple[int, ...] = setting(
        (), "first and last of the steps whose trace is written to OUT/profile, like [20, 23]"
    )
    precision: Literal["float32", "bfloat16"] = setting(
        "float32",
        "bfloat16: a generator computes with weights of that type, the weights that are trained, "
        "the sums of gradients and logits stay float32; a tokenizer computes in automatic mixed "
        "precision, its quantizer and losses in float32",
    )
    ema_decay: float = setting(
        0.0, "decay of the averaged weights, which are then the result; 0 keeps no average"
    )

    def __post_init__(self) -> None:
        for name in (
            "num_steps",
            "global_batch_size",
            "batches_per_step",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "preview_clips",
            "validation_clips",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        for name in ("keep_every", "preview_every", "validate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) must be at least 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay ({self.ema_decay}) must lie in [0, 1)")
        steps = self.profile_steps
        if steps and (len(steps) != 2 or not 1 <= steps[0] <= steps[1]):
            raise ValueError(
                f"profile_steps ({list(steps)}) must be a first step, at least 1, and a last one"
            )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the ranks share a model: replicate x shard ranks in all."""

    replicate: int = setting(1, "groups of ranks that each hold the whole model (HSDP)")
    shard: int | None = setting(
        None, "ranks of a group, which share weights and optimizer state (default: all there are)"
    )
    gather_twice: bool = setting(
        True,
        "drop the gathered weights of a block after its forward pass and gather them again for the "
        "backward pass: less memory, half as much communication again",
    )
    recompute: Literal["none", "selective", "full"] = setting(
        "none",
        "activations of a block that are computed again in the backward pass, to save memory: "
        "none; all but those of matrix products and attention; or all",
    )
    compile: bool = setting(False, "compile the blocks: a minute at first, faster steps after it")

    def __post_init__(self) -> None:
        if self.replicate < 1 or (self.shard is not None and self.shard < 1):
            raise ValueError("replicate: replicate and shard must be at least 1")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What to do in a step whose loss or gradient is no number, or whose loss is far too high."""

    action: Literal["stop", "skip", "roll_back"] = setting(
        "stop",
        "in a bad step: stop; leave the weights as they are and go on with the next data; or "
        "return to the last checkpoint and go on with the data behind the bad step's",
    )
    spike: float = setting(
        0.0,
        "a loss is bad if it is so many (robust) standard deviations above the median of the last "
        "steps of its shapes; 0: only what is no number is bad",
    )
    window: int = setting(200, "spike: how many of the last steps are compared with")
    warmup: int = setting(50, "spike: how many steps there must be before a loss is compared")
    budget: int = setting(10, "skip, roll_back: bad steps of a run before it stops")

    def __post_init__(self) -> None:
        if self.spike < 0 or self.budget < 0:
            raise ValueError("spike: spike and budget must not be negative")
        if not 2 <= self.warmup <= self.window:
            raise ValueError(
                f"warmup ({self.warmup}) must lie between 2 and window ({self.window})"
            )


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    kind: Literal["local", "torchrun", "ray"] = setting(
        "local", "one process here, several here under torchrun, or several on a Ray cluster"
    )
    workers: int = setting(2, "torchrun, ray: number of processes")
    address: str | None = setting(None, "ray: the cluster (default: RAY_ADDRESS, else a local Ray)")
    max_failures: int = setting(
        0, "torchrun, ray: restarts from the latest checkpoint before giving up"
    )

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers ({self.workers}) must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What the loop needs to know of a run, whatever it trains."""

    optimizer: OptimizerConfig = section(OptimizerConfig)
    schedule: ScheduleConfig = section(ScheduleConfig)
    trainer: TrainerConfig = section(TrainerConfig)
    parallel: ParallelConfig = section(ParallelConfig)
    guard: GuardConfig = section(GuardConfig)
    launch: LaunchConfig = section(LaunchConfig)
