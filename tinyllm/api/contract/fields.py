"""What requests are built from: kinds of numbers, open models, and how a broken rule is told.

Requests are pydantic models in strict mode (no "5" for 5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from tinyllm.api.contract.errors import ApiError, Loc, invalid, sentence
from tinyllm.api.limits import MAX_INT

SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
Read = TypeVar("Read", bound=BaseModel)


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 5.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
AnyInt = Annotated[int, Field(ge=-MAX_INT, le=MAX_INT), WHOLE]
Natural = Annotated[int, Field(ge=0, le=MAX_INT), WHOLE]
Positive = Annotated[int, Field(ge=1, le=MAX_INT), WHOLE]
Number = Annotated[float, Field(allow_inf_nan=False)]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def fail(message: str, *loc: str | int) -> PydanticCustomError:
    """A rule over several fields; the place travels in the context, see `_error`."""
    return PydanticCustomError("value_error", "{reason}", {"reason": message, "at": list(loc)})


class Open(BaseModel):
    """Keys that are not in the schema are kept, so that they can be named to the caller.

    What checks a body is built when the first of its kind comes: most kinds never do.
    """

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=(), defer_build=True)


def read(kind: type[Read], body: Mapping[str, Any]) -> Read:
    """`body` as a `kind`, or the ApiError of the first rule that it breaks."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _error(error) from None


def _error(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    at = first.get("ctx", {}).get("at", [])
    loc: Loc = tuple(k for k in (*first["loc"], *at) if not str(k).startswith("~"))
    return invalid(sentence(first["msg"]), *loc, kind=first["type"])


def unknown_fields(model: BaseModel, prefix: str = "") -> Iterator[str]:
    """The paths of every key that the schema doesn't know, depth first."""
    for name in model.model_extra or ():
        yield prefix + name
    for name, value in model:
        if name in (model.model_extra or ()):
            continue
        if isinstance(value, BaseModel):
            yield from unknown_fields(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from unknown_fields(item, f"{prefix}{name}[{i}].")
