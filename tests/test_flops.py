"""Operations of training: as torch counts them, as the mask has pairs, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import training.flops
from tests.generators import (
    CASES,
    GRID,
    VARIANTS,
    Variant,
    encoded,
    known_of,
    make_features,
    make_generator,
    random_codes,
    shared_generator,
)
from tests.test_layout import make_layout, slow_visible
from tokenizer.scales import Schedule, single_grid
from training.block_config import BlockConfig
from training.config import ModelConfig
from training.fed_rows import FedRows
from training.flops import (
    ClipFlops,
    measured_matmul_flops,
    peak_flops,
    training_flops,
    visible_pairs,
)
from training.generator import Generator
from training.layout import Embedding, Layout
from training.method_config import MethodConfig
from training.methods import METHODS
from training.vocabulary import Vocabulary

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.name)
every_case = pytest.mark.parametrize(("variant", "kind", "block"), CASES, ids=str)
CLIPS = 3
BY_NAME = {variant.name: variant for variant in VARIANTS}
BF16, FLOAT32 = torch.bfloat16, torch.float32


class Counted:
    """What torch counts for three clips: products of matrices, those of attention apart.

    The kernel of attention that CPUs have is unknown to its counter; the plain one is two `bmm`.
    """

    def __init__(self, generator: Generator, kind: str, schedule: Schedule) -> None:
        known = known_of(generator, random_codes(schedule), schedule=schedule)
        with sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as forward:
                logits = generator.by_cell(known, encoded(kind), schedule)
            with FlopCounterMode(display=False) as backward:
                logits.sum().backward()
        self.forward, self.backward = self._parts(forward), self._parts(backward)
        generator.zero_grad()

    @staticmethod
    def _parts(counter: FlopCounterMode) -> tuple[int, int]:
        counts = counter.get_flop_counts()["Global"]
        aten = torch.ops.aten
        assert set(counts) <= {aten.mm, aten.addmm, aten.bmm}
        matmul, attention = counts.get(aten.mm, 0) + counts.get(aten.addmm, 0), counts[aten.bmm]
        assert matmul % CLIPS == attention % CLIPS == 0
        return matmul // CLIPS, attention // CLIPS


def without_gradient(generator: Generator, layout: Layout) -> int:
    """Forward operations of what is projected and not learned: features, a tower's answers."""
    kinds, width = layout.embedding.tolist(), generator.config.width
    count = kinds.count(Embedding.FEATURE) + kinds.count(Embedding.MASKED_FEATURE)
    total = count * 2 * generator.num_features * width
    if generator.condition.from_tower:
        tower = make_features().tower
        total += 2 * width * (tower.pooled_width + tower.num_pieces * tower.width)
    return total


@every_case
def test_products_are_those_that_torch_counts_forward_and_backward(
    variant: Variant, kind: str, block: str
) -> None:
    generator = shared_generator(variant, kind, block)
    flops = training_flops(generator, variant.schedule)
    counted = Counted(generator, kind, variant.schedule)
    assert (flops.matmul / 3, flops.dense_attention / 3) == counted.forward
    skipped = without_gradient(generator, generator.layout_for(variant.schedule))
    assert counted.backward == (2 * flops.matmul // 3 - skipped, 2 * flops.dense_attention // 3)
    assert flops.total == flops.matmul + flops.attention


@pytest.mark.parametrize(
    ("head_blocks", "behind"), [((1, 1), 1), ((2, 0), 0), ((0, 2), 2)], ids=str
)
def test_images_of_a_video_generator_do_not_pay_for_blocks_of_the_axis_they_lack(
    head_blocks: tuple[int, int], behind: int
) -> None:
    """The blocks before the head of t run forward, and nothing comes back through them."""
    generator = Generator(
        ModelConfig(width=16, depth=2, heads=2, head_blocks=head_blocks),
        MethodConfig(name="nar"),
        GRID,
        Vocabulary("none"),
        16,
        1,
    )
    image = Schedule(GRID.scales[:1])
    flops = training_flops(generator, image)
    counted = Counted(generator, "none", image)
    rows, block = 8, 4096  # see the test by hand
    in_vain = behind * rows * 2 * block, behind * 4 * rows**2 * 16
    paid = flops.matmul // 3, flops.dense_attention // 3
    assert counted.forward == (paid[0] + in_vain[0], paid[1] + in_vain[1])
    assert counted.backward == (2 * paid[0], 2 * paid[1])


def test_next_scale_images_cost_what_their_own_generator_costs() -> None:
    variant = BY_NAME["next_scale"]
    generator = shared_generator(variant, "class")
    image = Schedule(variant.schedule.pyramids[0])
    flops = training_flops(generator, image)
    assert flops.matmul < training_flops(generator, variant.schedule).matmul
    assert (flops.matmul / 3, flops.dense_attention / 3) == Counted(
        generator, "class", image
    ).forward


@pytest.mark.parametrize("num_prefix", [0, 3])
@every_variant
def test_pairs_are_those_of_the_masks(variant: Variant, num_prefix: int) -> None:
    layout = make_layout(variant, num_prefix)
    rows = FedRows.of(layout, np.arange(layout.num_rows), torch.device("cpu"))
    parts = [layout.num_rows]
    if not layout.queries_meet:
        parts = [layout.num_context, layout.num_rows - layout.num_context]
    found = visible_pairs(layout)
    assert [pairs.asking for pairs in found] == parts
    for mask, pairs in zip(rows.masks(layout.num_rows), found, strict=True):
        all_pairs = pairs.asking * pairs.asked
        assert pairs.visible == (all_pairs if mask is None else int(mask.sum()))  # type: ignore[union-attr]
    step, role = layout.step.tolist(), layout.role.tolist()
    by_definition = sum(
        slow_visible(step[i], role[i], step[j], role[j], layout.queries_meet)
        for i, j in np.ndindex(layout.num_rows, layout.num_rows)
    )
    assert sum(pairs.visible for pairs in found) == by_definition


@every_variant
def test_slabs_of_any_size_find_the_same_pairs(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = visible_pairs(make_layout(variant, 2))
    for size in (1, 50):
        monkeypatch.setattr(training.flops, "_SLAB", size)
        assert visible_pairs(make_layout(variant, 2)) == expected


def test_no_mask_of_a_large_layout_is_larger_than_a_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, whole = [], training.flops.dense_mask

    def watched(*rows: object) -> torch.Tensor:
        mask = whole(*rows)  # type: ignore[arg-type]
        sizes.append(mask.numel())
        return mask

    monkeypatch.setattr(training.flops, "dense_mask", watched)
    layout = METHODS["raster"](single_grid(5, 16, 16), 8, MethodConfig(name="raster"), True)
    (pairs,) = visible_pairs(layout)
    assert len(sizes) > 1
    assert max(sizes) <= 2**19
    assert visible_pairs(layout) == (pairs,)  # kept
    assert pairs.visible == 9 * 9 + sum(range(10, 1289))  # the start sees the prefix, both ways


def test_a_small_raster_generator_counted_by_hand() -> None:
    """24 cells, class condition: 24 rows (the start and all codes but the last), 24 places.

    A block of width 16 has these multiplications for a row, SwiGLU's hidden width being
    16 * 4 * 2 / 3 = 42 and so 64:

        queries, keys, values   16 * 48 =  768
        output                  16 * 16 =  256
        gate, up                16 * 128 = 2048
        down                    64 * 16 = 1024      4096 in all

    and a head of 16 codes has 16 * 16 = 256 for a place. Of rows, each sees itself and all before.
    """
    generator = make_generator(BY_NAME["raster"], "class")
    forward = 24 * 2 * (2 * 4096 + 256)
    assert forward == 405_504
    pairs = 24 * 25 // 2
    assert training_flops(generator, GRID) == ClipFlops(
        matmul=3 * forward,
        attention=3 * 2 * 4 * pairs * 16,
        dense_attention=3 * 2 * 4 * 24 * 24 * 16,
    )
    assert training_flops(generator, GRID).total == 1_216_512 + 115_200


def test_the_benchmarks_video_in_raster_order_counted_by_hand() -> None:
    """5 x 16 x 16 cells of 4,096 codes, 12 blocks of width 512, plain MLP: 12 * 512^2 a row."""
    grid = single_grid(5, 16, 16)
    with torch.device("meta"):
        generator = Generator(
            ModelConfig(width=512, depth=12, heads=8, block=BlockConfig(mlp="gelu_tanh")),
            MethodConfig(name="raster"),
            grid,
            Vocabulary("class", ("a",), length=1),
            4096,
            0,
        )
    (pairs,) = visible_pairs(generator.layout_for(grid))
    assert pairs == (1280, 1280, 1280 * 1281 // 2)
    flops = training_flops(generator, grid)
    assert flops.matmul == 6 * 1280 * (12 * 12 * 512**2 + 512 * 4096) == 306_016_419_840
    assert flops.attention == 3 * 12 * 4 * 819_840 * 512 == 60_445_163_520
    assert flops.dense_attention == 3 * 12 * 4 * 1_638_400 * 512


def test_queries_of_arpg_pay_for_the_second_stack_only() -> None:
    """24 contexts through one block and into shared keys and values, 24 queries through the other.

    A block is 4096 multiplications a row (see raster), of which 512 make keys and values: those of
    the second stack are made from contexts. Contexts see 24 * 25 / 2 pairs; query k sees the
    contexts of the steps before it, of which there are k.
    """
    flops = training_flops(make_generator(BY_NAME["arpg"], "none"), GRID)
    assert flops.matmul == 3 * 24 * 2 * (4096 + 512 + (4096 - 512) + 256)
    assert flops.attention == 3 * 4 * 16 * (300 + 300)
    assert flops.dense_attention == 3 * 4 * 16 * (24 * 24 + 24 * 24)


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA H200", 989.5e12, 67e12),
        ("NVIDIA H100 PCIe", 756.5e12, 51.2e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("A100-SXM4-40GB", 312e12, 19.5e12),  # older drivers
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
    ],
)
def test_peaks_are_the_published_ones(
    name: str, bfloat16: float, float32: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    device = torch.device("cuda", 1)
    found = [peak_flops(device, each) for each in (BF16, FLOAT32)]
    assert found == pytest.approx([bfloat16, float32])
    assert peak_flops(device, torch.float64) is None


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H300",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Tesla T4",
        "",
    ],
)
def test_an_unknown_device_has_no_peak(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), BF16) is None


def test_a_cpu_has_a_speed_that_is_measured_and_no_peak() -> None:
    device = torch.device("cpu")
    assert peak_flops(device, FLOAT32) is None
    measured = measured_matmul_flops(device, FLOAT32, seconds=0.0)
    assert math.isfinite(measured)
    assert 1e8 < measured < 1e15
