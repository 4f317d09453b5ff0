"""SmolVLM's family against the reference: ids, rows and logits of a seeded small one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tinyllm
from tests.smolvlm_folder import CHATS, CONFIG, write_smolvlm
from tests.vision_models import picture
from tinyllm.errors import ConfigError, ImageError, TinyllmError, WeightsError
from tinyllm.lm import LM
from tinyllm.vision.prompt import ImagePrompts
from tinyllm.vision.smolvlm import PROJECTION, SmolVLM, pixel_shuffle

GOLDEN = Path(__file__).parents[1] / "golden" / "smolvlm.npz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("smolvlm")
    write_smolvlm(folder, weights_folder)
    return folder


@pytest.fixture(scope="module")
def lm(folder: Path) -> LM:
    return tinyllm.load(folder)


@pytest.mark.parametrize("name", CHATS)
def test_ids_and_logits_are_the_references(name: str, lm: LM) -> None:
    messages, sizes = CHATS[name]
    prompt = lm.prompt(messages, [picture(*size) for size in sizes])
    logits = lm.model.forward(
        prompt.tokens,
        lm.model.new_cache(len(prompt.tokens)),
        image_positions=prompt.image_positions,
        image_rows=prompt.image_rows,
    )
    with np.load(GOLDEN) as golden:
        assert prompt.tokens.tolist() == golden[f"{name}/ids"].tolist()
        assert np.abs(logits[-12:, ::97] - golden[f"{name}/logits"]).max() <= 1e-4


@pytest.mark.reference
@pytest.mark.parametrize("name", CHATS)
def test_all_logits_are_the_live_references(name: str, lm: LM) -> None:
    from tests.golden.make_smolvlm import reference_inputs, reference_logits

    messages, sizes = CHATS[name]
    inputs = reference_inputs(lm.folder, messages, sizes)
    prompt = lm.prompt(messages, [picture(*size) for size in sizes])
    assert prompt.tokens.tolist() == inputs["input_ids"][0].tolist()
    logits = lm.model.forward(
        prompt.tokens,
        lm.model.new_cache(len(prompt.tokens)),
        image_positions=prompt.image_positions,
        image_rows=prompt.image_rows,
    )
    assert np.abs(logits - reference_logits(lm.folder, inputs)).max() <= 1e-4


def test_a_session_steps_rewinds_and_forks_over_images(lm: LM) -> None:
    messages, sizes = CHATS["two turns"]
    images = [picture(*size) for size in sizes]
    session = lm.session(messages, images=images, temperature=0)
    tokens = [session.step().token for _ in range(6)]
    session.rewind(4)
    twin = session.fork()
    assert [session.step().token for _ in range(4)] == tokens[2:]
    assert [twin.step().token for _ in range(4)] == tokens[2:]
    whole = lm.generate(messages, images=images, max_tokens=6, temperature=0)
    assert whole.tokens[:6] == tokens[: len(whole.tokens)]
    # And in one go, over prompt and completion.
    prompt = lm.prompt(messages, images)
    logits = lm.model.forward(
        [*prompt.tokens.tolist(), *tokens[:-1]],
        lm.model.new_cache(len(prompt.tokens) + 5),
        image_positions=prompt.image_positions,
        image_rows=prompt.image_rows,
    )
    assert logits[-6:].argmax(-1).tolist() == tokens


def test_an_image_is_laid_out_in_tiles(lm: LM) -> None:
    vision = lm.vision
    assert vision is not None
    assert isinstance(vision.embedder, SmolVLM)
    text = lm.tokenizer.decode(vision.embedder.layout(2, 1))
    image = "<image>" * 16
    assert text == (
        f"<fake_token_around_image><row_1_col_1>{image}\n"
        f"<fake_token_around_image><row_2_col_1>{image}\n"
        f"\n<fake_token_around_image><global-img>{image}<fake_token_around_image>"
    )
    assert lm.tokenizer.decode(vision.embedder.layout(0, 0)).startswith(
        "<fake_token_around_image><g"
    )


def test_prompts_name_images_by_content(lm: LM) -> None:
    ask = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]
    one, other = picture(64, 64), picture(64, 65)
    same = lm.prompt(ask, [one, one]).match_ids()
    assert np.array_equal(same, lm.prompt(ask, [one.copy(), one]).match_ids())
    mixed = lm.prompt(ask, [one, other]).match_ids()
    shared = int(np.argmax(same != mixed))
    keys = lm.prompt(ask, [one, one]).image_keys
    assert keys is not None and (keys < 0).all()
    # The first image is shared, the second is not, though its token ids begin alike.
    n_rows = len(keys) // 2
    assert (same[:shared] < 0).sum() == n_rows
    assert len(set(keys[:n_rows].tolist())) == n_rows


def test_a_users_text_can_not_become_an_image(lm: LM) -> None:
    image = picture(20, 20)
    text = "look: <image> and <fake_token_around_image><global-img><row_1_col_1>"
    ask = [{"role": "user", "content": [{"type": "text", "text": text}, {"type": "image"}]}]
    prompt = lm.prompt(ask, [image])
    assert prompt.image_positions is not None
    layout = lm.vision.encode(image).layout  # type: ignore[union-attr]
    assert len(prompt.image_positions) == layout.count(CONFIG["image_token_id"])
    assert prompt.tokens.tolist().count(layout[0]) == layout.count(layout[0])
    assert text in lm.tokenizer.decode(prompt.tokens.tolist())


def test_a_plain_string_reaches_a_template_of_parts(lm: LM) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello there"}]}]
    plain = [{"role": "user", "content": "Hello there"}]
    assert lm.encode_prompt(plain) == lm.encode_prompt(parts)
    assert "Hello there" in lm.tokenizer.decode(lm.encode_prompt(plain))


def test_text_becomes_a_turn_behind_its_images(lm: LM) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    image = picture(30, 30)
    expected = lm.prompt([{"role": "user", "content": parts}], [image])
    assert np.array_equal(lm.prompt("What?", [image]).tokens, expected.tokens)
    assert isinstance(lm.chat("What?", images=[image], max_tokens=3), str)


def test_images_that_do_not_fit_the_messages(lm: LM, weights_folder: Path) -> None:
    ask = [{"role": "user", "content": [{"type": "image"}]}]
    with pytest.raises(ImageError, match="1 places for images, not 2"):
        lm.prompt(ask, [picture(9, 9)] * 2)
    with pytest.raises(ImageError, match="pixels must be"):
        lm.prompt(ask, [np.zeros((4, 4), np.uint8)])
    with pytest.raises(ImageError, match=r"nowhere\.png can't be read"):
        lm.prompt(ask, ["nowhere.png"])
    with pytest.raises(TypeError, match="not ids"):
        lm.prompt([1, 2], [picture(9, 9)])
    with pytest.raises(ImageError, match="reads text alone"):
        tinyllm.load(weights_folder).prompt(ask, [picture(9, 9)])


def test_encoded_images_are_kept_within_a_bound(lm: LM) -> None:
    vision = lm.vision
    assert vision is not None
    calls = []

    class Counting:
        image_token = row_token = vision.embedder.image_token
        around, whole = "", False

        def encode(self, image: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
            calls.append(image.shape)
            return (vision.image_id,) * 10, np.full((10, 24), len(calls), np.float32)

    small = ImagePrompts(Counting(), lm.tokenizer, cache_bytes=2 * 960)
    first, second, third = (picture(n, n) for n in (5, 6, 7))
    rows = small.encode(first).rows
    assert small.encode(first.copy()).rows is rows and len(calls) == 1
    small.encode(second)
    small.encode(first)  # used again, so the second is the oldest now
    small.encode(third)
    assert small.kept_bytes == 2 * 960
    assert small.encode(first).rows is rows and len(calls) == 3
    small.encode(second)
    assert len(calls) == 4
    # The same bytes in another shape are another image.
    assert small.encode(first.reshape(1, 25, 3)).rows is not rows
    tiny = ImagePrompts(Counting(), lm.tokenizer, cache_bytes=959)
    tiny.encode(first)
    assert tiny.kept_bytes == 0


def test_pixel_shuffle_by_hand() -> None:
    grid = np.arange(16, dtype=np.float32).reshape(16, 1)  # 4 × 4 patches of one element
    shuffled = pixel_shuffle(grid, 2)
    assert shuffled.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"scale_factor": "two"}, "scale_factor"),
        ({"scale_factor": 3}, "scale_factor"),
        ({"text_config": None}, "text_config"),
        ({"text_config": {"model_type": "gemma"}}, "text_config.*model_type"),
        ({"vision_config": 1}, "vision_config"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_named(
    change: dict[str, object], named: str, folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(TinyllmError, match=named):
        _ = tinyllm.load(tmp_path).vision


def test_a_projection_that_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    path.unlink()
    save_file(whole | {PROJECTION: np.zeros((3, 3), np.float32)}, path)
    with pytest.raises(WeightsError, match=r"proj\.weight has shape \(3, 3\)"):
        _ = tinyllm.load(tmp_path).vision
    save_file({k: v for k, v in whole.items() if k != PROJECTION}, path)
    with pytest.raises(WeightsError, match=r"proj\.weight .* is missing"):
        _ = tinyllm.load(tmp_path).vision


def test_a_tokenizer_without_image_tokens_is_refused(
    folder: Path, weights_folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to(weights_folder / "tokenizer.json")
    with pytest.raises((ImageError, ConfigError), match="no control token <image>"):
        _ = tinyllm.load(tmp_path).vision


def test_rows_stand_for_the_parts_of_the_image_that_they_were_made_from(lm: LM) -> None:
    vision = lm.vision
    assert vision is not None
    image = picture(60, 90)
    seen, rows = vision.seen(image)
    assert len(seen.places) == len(rows)
    assert seen.parts[-1] == (0, 0, 1, 1) and len(rows) % len(seen.parts) == 0
    a_tile = len(rows) // len(seen.parts)
    for square, start in zip(seen.parts, range(0, len(rows), a_tile), strict=True):
        areas = [(r - x) * (b - y) for x, y, r, b in seen.places[start : start + a_tile]]
        assert sum(areas) == pytest.approx((square[2] - square[0]) * (square[3] - square[1]))
    # Paint one row's part of the first square: the other rows of other squares stay as they were.
    left, top, right, bottom = seen.places[0]
    painted = image.copy()
    height, width = image.shape[:2]
    painted[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = 0
    changed = np.abs(vision.seen(painted)[1] - rows).max(axis=1)
    assert changed[0] > 0 and (len(seen.parts) < 3 or not changed[a_tile : 2 * a_tile].any())


def test_ids_take_their_images_where_the_layout_stands(lm: LM) -> None:
    vision = lm.vision
    assert vision is not None
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]
    images = [picture(60, 90), picture(30, 30)]
    made = vision.prompt(messages, images)
    again = vision.around([*made.tokens.tolist(), 7], images)
    assert again.images == made.images and (again.match_ids()[:-1] == made.match_ids()).all()
    first = again.first(made.images[0].stop)
    assert first.images == made.images[:1] and first.image_rows is not None
    assert len(first.image_rows) == len(vision.encode(images[0]).rows)
    assert again.first(1).image_rows is None
    with pytest.raises(ImageError, match="image 0 has no place"):
        vision.around([1, 2], images)
