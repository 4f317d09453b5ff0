"""The page's door, its files, and what looks are refused for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.support import MODEL, PREFIXES, Live
from tinyllm.api.house import web


def test_the_page_is_for_browsers_and_the_map_for_programs(scripted: Live) -> None:
    page = scripted.http.get("/", headers={"Accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in page.headers
    told = scripted.http.get("/", headers={"Accept": "application/json"}).json()
    assert told["openapi"] == "/openapi.json" and not told["needs_key"]


def test_only_the_pages_own_files_are_served(scripted: Live) -> None:
    files = ["main.js", "style.css", "views/why.js"]
    assert all(scripted.http.get(f"/web/{name}").status_code == 200 for name in files)
    for name in ("README.md", "../house/web.py", "%2e%2e/house/web.py", "views", "nothing.js"):
        assert scripted.http.get(f"/web/{name}").status_code == 404


def test_the_page_is_small(scripted: Live) -> None:
    """First paint is to take under 200 kB in all; this is every view of it, loaded or not."""
    index = scripted.http.get("/", headers={"Accept": "text/html"})
    root = Path(web.__file__).parents[1] / "web"
    names = [
        p.relative_to(root).as_posix()
        for p in root.rglob("*.*")
        if p.suffix not in (".md", ".html")
    ]
    assert "main.js" in names and "views/worlds.js" in names
    sizes = [len(scripted.http.get(f"/web/{name}").content) for name in names]
    assert len(index.content) + sum(sizes) < 120_000


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("change", "names"),
    [({"position": 3}, "position"), ({"position": 0}, "position"), ({"tokens": [1]}, "tokens"),
     ({"want": {"causal": [{"part": "all", "layer": 0}]}}, "causal"),
     ({"want": {"lens": 21}}, "lens"), ({"temperature": 3}, "temperature")],
)  # fmt: skip
def test_a_faulty_look_is_named(scripted: Live, prefix: str, change: dict, names: str) -> None:  # type: ignore[type-arg]
    body = {"model": MODEL, "tokens": [1, 2, 3], "position": 2, "want": {}, **change}
    answer = scripted.post(f"{prefix}/look", body)
    assert answer.status_code in (400, 422) and names in answer.json()["error"]["param"]


def test_tokens_come_with_their_bytes(scripted: Live) -> None:
    told = scripted.post("/v1/tokenize", {"model": MODEL, "text": "東", "pieces": True}).json()
    assert bytes.fromhex("".join(p["bytes"] for p in told["pieces"])).decode() == "東"
    again = scripted.post(
        "/v1/detokenize", {"model": MODEL, "tokens": told["tokens"], "pieces": True}
    )
    assert again.json()["pieces"] == told["pieces"]
