"""What the sampling parameters are that a request leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tinyllm.api.contract.dialect import Dialect

# The contract's: nothing but the model's own distribution.
CONTRACT: Mapping[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


@dataclass(frozen=True)
class SamplingDefaults:
    """Of one model.

    model: what its generation_config.json says; flags: what the server was started with.
    """

    model: Mapping[str, float] = field(default_factory=dict)
    flags: Mapping[str, float] = field(default_factory=dict)

    def under(self, dialect: Dialect) -> dict[str, float]:
        """The value of every parameter.

        It is the first that there is: the one that the dialect's own page documents, the model's,
        the flags', the contract's. Flags stand in for what a model doesn't say, since a server may
        hold several models, and each knows best what becomes it.
        """
        return {**CONTRACT, **self.flags, **self.model, **dialect.documented}

    def overruled(self) -> dict[str, float]:
        """Flags that the model's own values leave without effect."""
        return {
            name: value
            for name, value in self.flags.items()
            if self.model.get(name, value) != value
        }


def told(values: Mapping[str, float]) -> str:
    """The temperature, and whatever else does anything: `temperature 0.6, top_p 0.95`."""
    said = {"temperature": values["temperature"]}
    said |= {name: value for name, value in values.items() if value != CONTRACT[name]}
    return ", ".join(f"{name} {value:g}" for name, value in said.items())
