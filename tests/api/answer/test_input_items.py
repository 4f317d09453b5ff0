"""GET /responses/{id}/input_items: what a response was made from, a page at a time."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.api.support import MODEL, PREFIXES, Live, O

CALL = {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"}
ITEMS: list[Any] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "input_text", "text": "What time is it?"}]},
    CALL,
    {"type": "function_call_output", "call_id": "c1", "output": "12:00"},
    {"role": "assistant", "content": "Noon."},
    {"role": "user", "content": "Thanks."},
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_openai_client_lists_them(scripted: Live, prefix: str) -> None:
    with openai.OpenAI(base_url=scripted.url + prefix, api_key="none", max_retries=0) as api:
        kept = api.responses.create(model=MODEL, input=ITEMS, instructions="Not listed.")
        for order, limit in (("asc", 2), ("desc", 20)):
            pages = api.responses.input_items.list(kept.id, order=order, limit=limit)  # type: ignore[arg-type]
            items = list(pages)
            if order == "desc":
                items.reverse()
            assert [item.type for item in items] == [
                "message", "message", "function_call", "function_call_output", "message", "message",
            ]  # fmt: skip
            assert items[1].content[0].text == "What time is it?"  # type: ignore[union-attr]
            assert items[2].arguments == "{}" and items[3].output == "12:00"  # type: ignore[union-attr]
            assert items[4].role == "assistant"  # type: ignore[union-attr]
            assert len({item.id for item in items}) == len(items)
        # A response that goes on was made from the whole conversation.
        more = api.responses.create(model=MODEL, input="More", previous_response_id=kept.id)
        assert len(list(api.responses.input_items.list(more.id, limit=3))) == len(ITEMS) + 2


def test_what_it_cannot_list_is_named(scripted: Live) -> None:
    kept = scripted.post(f"{O}/responses", {"model": MODEL, "input": "Hi"}).json()["id"]
    address = f"{O}/responses/{kept}/input_items"
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=gone"):
        refused = scripted.http.get(f"{address}?{query}")
        assert refused.status_code == 400, query
        assert refused.json()["error"]["param"] == query.partition("=")[0]
    assert scripted.http.get(f"{O}/responses/gone/input_items").status_code == 404
    (item,) = scripted.http.get(address).json()["data"]
    assert item["content"] == [{"type": "input_text", "text": "Hi"}]
    past = scripted.http.get(f"{address}?after={item['id']}").json()
    assert past == {"object": "list", "data": [], "first_id": None, "last_id": None,
                    "has_more": False}  # fmt: skip
