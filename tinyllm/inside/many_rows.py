"""A readable forward with compiled products, for rows of many tokens.

What is filled in ahead of a look, a text's keys and values before its token, is nine tenths
products of 40 rows and a layer's matrices; a logit lens is one of a row a depth and the vocabulary.
Tokens that are looked at share a pass over the weights (`together.py`), so none of their bits may
hang on how many they are. All else is the readable model's own.
"""

from __future__ import annotations

from tinyllm.kernels import plain_linear
from tinyllm.model import Model
from tinyllm.runner import Array


class ManyRows(Model):
    """`Model` over the same weights, with the products of `kernels.plain_rows`."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.config, model.weights)

    def product(self, x: Array, weight: Array) -> Array:
        """As `Model.product`, but for rounding."""
        return plain_linear.linear(x, weight)


class RowByRow(Model):
    """`Model` over the same weights; each row has the same bits whatever rows stand beside it."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.config, model.weights)

    def product(self, x: Array, weight: Array) -> Array:
        """As `Model.product`, but for rounding."""
        return plain_linear.row_by_row(x, weight)
