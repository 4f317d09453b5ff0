"""The table of endpoints is all there is: routes, document and page agree with it."""

from __future__ import annotations

import pytest

from tests.api.page import PAGE, TABLES, block
from tests.api.support import Live
from tinyllm.api.contract.endpoints import ENDPOINTS, Endpoint
from tinyllm.api.house.routes import Api


@pytest.mark.parametrize("row", ENDPOINTS, ids=lambda row: row.name)
def test_each_row_is_answered_and_documented(scripted: Live, row: Endpoint) -> None:
    assert callable(getattr(Api, row.name))
    document = scripted.http.get("/openapi.json").json()
    for dialect, path in row.paths():
        operation = document["paths"][path][row.method.lower()]
        assert operation["operationId"] == (f"{row.name}_{dialect}" if dialect else row.name)
        assert operation["summary"] == row.summary


def test_other_methods_are_refused_by_the_names_of_those_that_work(scripted: Live) -> None:
    refused = scripted.http.put("/v1/sessions/x")
    assert refused.status_code == 405
    assert {m.strip() for m in refused.headers["allow"].split(",")} == {"GET", "HEAD", "DELETE"}


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_the_tables_of_today(name: str) -> None:
    _, table, _ = block(name, PAGE.read_text(encoding="utf-8"))
    assert table == TABLES[name](), "renew it: python -m tests.api.page"
