"""The regions of a forward pass by number: what its threads do together, in this order.

The embedding's, then these of each layer, then two for the logits. A call may leave some out.
"""

from __future__ import annotations

LAYER_REGIONS = 14
(ATTN_NORM, QKV, HEADS_NORM, ATTEND, MERGE, OUT, OUT_ADD, MLP_NORM, ROUTE, CHOOSE, GATHER, GATE_UP,
 DOWN, DOWN_ADD) = range(LAYER_REGIONS)  # fmt: skip


def n_regions(n_layers: int) -> int:
    """The most regions that a call of `forward.run` goes through."""
    return 1 + LAYER_REGIONS * n_layers + 2
