"""The two dialects of one route: what differs between them, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """Where a row of the contract says that S and O differ, the difference is a field here."""

    name: str
    prefix: str  # of the paths
    id_prefix: str  # of completion ids
    schema_status: int  # what a request that breaks the schema gets
    truncate_len: int | None  # default of prompt_truncate_len
    documented: Mapping[str, float]  # sampling defaults that its page promises, of every model
    author: re.Pattern[str]  # what messages[].name may be
    whole_created: bool  # `created` as an integer; S shows a float of whole seconds
    eager_role: bool  # the role has a chunk of its own; else it is in the first piece
    usage_always: bool  # in streams; else only with stream_options.include_usage

    def created(self, now: float) -> float | int:
        return int(now) if self.whole_created else float(int(now))


S = Dialect(
    name="S",
    prefix="/api/v3/inference",
    id_prefix="nugen-",
    schema_status=422,
    truncate_len=1500,
    documented={"temperature": 1.0},
    author=re.compile(r"[A-Za-z0-9_]{1,64}"),
    whole_created=False,
    eager_role=False,
    usage_always=True,
)

O = Dialect(  # noqa: E741
    name="O",
    prefix="/v1",
    id_prefix="chatcmpl-",
    schema_status=400,
    truncate_len=None,
    documented={},
    author=re.compile(r"[A-Za-z0-9_-]{1,64}"),
    whole_created=True,
    eager_role=True,
    usage_always=False,
)

DIALECTS = (S, O)


def dialect_of(path: str) -> Dialect | None:
    """Whose path this is; None for those that belong to neither."""
    return next((d for d in DIALECTS if path.startswith(d.prefix + "/")), None)
