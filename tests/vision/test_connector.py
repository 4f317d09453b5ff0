"""The connector: encoder states → reading → caption → rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny_connector import FACTS, write_connector
from tinyllm.errors import WeightsError
from tinyllm.vision.connector import (
    KINDS,
    LEFT,
    NUMBERS,
    RIGHT,
    WHOLE,
    Connector,
    Reading,
    how_many,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CARRIED = Path(__file__).parents[2] / "weights" / "smollm2-135m-vision"
DIM = 12
TABLE = np.random.default_rng(1).standard_normal((200, DIM)).astype(np.float32)


def ids_of(text: str) -> list[int]:
    return list(text.encode())[:200]


def states(seed: int = 0) -> dict[int, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {layer: rng.standard_normal((1 + 16 * 16, 8)).astype(np.float32) for layer in (1, 2)}


@pytest.fixture
def connector(tmp_path: Path) -> Connector:
    path = write_connector(tmp_path / "connector.safetensors", DIM, caption_rows=40)
    return Connector.load(path, TABLE, ids_of)


def reading(kind: str, names: dict[int, str], **more: object) -> Reading:
    """A reading that is sure of itself."""
    known, colours = tuple(FACTS["names"]), tuple(FACTS["colours"])

    def sure(of: tuple[str, ...], what: str, n: int = 0) -> NDArray[np.float32]:
        return np.eye(n or len(of), dtype=np.float32)[of.index(what)]

    return Reading(
        names=known,
        colours=colours,
        n_shapes=2,
        kind=sure(KINDS, kind),
        number=sure(NUMBERS, str(more.get("number", "one"))),
        name=np.stack([sure(known, names.get(slot, "dog")) for slot in range(3)]),
        colour=np.stack([sure(colours, str(more.get("colour", "red")))] * 3),
        background=sure((*colours, "none"), str(more.get("background", "white"))),
        attention=np.full((4, 64), 1 / 64, np.float32),
        centres=np.zeros((16, 16), np.float32),
        floor=float(str(more.get("floor", 0.0))),
    )


def test_probabilities_sum_to_one(connector: Connector) -> None:
    found = connector.read(states())
    assert found.name.shape == (3, 5) and found.colour.shape == (3, 3)
    assert found.background.shape == (4,) and found.attention.shape == (4, 64)
    for array in (found.kind, found.number, found.name, found.colour, found.background):
        np.testing.assert_allclose(array.sum(-1), 1, atol=1e-6)
        assert array.dtype == np.float32


def test_as_many_things_as_there_are_peaks() -> None:
    centres = np.zeros((16, 16), np.float32)
    for y, x in ((0, 0), (5, 7), (5, 10), (15, 3)):  # one at a corner, one at an edge
        centres[y, x] = 1
    centres[5, 8] = 0.9  # beside a higher one: none of its own
    np.testing.assert_array_equal(how_many(centres), np.eye(7)[4])
    centres[:] = 0
    np.testing.assert_array_equal(how_many(centres), np.eye(7)[0])
    centres[2, 2], centres[9, 9] = 0.5, 0.8
    np.testing.assert_allclose(how_many(centres)[:3], [0.1, 0.5, 0.4], atol=1e-6)
    centres[::2, ::2] = 1
    np.testing.assert_array_equal(how_many(centres), np.eye(7)[6])  # as many as it has words for


def test_layers_are_those_of_the_class_tokens_and_of_the_patches(connector: Connector) -> None:
    assert connector.layers == (1, 2)


@pytest.mark.parametrize(
    ("found", "caption"),
    [
        (reading("one", {WHOLE: "dog"}), "a dog on a white background."),
        (reading("one", {WHOLE: "apple"}, background="none"), "an apple."),
        (reading("one", {WHOLE: "star"}, colour="green"), "a green star on a white background."),
        (reading("two", {LEFT: "socks", RIGHT: "star"}),
         "socks on the left and a red star on the right."),
        (reading("two", {LEFT: "socks", RIGHT: "socks"}, background="none"),
         "two pictures of socks."),
        (reading("several", {WHOLE: "dog"}, number="four", background="red"),
         "four pictures of a dog on a red background."),
        (reading("several", {WHOLE: "dog"}, number="one", background="none"),
         "two pictures of a dog."),
        (reading("nothing", {WHOLE: "dog"}), "nothing that I can recognise."),
    ],
)  # fmt: skip
def test_captions(found: Reading, caption: str) -> None:
    assert found.caption == caption


def test_what_is_less_likely_than_the_floor_is_not_named() -> None:
    unsure = reading("one", {}, floor=0.5)
    unsure.name[:] = 0.2
    assert unsure.caption == "nothing that I can recognise."
    unsure = reading("two", {RIGHT: "apple"}, floor=0.5)
    unsure.name[LEFT] = 0.2
    assert unsure.caption == "something that I can't name on the left and an apple on the right."


def test_the_likeliest_names_come_first(connector: Connector) -> None:
    found = connector.read(states())
    top = found.top(WHOLE, 3)
    assert [p for _, p in top] == sorted(found.name[WHOLE].tolist(), reverse=True)[:3]
    assert top[0][0] == found.names[int(found.name[WHOLE].argmax())]


def test_rows_are_the_captions_words_between_the_trained_rows(connector: Connector) -> None:
    caption = "a dog on a white background."
    rows = connector.rows(caption)
    assert rows.shape == (connector.n_rows, DIM) == (3 + 40 + 2, DIM)
    ids = ids_of(f" {caption}")
    np.testing.assert_array_equal(rows[-2 - len(ids) : -2], TABLE[ids])
    np.testing.assert_array_equal(rows[-5 - len(ids) : -2 - len(ids)], connector.w["rows.before"])
    np.testing.assert_array_equal(rows[-2:], connector.w["rows.after"])
    assert (rows[: -5 - len(ids)] == connector.w["rows.pad"]).all()


def test_only_two_things_are_looked_at_again(connector: Connector) -> None:
    assert connector.halves(reading("one", {})) == {}
    two = reading("two", {LEFT: "dog", RIGHT: "apple"})
    two.attention[RIGHT] = np.eye(64, dtype=np.float32)[8 * 7 + 5]  # at the very bottom
    squares = connector.halves(two)
    assert squares == {LEFT: (0.0, 0.25, 0.5, 0.75), RIGHT: (0.5, 0.5, 1.0, 1.0)}


def test_both_looks_count(connector: Connector) -> None:
    two, near = reading("two", {}), states(5)
    two.name[:] = 0.2
    found = connector.look_closer(two, {LEFT: near})
    np.testing.assert_allclose(found.name[LEFT], connector.read(near).name[WHOLE], atol=1e-6)
    np.testing.assert_array_equal(found.name[RIGHT], two.name[RIGHT])
    sure = reading("two", {LEFT: "apple"})
    assert connector.look_closer(sure, {LEFT: near}).top(LEFT, 1)[0][0] == "apple"


def test_rows_of_states_are_those_of_their_reading(connector: Connector) -> None:
    given = states(3)
    found = connector.read(given)
    np.testing.assert_array_equal(connector.rows(given), connector.rows(found))
    np.testing.assert_array_equal(connector.rows(given), connector.rows(found.caption))


def test_a_long_caption_is_cut(connector: Connector) -> None:
    assert connector.rows("a dog " * 50).shape == (connector.n_rows, DIM)


def test_a_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "connector.safetensors"
    with pytest.raises(WeightsError, match=r"connector\.safetensors"):
        Connector.load(path, TABLE, ids_of)
    write_connector(path, DIM + 1)
    with pytest.raises(WeightsError, match=r"rows\.before has shape \(3, 13\)"):
        Connector.load(path, TABLE, ids_of)
    path.write_bytes(b"not tensors")
    with pytest.raises(WeightsError, match="take it from the repository again"):
        Connector.load(path, TABLE, ids_of)


def test_the_carried_connector_reads_as_it_was_trained_to() -> None:
    """Golden: what the trained weights say of seeded states, and of whom they know."""
    facts = json.loads((GOLDEN / "connector.json").read_text(encoding="utf-8"))
    path = CARRIED / "connector.safetensors"
    connector = Connector.load(path, np.zeros((49152, 576), np.float32), lambda text: [0])
    assert path.stat().st_size <= 16e6
    assert len(connector.names) == 1080 and connector.n_rows == facts["n_rows"]
    assert connector.layers == (4, 9, 10, 11)
    rng = np.random.default_rng(0)
    given = {n: rng.normal(0, 2, (257, 384)).astype(np.float32) for n in connector.layers}
    found = connector.read(given)
    assert [name for name, _ in found.top()] == facts["top"]
    for name in ("kind", "number", "background"):
        np.testing.assert_allclose(getattr(found, name), facts[name], atol=1e-5)
