"""Layouts for `regard.blocks`: sparse patterns, each exact for what it allows."""

import torch
from torch import Tensor

from regard.arguments import check_arguments, check_least


@check_arguments
def big_bird(blocks: int, local: int = 1, first: int = 1, random: int = 2, seed: int = 0) -> Tensor:
    """Blocks that see their neighbors, the first ones and a few at random; the first see and are seen by all.

    Args:
        blocks: along queries and keys.
        local: neighbors on either side.
        first: global blocks at the beginning.
        random: others for each block, drawn without repetition.
        seed: of the drawing, which leaves torch's generator alone.

    Returns:
        bool `[blocks, blocks]`, for `regard.blocks(layout, size)`.

    Source: Zaheer et al. 2020, section 2.
    """
    check_least("big_bird", 1, blocks=blocks)
    check_least("big_bird", 0, local=local, first=first, random=random)
    positions = torch.arange(blocks)
    layout = (positions[:, None] - positions).abs() <= local
    layout[:first], layout[:, :first] = True, True
    if random:
        draw = torch.Generator().manual_seed(seed % 2**63)
        chances = torch.rand(blocks, blocks, generator=draw).masked_fill(layout, -1)
        values, drawn = chances.topk(min(random, blocks), -1)
        layout.scatter_(-1, drawn, layout.gather(-1, drawn) | (values >= 0))
    return layout


@check_arguments
def strided(blocks: int, local: int = 1, stride: int = 4) -> Tensor:
    """Blocks that see their neighbors and every `stride`-th block of all.

    Source: Child et al. 2019, section 4.2 (with `regard.causal()` beside it, their strided pattern by blocks).
    """
    check_least("strided", 1, blocks=blocks, stride=stride)
    check_least("strided", 0, local=local)
    positions = torch.arange(blocks)
    return ((positions[:, None] - positions).abs() <= local) | ((positions + 1) % stride == 0)
