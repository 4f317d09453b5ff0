"""A readable forward with compiled products, for what is filled in ahead of a look.

A text's keys and values before the token that is looked at are nine tenths products of 40 rows and
a layer's matrices. All else is the readable model's own, and so is the look's forward itself.
"""

from __future__ import annotations

from tinyllm.kernels import plain_linear
from tinyllm.model import Model
from tinyllm.runner import Array


class Filling(Model):
    """`Model` over the same weights, with the products of `kernels.plain_linear`."""

    def linear(self, name: str, x: Array) -> Array:
        """As `Model.linear`, but for rounding."""
        y = plain_linear.linear(x, self.weights[f"{name}.weight"])
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias
