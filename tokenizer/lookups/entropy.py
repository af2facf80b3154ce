"""A loss for codes that are sure and evenly used: the mean entropy of each vector's choice minus
the entropy of the mean choice (Jansen et al. 2020; Yu et al. 2023, MAGVIT-v2, equation 5).

The choice of a vector is the softmax of minus its squared distances to the codes over a
temperature. The mean choice is that of the vectors of all ranks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tokenizer.lookups.ranks import mean_over_ranks

FLOOR = 1e-5
"""Added inside the logarithm of the mean choice, as LlamaGen does."""


def entropy_over_codes(logits: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """The loss from the logits of every code: n x k numbers are held."""
    log_share = logits.log_softmax(dim=-1)
    share = log_share.exp()
    of_each = -(share * log_share).sum(dim=-1).mean()
    return of_each - _entropy_of_mean(mean_over_ranks(share.mean(dim=0), len(logits)))


def entropy_over_bits(logits: Float[Tensor, "n d"], group: int) -> Float[Tensor, ""]:
    """The loss from the logits of the bits of binary codes, never holding 2^d numbers.

    Signs are independent given a vector, so the first term is a sum over bits. The entropy of the
    mean choice is taken over groups of `group` bits and summed, an upper bound that is exact with
    one group of all bits; with `group` 1 it is BSQ's closed form (arXiv 2406.07548, section 3.2).
    """
    size = logits.abs()
    of_each = (functional.softplus(-size) + size * torch.sigmoid(-size)).sum(dim=-1).mean()
    joints = [_joint(part) for part in logits.split(group, dim=-1)]
    whole = mean_over_ranks(torch.cat(joints), len(logits)).split([len(each) for each in joints])
    of_mean = [_entropy_of_mean(each) for each in whole]
    return of_each - torch.stack(of_mean).sum()


def _joint(logits: Float[Tensor, "n g"]) -> Float[Tensor, " k"]:
    """The mean over vectors of the distribution of all 2^g combinations of bits."""
    share = torch.ones_like(logits[:, :1])
    for bit in torch.sigmoid(logits).unbind(dim=-1):
        both = torch.stack([1 - bit, bit], dim=-1)
        share = (share[:, :, None] * both[:, None]).flatten(1)
    return share.mean(dim=0)


def _entropy_of_mean(share: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    return -(share * (share + FLOOR).log()).sum()
