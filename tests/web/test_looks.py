"""What the page asks of /look: broken parts, what was drawn from, every number explained."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.support import PREFIXES, Live
from tests.tiny import CONFIG
from tinyllm.inside.lab import possible

TOKENS = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 260, 3575, 314, 7042]


def look(server: Live, prefix: str = "/v1", **more: Any) -> dict[str, Any]:
    body = {"model": "scripted", "tokens": TOKENS, "position": 12, "n_prompt": 10,
            "want": {"candidates": 5}, **more}  # fmt: skip
    answer = server.post(f"{prefix}/look", body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_broken_part_is_that_looks_alone(server: Live, prefix: str) -> None:
    whole = look(server, prefix)
    for name in possible(CONFIG):
        assert look(server, prefix, **{"break": name})["broken"] == name
    broken = look(server, prefix, **{"break": "softmax-scale"})
    assert broken["logprob"] != whole["logprob"]
    assert look(server, prefix) == whole and "broken" not in whole


def test_a_wrong_name_or_prompt_is_named(server: Live) -> None:
    body = {"model": "scripted", "tokens": TOKENS, "position": 5, "want": {}, "break": "rope"}
    error = server.post("/v1/look", body).json()["error"]
    assert error["param"] == "break" and "rope-pairing" in error["message"]
    error = server.post("/v1/look", {**body, "break": "activation", "n_prompt": 9}).json()["error"]
    assert error["param"] == "n_prompt"


def test_replay_error_is_the_gap_to_what_was_drawn_from(server: Live) -> None:
    found = look(server)
    assert "replay_error" not in found
    drawn = [{"token": c["token"], "logit": c["logit"] + 0.25 * i}
             for i, c in enumerate(found["candidates"][:3])]  # fmt: skip
    got = look(server, want={"candidates": 1, "drawn": drawn})
    assert got["replay_error"] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("name", ["logits", "p_raw", "temperature", "top_k", "top_p", "p"])
def test_what_is_drawn_from_is_explained_and_each_term_opens_another(
    server: Live, name: str
) -> None:
    more = {"temperature": 0.7, "top_k": 30, "top_p": 0.9}
    token = look(server)["candidates"][0]["token"]
    for _ in range(12):  # down to a weight, where nothing opens
        found = look(server, want={"explain": {"name": name, "dim": token}}, **more)["explain"]
        assert found["recomputed"] == pytest.approx(found["value"], rel=1e-3, abs=1e-4)
        assert found["source"].partition(":")[0].endswith(".py") and found["line"]
        opens = [t["opens"] for t in found["terms"] if t["opens"]]
        if not opens or name.startswith("ln_final"):
            break
        name, token = opens[0]["name"], opens[0].get("dim", token)
    assert name.startswith("ln_final")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_model_says_what_a_page_needs_to_know(server: Live, prefix: str) -> None:
    told = server.http.get(f"{prefix}/models/scripted").json()["inside"]
    assert told["breakages"] == {name: one.what for name, one in possible(CONFIG).items()}
    assert told["n_layers"] and told["n_heads"] and told["dtype"] == "f32"
    assert "inside" not in server.http.get(f"{prefix}/models").json()["data"][0]


@pytest.mark.parametrize(("name", "last"), [("logits", False), ("p", True)])
def test_the_terms_lead_from_what_is_drawn_to_the_embedding(
    server: Live, name: str, last: bool
) -> None:
    more = {"temperature": 0.7, "top_k": 30, "top_p": 0.9}
    number: dict[str, Any] = {"name": name, "dim": look(server)["candidates"][0]["token"]}
    names = []
    for _ in range(60):
        found = look(server, want={"explain": number}, **more)["explain"]
        names.append(found["name"])
        opens = [term["opens"] for term in found["terms"] if term["opens"]]
        if not opens:
            break
        number = opens[-1 if last else 0]
    assert not opens and found["tensor"] == "model.embed_tokens.weight"
    assert "ln_final.hook_normalized" in names and "logits" in names
