"""Fields that hold an answer to a format: OpenAI's `response_format`, and other servers' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from tinyllm.api.contract.errors import Loc
from tinyllm.api.contract.fields import fail
from tinyllm.api.contract.sampling import SampledRequest
from tinyllm.api.contract.strict_json import parse_inner
from tinyllm.api.contract.tools import ResponseFormat

SCHEMA_PLACE: Loc = ("response_format", "json_schema", "schema")

# Other servers' ways to say what an answer must be, that aren't a schema.
NOT_HELD = ("guided_regex", "guided_choice", "guided_grammar", "grammar")


class StructuredRequest(SampledRequest):
    """A request whose answer may have to fit a JSON Schema."""

    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | str | None = Field(
        None, description="Another name of response_format: a JSON Schema"
    )
    json_schema: dict[str, Any] | None = Field(
        None, description="Another name of response_format: a JSON Schema"
    )
    structured_outputs: dict[str, Any] | None = Field(
        None, description='Another name of response_format: {"json": a JSON Schema}'
    )

    _schema_place: Loc = PrivateAttr(SCHEMA_PLACE)

    @property
    def schema_place(self) -> Loc:
        """Where the answer's schema was sent; its first key is the field that was sent."""
        return self._schema_place

    @model_validator(mode="wrap")
    @classmethod
    def _other_names(
        cls, body: Any, read: ModelWrapValidatorHandler[StructuredRequest]
    ) -> StructuredRequest:
        """Other servers' names of a schema are read as the response_format that they are."""
        if not isinstance(body, Mapping) or (given := _by_another_name(body)) is None:
            return read(body)
        place, schema = given
        named = {"name": "guided", "schema": schema}
        request = read({**body, "response_format": {"type": "json_schema", "json_schema": named}})
        request._schema_place = place
        return request


def _by_another_name(body: Mapping[str, Any]) -> tuple[Loc, Mapping[str, Any]] | None:
    """A schema that was sent by another name, behind its place.

    What else other servers can hold an answer to (a choice, an expression, a grammar) is refused:
    an answer that is anything at all would look like one that was held to it.
    """
    for name in NOT_HELD:
        if body.get(name) is not None:
            raise fail("Only a JSON Schema can be followed", name)
    given: dict[tuple[str, ...], Any] = {
        (name,): body[name] for name in ("guided_json", "json_schema") if body.get(name) is not None
    }
    outputs, format = body.get("structured_outputs"), body.get("response_format")
    if isinstance(outputs, Mapping):
        for name in outputs.keys() - {"json"}:
            if outputs[name] is not None:
                raise fail("Only a JSON Schema can be followed", "structured_outputs", name)
        if outputs.get("json") is not None:
            given["structured_outputs", "json"] = outputs["json"]
    match format:
        case {"type": "json_object", "schema": Mapping() as own} if not given:
            given["response_format", "schema"] = own  # as llama-server has it
            format = None
    if not given:
        return None
    (place, schema), *others = given.items()
    if format is not None or others:
        last = others[-1][0] if others else ("response_format",)
        raise fail("Give either response_format or one of its other names", *last)
    if isinstance(schema, str):
        try:
            schema = parse_inner(schema)
        except ValueError:
            schema = None
    if not isinstance(schema, Mapping):
        raise fail("It must be a JSON Schema, an object", *place)
    return place, schema
