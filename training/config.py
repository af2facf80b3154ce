"""Settings of training and sampling, torch-free: what a preset file and the flags fill.

`GeneratorRun` and `TokenizerRun` are the two things that the one loop trains; both are saved into
the run as `config.yaml` and can be given back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenizer.config import TokenizerConfig
from tokenizer.loss_config import LpipsFiles
from tokenizer.settings import section, setting
from training.block_config import BlockConfig
from training.loop_config import DiscriminatorOptimizerConfig, TrainingRun
from training.method_config import MethodConfig
from training.step_sizes import StepSizes


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    path: str | None = setting(None, "the dataset folder that `tessera build` made")
    token_set: str | None = setting(
        None, "which of the dataset's token sets to train on (default: the primary one)"
    )
    mixture: dict[str, float] = setting(
        help="further dataset folders, each with its weight beside this one's, which is 1",
        default_factory=dict,
    )
    buckets: tuple[str, ...] = setting(
        (), "shapes to train on; several take turns by their number of clips (empty: the longest)"
    )
    batch_sizes: dict[str, int] = setting(
        help="clips in a batch of some shapes, like {t1_h256_w256: 256} (default: as many of each "
        "as trainer.global_batch_size)",
        default_factory=dict,
    )
    bucket_weights: dict[str, float] = setting(
        help="how often clips of a shape are shown beside the others', like {t1_h256_w256: 0.5} "
        "(default: 1, every clip as often as any other)",
        default_factory=dict,
    )
    split: str = setting("train", "split to train on")
    validation_split: str = setting("val", "split of the clips that are held out")
    where: str | None = setting(
        None, "train on the clips for which this holds, like \"motion > 1.5 and label == 'cat'\""
    )
    captions: str | None = setting(
        None, "parquet of other captions for path: columns clip_id or key, and caption"
    )
    order: Literal["global", "window"] = setting(
        "global", "shuffle all clips, or (more than memory, or remote) those of some shards at once"
    )
    window_shards: int = setting(8, "order window: shards that are shuffled together")
    tail: Literal["wrap", "drop"] = setting(
        "wrap", "the end of an epoch that fills no batch: joins the next epoch, or is left out"
    )
    views: Literal["one", "all"] = setting(
        "one", "of the views of a clip, show one in an epoch, or all"
    )
    damaged: Literal["raise", "skip"] = setting(
        "raise", "a clip whose bytes are damaged: stop, or take the next one and count it"
    )
    threads: int = setting(1, "threads that read the next batches ahead; 0 reads when asked")

    def __post_init__(self) -> None:
        for name in ("mixture", "bucket_weights"):
            if any(weight <= 0 for weight in getattr(self, name).values()):
                raise ValueError(f"{name}: weights must be positive")
        if any(size < 1 for size in self.batch_sizes.values()):
            raise ValueError("batch_sizes: sizes must be at least 1")
        if self.window_shards < 1 or not 0 <= self.threads <= 16:
            raise ValueError("window_shards must be at least 1, threads between 0 and 16")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    width: int = setting(192, "width of the transformer")
    depth: int = setting(6, "number of blocks")
    heads: int = setting(3, "attention heads; must divide the width")
    second_stack: int | None = setting(
        None, "arpg: how many of the blocks are the queries' own (default: half of them)"
    )
    head_blocks: tuple[int, ...] = setting(
        (1, 1), "nar: further blocks before the heads along h and t"
    )
    head_bias: bool = setting(True, "a bias per code in the last layer")
    block: BlockConfig = section(BlockConfig, "what a block is made of")

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1:
            raise ValueError("width: width, depth and heads must be at least 1")
        if not 0 <= (self.second_stack or 0) <= self.depth:
            raise ValueError(f"second_stack ({self.second_stack}) must be at most depth")
        if min(self.head_blocks, default=0) < 0:
            raise ValueError(f"head_blocks ({list(self.head_blocks)}) must not be negative")
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    kind: Literal["none", "class", "text", "clip_text"] = setting(
        "text",
        "what a clip is generated from: nothing, its label, or its caption as word pieces that are "
        "learned (text) or as a frozen text tower of open_clip reads it (clip_text)",
    )
    dropout: float = setting(0.1, "share of clips trained without it, which guidance needs")
    max_pieces: int = setting(64, "longest caption in word pieces; longer ones are cut in training")
    model: str = setting("ViT-B-32", "clip_text: what open_clip calls the model of the tower")
    weights: str | None = setting(None, "clip_text: file of its weights, .safetensors or .pt")
    weights_sha256: str | None = setting(None, "clip_text: SHA-256 of that file, in hex")

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout ({self.dropout}) must lie in [0, 1]")
        if self.max_pieces < 1:
            raise ValueError(f"max_pieces ({self.max_pieces}) must be at least 1")


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    kind: Literal["constant", "linear", "ramp", "interval"] = setting(
        "constant",
        "over the steps: the same; linear in the share of cells done; from 1 up to the scale; "
        "or the scale within [start, end) of the cells done and 1 elsewhere",
    )
    scale: float = setting(2.0, "logits = unconditional + scale * (conditional - unconditional)")
    start: float = setting(0.0, "interval: share of cells done from which on the scale holds")
    end: float = setting(1.0, "interval: share of cells done up to which the scale holds")

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"start ({self.start}) and end ({self.end}) must be 0 <= start < end <= 1"
            )


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """How codes are drawn from logits."""

    temperature: float = setting(1.0, "above 1 more varied, below 1 safer; 0 takes the likeliest")
    top_k: int = setting(0, "sample from the k likeliest codes only; 0: all")
    top_p: float = setting(1.0, "sample from the likeliest codes of this total probability")
    last_temperature: float | None = setting(
        None, "temperature of the last step, linear in between (default: the same in all)"
    )
    last_top_k: int | None = setting(
        None, "top_k of the last step, linear in between (default: the same in all)"
    )
    last_top_p: float | None = setting(
        None, "top_p of the last step, linear in between (default: the same in all)"
    )
    guidance: GuidanceConfig = section(GuidanceConfig)

    def __post_init__(self) -> None:
        for name in ("temperature", "last_temperature", "top_k", "last_top_k"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative")
        for name in ("top_p", "last_top_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} ({value}) must lie in (0, 1]")
        if self.last_top_k is not None and (self.top_k == 0) != (self.last_top_k == 0):
            raise ValueError(
                f"last_top_k ({self.last_top_k}) and top_k ({self.top_k}): 0 keeps all codes, from "
                "which no line leads to a number; give both, or the size of the codebook for all"
            )


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """Weights of another run that a run begins with, before its first step."""

    run: str | None = setting(
        None, "folder of a run, or of one that was exported: its latest (averaged) weights"
    )
    fresh: tuple[str, ...] = setting(
        (),
        "patterns of parameters that begin at random, like 'heads.1.*'; any other that is missing "
        "there is an error",
    )
    left_out: tuple[str, ...] = setting(
        (), "patterns of that run's parameters that this one has no use for; any other is an error"
    )


@dataclass(frozen=True, kw_only=True)
class GeneratorRun(TrainingRun):
    """Training of a generator on code shards: `tessera train`."""

    out: str | None = setting(None, "folder of the run")
    data: DataConfig = section(DataConfig)
    method: MethodConfig = section(MethodConfig)
    model: ModelConfig = section(ModelConfig)
    condition: ConditionConfig = section(ConditionConfig)
    begin: WarmStartConfig = section(WarmStartConfig)
    sampling: DrawConfig = section(
        DrawConfig, "how samples of this run are drawn when nothing else is said"
    )


@dataclass(frozen=True, kw_only=True)
class BeginConfig:
    """What a tokenizer is before its first step."""

    clips: int = setting(
        192,
        "clips whose principal components and clusters of latents it begins with; 0: none, it "
        "begins at random",
    )
    folder: str | None = setting(None, "a trained tokenizer to go on from, instead of from clips")

    def __post_init__(self) -> None:
        if self.clips < 0:
            raise ValueError(f"clips ({self.clips}) must not be negative")


@dataclass(frozen=True, kw_only=True)
class TokenizerRun(TrainingRun):
    """Training of a tokenizer on pixel shards: `tessera tokenizer train`."""

    out: str | None = setting(
        None, "folder of the run (default: DATA/tokenizer_run when DATA is a build)"
    )
    result: str | None = setting(
        None,
        "folder of the finished tokenizer (default: DATA/tokenizer, where a build looks, unless "
        "its codes need the one that is there; OUT/tokenizer when DATA is no build)",
    )
    data: DataConfig = section(DataConfig)
    reversed_share: float = setting(0.5, "share of clips that are shown backwards in training")
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    begin: BeginConfig = section(BeginConfig)
    lpips: LpipsFiles = section(LpipsFiles)
    discriminator_optimizer: DiscriminatorOptimizerConfig = section(DiscriminatorOptimizerConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.reversed_share <= 1:
            raise ValueError(f"reversed_share ({self.reversed_share}) must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(DrawConfig):
    out: str | None = setting(None, "folder for the samples (default: RUN/samples)")
    prompts: tuple[str, ...] = setting(
        (), "classes or captions to sample (default: those of the training data)"
    )
    num: int | None = setting(
        None,
        "samples in all, spread evenly over the prompts or, without any, over all of the training "
        "data's (default: one per prompt)",
    )
    max_prompts: int = setting(
        20, "how many of the training data's prompts when neither prompts nor num are given"
    )
    videos: int = setting(64, "of how many samples, from the first, videos are written too")
    stream: bool = setting(
        False,
        "write each frame of these samples too, OUT/frames/SAMPLE/000.png and so on, as soon as it "
        "is finished, while the rest of the clip is generated",
    )
    ranks: int = setting(1, "processes; on a CPU each computes on one thread")
    bucket: str | None = setting(None, "shape to sample (default: the one trained on)")
    shape: tuple[int, int, int] | None = setting(
        None,
        "frames, height and width of clips of another size; for raster, par, nar and arpg: any "
        "with model.block.position rope, with a table those whose cells fit in the grid trained on",
    )
    num_steps: int | None = setting(
        None, "random orders: steps of a clip, frame or scale (default: the method's)"
    )
    sizes: StepSizes | None = setting(
        None, "random orders: how the cells are shared out over the steps (default: the method's)"
    )
    seed: int = setting(
        0, "seed; sample i of a seed is exactly the same for equal batch_size, up to rounding else"
    )
    batch_size: int = setting(
        32,
        "samples generated together, and stored in a file (tessera sample on a CPU: the first of "
        "them in smaller batches)",
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where to sample")
    precision: Literal["float32", "bfloat16"] = setting(
        "float32",
        "of the generator; bfloat16 halves its memory and is faster where the machine multiplies "
        "it faster, and draws other codes now and then; guidance, draws and tokenizer stay float32",
    )
    compile: bool = setting(
        False,
        "compile the steps and keep caches of a fixed size: a minute at first, faster steps after "
        "it; worth it for many samples on a GPU",
    )
    text_weights: str | None = setting(
        None, "clip_text: weights of the tower, for new captions (default: where training had them)"
    )
    fps: float = setting(8.0, "frames per second of the written videos")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num", "num_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1")
        if self.fps <= 0:
            raise ValueError(f"fps ({self.fps}) must be positive")
        for name in ("max_prompts", "ranks", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.videos < 0:
            raise ValueError(f"videos ({self.videos}) must not be negative")
