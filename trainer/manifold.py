"""Which points lie among others.

Shape suffixes: N and M points, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1024


def within(point_ND: Tensor, among_MD: Tensor, k: int) -> Tensor:
    """`[N]` float64, 1 where a point is no farther from one of `among` than that one's k-th nearest fellow is.

    Source: Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, NeurIPS 2019, equation 1.
    """
    among = among_MD.double()
    # itself is the nearest of all
    reach_M = torch.cat([_apart(block, among).kthvalue(k + 1, dim=1).values for block in among.split(_BLOCK)])
    inside = [(_apart(block, among) <= reach_M).any(1) for block in point_ND.double().split(_BLOCK)]
    return torch.cat(inside).double()


def _apart(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    # differences themselves: by inner products a point would not be at distance 0 from itself
    return torch.cdist(x_ND, y_MD, compute_mode="donot_use_mm_for_euclid_dist")
