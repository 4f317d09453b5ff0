"""The OpenAPI document is true: a fuzzer that reads it finds no 5xx and nothing outside of it."""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.support import MODEL, PREFIXES, Live
from tinyllm.api.contract.chat_completions import ChatRequest
from tinyllm.api.contract.openapi import document

CHECKS = (
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_headers_conformance, response_schema_conformance,
)  # fmt: skip


def test_every_route_is_in_the_document(scripted: Live) -> None:
    paths = scripted.http.get("/openapi.json").json()["paths"]
    app = scripted.server.config.loaded_app
    while not hasattr(app, "routes"):
        app = app.app
    routes = {route.path.replace(":path", "") for route in app.routes}
    assert routes == set(paths) | {"/web/{name}"}  # the page's own files


def test_the_request_is_the_models_own_schema() -> None:
    schemas = document(authenticated=False)["components"]["schemas"]
    for dialect in ("S", "O"):
        assert set(schemas[f"ChatRequest{dialect}"]["properties"]) == set(ChatRequest.model_fields)
    text = json.dumps(schemas)
    assert "[A-Za-z0-9_]{1,64}$" in text and "[A-Za-z0-9_-]{1,64}$" in text


def test_authentication_is_described_when_there_are_keys() -> None:
    locked = document(authenticated=True)
    assert locked["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "401" in locked["paths"]["/v1/models"]["get"]["responses"]
    assert "401" not in locked["paths"]["/health"]["get"]["responses"]


@pytest.mark.parametrize("examples", [4, pytest.param(12, marks=pytest.mark.long)])
def test_fuzzer_finds_nothing_outside_the_document(scripted: Live, examples: int) -> None:
    """A short run; `tests/scripts/fuzz_api.py` is the long one."""
    schema = schemathesis.openapi.from_url(f"{scripted.url}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=examples, deadline=None, derandomize=True, database=None,
            phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @schema_given(operation)
        def fuzz(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = MODEL  # else most of the run ends at "not found"
            case.call_and_validate(checks=CHECKS)

        fuzz()


def schema_given(operation: object):  # type: ignore[no-untyped-def]
    from hypothesis import given

    return given(case=operation.as_strategy())  # type: ignore[attr-defined]


def test_both_prefixes_offer_the_same(scripted: Live) -> None:
    paths = scripted.http.get("/openapi.json").json()["paths"]
    for path in paths:
        if path.startswith(PREFIXES[0]):
            assert path.replace(PREFIXES[0], PREFIXES[1]) in paths


LOCAL = {"min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "guided_json",
         "structured_outputs", "response_format"}  # fmt: skip


@pytest.mark.parametrize("name", ["ChatRequest", "CompletionRequest", "ResponsesRequest"])
def test_local_servers_parameters_are_described_on_every_shape(name: str) -> None:
    fields = document(authenticated=False)["components"]["schemas"][name]["properties"]
    assert fields.keys() >= LOCAL
    template = {"chat_template_kwargs", "continue_final_message", "add_generation_prompt"}
    assert (fields.keys() >= template) == (name != "CompletionRequest")
