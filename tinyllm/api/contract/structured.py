"""Fields that hold an answer to a format: OpenAI's `response_format`, and other servers' names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from tinyllm.api.contract.fields import fail
from tinyllm.api.contract.sampling import SampledRequest
from tinyllm.api.contract.tools import ResponseFormat


class StructuredRequest(SampledRequest):
    """A request whose answer may have to fit a JSON Schema."""

    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | str | None = Field(
        None, description="Another name of response_format: a JSON Schema"
    )
    structured_outputs: dict[str, Any] | None = Field(
        None, description='Another name of response_format: {"json": a JSON Schema}'
    )

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, body: Any) -> Any:
        """`guided_json` and `structured_outputs.json` as the response_format that they are."""
        if not isinstance(body, Mapping):
            return body
        schema, outputs = body.get("guided_json"), body.get("structured_outputs")
        if isinstance(outputs, Mapping):
            for name in outputs.keys() - {"json"}:
                if outputs[name] is not None:
                    raise fail("Only a JSON Schema can be followed", "structured_outputs", name)
            schema = schema or outputs.get("json")
        if schema is None:
            return body
        if body.get("response_format") is not None:
            raise fail("Give either response_format or its other names", "response_format")
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError:
                raise fail("It must be a JSON Schema", "guided_json") from None
        named = {"name": "guided", "schema": schema}
        return {**body, "response_format": {"type": "json_schema", "json_schema": named}}
