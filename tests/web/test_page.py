"""The page in a real browser: talk, look, force, fork, by mouse and by keys."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import axe_playwright_python
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect

import tinyllm.api.house.web
from tests.api.support import Live, live, scripted_model
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.served import ServedModel
from tinyllm.fetch.progress import progress
from tinyllm.inside.look import packed
from tinyllm.inside.reopen import draws_of, prompt_of
from tinyllm.inside.trace_file import load_trace, rows_of
from tinyllm.vision.image import read_image

AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
DROP = """() => {
    const data = new DataTransfer();
    const png = Uint8Array.from(atob("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42"
        + "mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="), (c) => c.charCodeAt(0));
    data.items.add(new File([png], "dot.png", { type: "image/png" }));
    document.getElementById("talk").dispatchEvent(
        new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""
ANSWER = "Tokyo is 東京 🙂 <img onerror=alert(1)>"


def talk(page: Page) -> None:
    page.locator("[aria-label=Temperature]").fill("0")  # the script's likeliest, to the letter
    page.fill("#text", "Where is 東京?")
    page.press("#text", "Enter")
    expect(page.locator(".message.assistant")).to_have_text(ANSWER)
    expect(page.locator("#view table")).to_be_visible()


def test_it_answers_and_a_models_markup_stays_text(page: Page) -> None:
    talk(page)
    assert not page.locator("#messages img").count()
    tile = page.locator("#strip .tile", has_text="東").first
    assert "|" in (tile.locator(".bytes").text_content() or "")  # one character, several tokens


@pytest.mark.parametrize(
    ("view", "there"),
    [
        ("why", ".unit, .note"),
        ("attention", ".heads canvas"),
        ("depths", "table.lens tbody tr"),
        ("cache", ".page-of-cache"),
        ("image", ".note"),
        ("number", "pre"),
        ("worlds", "select"),
    ],
)
def test_each_view(page: Page, view: str, there: str) -> None:
    talk(page)
    page.click(f"[data-view={view}]")
    expect(page.locator("#view[aria-busy=false]")).to_be_visible()
    expect(page.locator(f"#view {there.split(',')[0]}").first).to_be_attached()


def test_sliders_work_without_asking_the_server(page: Page) -> None:
    talk(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    cut = page.locator("#view tr.cut")
    page.locator("[aria-label=Temperature]").fill("1")
    page.locator("[aria-label^=Top-k]").fill("0")
    page.locator("[aria-label=Top-p]").fill("1")
    expect(cut).to_have_count(0)
    page.locator("[aria-label=Temperature]").fill("0")
    expect(cut).not_to_have_count(0)
    expect(cut.first.locator("td").last).to_have_text("temperature")
    assert not asked


def test_keys_move_choose_and_take(page: Page) -> None:
    talk(page)
    page.locator("#view").focus()
    selected = page.locator("#strip [aria-selected=true]")
    first = selected.get_attribute("data-position")
    page.keyboard.press("ArrowRight")
    expect(selected).not_to_have_attribute("data-position", str(first))
    expect(page.locator("#view[aria-busy=false]")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".strip-name")).to_have_count(2)
    expect(page.locator(".tile.differs")).to_have_count(2)  # in both ways


def test_any_text_can_be_forced(page: Page) -> None:
    talk(page)
    page.fill("[aria-label='Any text to force here']", "Kyoto")
    page.click("text=Force")
    expect(page.locator(".message.assistant")).to_contain_text("Kyoto")


@pytest.mark.long
def test_parts_are_taken_out_one_by_one(page: Page) -> None:
    talk(page)
    page.click("[data-view=attention]")
    page.click("text=Take parts out")
    expect(page.locator(".owed")).to_contain_text("The tallest bar")


def test_a_lesson_from_its_address(page: Page, server: Live) -> None:
    page.goto(f"{server.url}/?lesson=depths")
    page.click("#guide button:has-text('Ask')")
    page.click("#guide button:has-text('Next')")
    expect(page.locator("#guide")).to_contain_text("2 of 3")
    expect(page.locator("table.lens")).to_be_visible()


@pytest.mark.long
@pytest.mark.parametrize(
    "lesson", ["tokens", "temperature", "attention", "cache", "depths", "break"]
)
def test_a_whole_lesson(page: Page, server: Live, lesson: str) -> None:
    page.goto(f"{server.url}/?lesson={lesson}")
    guide = page.locator("#guide")
    steps = int((guide.locator("b").text_content() or "").split(" of ")[1])
    for step in range(1, steps + 1):
        expect(guide).to_contain_text(f"{step} of {steps}")
        ask = guide.locator("button:has-text('Ask')")
        if ask.count():
            ask.click()
            expect(page.locator("#strip .tile:not(.prompt)").first).to_be_visible()
            expect(page.locator("#stop")).to_be_hidden()
        expect(page.locator("#view[aria-busy=false]")).to_be_visible()
        if step < steps:
            guide.locator("button:has-text('Next')").click()
    assert not guide.locator("button:has-text('Next')").count()
    guide.locator("button:has-text('Close')").click()
    expect(guide).to_be_hidden()


@pytest.mark.long
def test_a_view_is_added_by_the_ten_lines_of_the_readme(page: Page, server: Live) -> None:
    web = Path(tinyllm.api.house.web.__file__).parents[1] / "web"
    view = (web / "README.md").read_text(encoding="utf-8").split("```js\n")[1].split("```")[0]
    assert len(view.splitlines()) <= 10
    main = (web / "main.js").read_text(encoding="utf-8")
    main = 'import * as entropy from "./views/entropy.js";\n' + main
    main = main.replace("const VIEWS = { ", "const VIEWS = { entropy, ")
    changed = {"main.js": main, "entropy.js": view}
    page.route(
        re.compile("/web/(main|views/entropy).js"),
        lambda route: route.fulfill(
            body=changed[route.request.url.rpartition("/")[2]], content_type="text/javascript"
        ),
    )
    page.reload()
    expect(page.locator("#status")).to_contain_text("ready")
    talk(page)
    page.click("#tabs button:has-text('Entropy')")
    expect(page.locator("#view")).to_contain_text("nats")


@pytest.mark.long
def test_a_link_opens_the_same_state(page: Page, browser: Browser) -> None:
    talk(page)
    page.click("#share")
    address = page.evaluate("location.href")
    tiles = page.locator("#strip .tile").all_text_contents()
    other = browser.new_page()
    other.goto(address)
    expect(other.locator("#strip .tile")).to_have_count(len(tiles))
    expect(other.locator("#messages")).to_contain_text("Opened from a link")
    other.wait_for_function(
        "[...document.querySelectorAll('#strip .tile')].some((t) => t.style.cssText.match(/[1-9]/))"
    )
    tints = [
        tab.locator("#strip .tile").evaluate_all("(all) => all.map((t) => t.style.cssText)")
        for tab in (page, other)
    ]
    assert tints[0] == tints[1] and len(set(tints[0])) > 2
    other.locator("#strip .tile:not(.prompt)").nth(2).click()
    expect(other.locator("#view")).to_contain_text("A token of the answer, which wasn't drawn")
    other.locator("#strip .tile.prompt").nth(2).click()
    expect(other.locator("#view")).to_contain_text("A token of the prompt")
    other.fill("#text", "And who are you?")
    other.press("#text", "Enter")
    expect(other.locator(".message.assistant")).to_have_text(ANSWER)
    expect(other.locator("#messages")).not_to_contain_text("Opened from a link")
    other.close()


@pytest.mark.long
def test_a_part_is_broken_beside_the_whole(page: Page) -> None:
    talk(page)
    page.click("[data-view=worlds]")
    page.select_option("[aria-label='Part to break']", "softmax-scale")
    page.click("#view button:has-text('Break it')")
    expect(page.locator(".strip-name").first).to_be_visible()
    expect(page.locator("#stop")).to_be_hidden(timeout=30_000)
    page.click("#view button:has-text('Look there')")
    expect(page.locator(".beside section")).to_have_count(2)
    expect(page.locator(".beside")).to_contain_text("with softmax-scale broken")
    expect(page.locator("#strip .tile.differs")).to_have_count(1)


@pytest.mark.long
def test_a_probability_opens_down_to_a_weight(page: Page) -> None:
    talk(page)
    page.click("#view tbody td .opens >> nth=0")
    pre = page.locator("#view pre")
    expect(pre).to_contain_text("p_raw")
    page.click("#view td button.opens >> nth=0")
    expect(pre).to_contain_text("unembedding")
    page.click("#view td button.opens >> nth=0")
    expect(pre).to_contain_text("ln_final.hook_normalized")
    expect(page.locator("[aria-label=Number]")).to_have_value("ln_final.hook_normalized")
    page.click("#view button:has-text('Back to logits')")
    expect(pre).to_contain_text("unembedding")


@pytest.mark.long
def test_a_question_is_asked_again_and_edited(page: Page) -> None:
    talk(page)
    page.click("#retry")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".message")).to_have_count(2)
    page.click(".edit")
    expect(page.locator("#text")).to_have_value("Where is 東京?")
    expect(page.locator(".message")).to_have_count(0)


@pytest.mark.long
def test_an_image_is_dropped_shown_and_taken_away(page: Page) -> None:
    page.evaluate(DROP)
    expect(page.locator("#pictures img")).to_have_count(1)
    page.click("#pictures button:has-text('Remove')")
    expect(page.locator("#pictures img")).to_have_count(0)


def use(page: Page, model: str) -> None:
    page.click("#whom summary")
    with page.expect_response(f"**/v1/models/{model}"):
        page.select_option("#model", model)
    page.click("#whom summary")


PASTE = """() => {
    const data = new DataTransfer();
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 40;
    canvas.getContext("2d").fillRect(5, 5, 20, 20);
    const bytes = Uint8Array.from(atob(canvas.toDataURL().split(",")[1]), (c) => c.charCodeAt(0));
    data.items.add(new File([bytes], "clip.png", { type: "image/png" }));
    document.getElementById("text").dispatchEvent(
        new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
}"""


@pytest.mark.long
def test_a_conversation_with_images_is_seen_looked_into_and_forked(
    page: Page, server: Live, tmp_path: Path
) -> None:
    use(page, "seeing")
    page.evaluate(PASTE)
    expect(page.locator("#pictures img")).to_have_count(1)
    Image.new("RGB", (60, 30), (200, 30, 30)).save(tmp_path / "red.png")
    page.set_input_files("#file", tmp_path / "red.png")
    expect(page.locator("#pictures img")).to_have_count(2)
    talk(page)
    expect(page.locator(".message.user img")).to_have_count(2)
    pictures = page.locator("#strip .picture")
    expect(pictures).to_have_count(2)  # an image's rows are one tile
    pictures.nth(1).click()
    expect(page.locator("#view[aria-busy=false]")).to_be_visible()
    expect(page.locator("#view .seen .patches")).to_have_count(1)
    expect(page.locator("#view tbody tr").first).to_be_visible()
    start = int(pictures.nth(1).get_attribute("data-position") or 0)
    page.keyboard.press("ArrowRight")  # an image is one step
    selected = page.locator("#strip [aria-selected=true]")
    assert int(selected.get_attribute("data-position") or 0) > start + 20
    page.keyboard.press("ArrowLeft")
    expect(selected).to_have_attribute("data-position", str(start))
    page.locator("#strip .tile:not(.prompt)").nth(2).click()
    for view in ("why", "attention", "depths"):
        page.click(f"[data-view={view}]")
        expect(page.locator("#view[aria-busy=false]")).to_be_visible()
        expect(page.locator("#view")).not_to_contain_text("error")
        expect(page.locator("#view table, #view .arcs").first).to_be_visible()
    page.locator("#view").press("f")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator(".strip-name")).to_have_count(2)
    expect(page.locator("#strip .picture")).to_have_count(2)
    with page.expect_download() as waiting:
        page.select_option("#export", "trace")
    trace = load_trace(waiting.value.path())
    where, rows = rows_of(trace)
    assert trace.images and len(trace.images) == 2 and trace.images[1].png
    assert rows is not None and where is not None and len(rows) == len(where)
    assert server.service.models[1].vision is not None
    images = [read_image(tmp_path / "red.png")]
    again = server.service.models[1].vision.around(trace.prompt[start:], images)
    assert again.image_rows is not None
    np.testing.assert_array_equal(again.image_rows, rows[-len(again.image_rows) :])
    page.click("#share")  # a link holds its images
    page.goto(page.evaluate("location.href"))
    page.reload()
    expect(page.locator("#strip .picture")).to_have_count(2)


def attend_to_an_image(page: Page) -> Locator:
    """The attention view behind an image: what it shows of the image."""
    use(page, "seeing")
    page.evaluate(PASTE)
    expect(page.locator("#pictures img")).to_have_count(1)
    talk(page)
    page.locator("#strip .tile:not(.prompt)").nth(2).click()
    page.click("[data-view=attention]")
    expect(page.locator("#view[aria-busy=false] .arcs")).to_be_visible()
    expect(page.locator(".arcs text", has_text="▦")).to_have_count(1)  # all of its rows as one
    return page.locator("#view .looked-at")


@pytest.mark.long
def test_words_that_stand_for_an_image_are_named(page: Page) -> None:
    shown = attend_to_an_image(page)
    expect(shown).to_contain_text("this model is handed words. Most went to")
    expect(shown.locator(".lit")).to_have_count(0)


@pytest.mark.long
def test_an_image_is_lit_where_a_head_looked(page: Page) -> None:
    asked = []

    def in_quarters(route: Route) -> None:
        """Rows as of a model that is handed patches: each stands for a quarter of the image."""
        answer = route.fetch()
        told = answer.json()
        if "places" in told.get("image", {}):
            n = told["image"]["n_rows"]
            quarters = [[x, y, x + 0.5, y + 0.5] for y in (0, 0.5) for x in (0, 0.5)]
            told["image"]["places"] = packed(np.array([quarters[i % 4] for i in range(n)], "f4"))
            asked.append(told["image"])
        route.fulfill(response=answer, json=told)

    page.route("**/v1/look", in_quarters)
    shown = attend_to_an_image(page)
    expect(shown.locator(".lit")).to_have_count(4)
    expect(shown).not_to_contain_text("handed words")
    lit = [float(part.get_attribute("opacity") or 0) for part in shown.locator(".lit").all()]
    assert max(lit) == 0.8 and min(lit) > 0 and len(asked[0]["rows"]) > 4


@pytest.mark.long
def test_a_system_prompt_is_part_of_what_is_asked(page: Page) -> None:
    page.click("#whom summary")
    page.fill("#system", "Answer like a pirate.")
    page.keyboard.press("Tab")
    talk(page)
    expect(page.locator("#strip")).to_contain_text("pirate")


@pytest.mark.long
def test_stop_ends_a_stream_and_keeps_what_came(page: Page, server: Live) -> None:
    assert server.runner is not None
    runner = server.runner
    runner.before = lambda _: time.sleep(0.05)
    runner.say("word " * 60)
    try:
        page.fill("#text", "Go on for long")
        page.press("#text", "Enter")
        tiles = page.locator("#strip .tile:not(.prompt)")
        expect(tiles.nth(3)).to_be_attached()
        page.click("#stop")
        expect(page.locator("#send")).to_be_visible()
        came = tiles.count()
        assert 3 < came < 60
        server.wait_idle()  # the server went no further either
        assert tiles.count() == came
        expect(page.locator("#more")).to_be_enabled()
    finally:
        runner.before = None
        runner.say(ANSWER)


def tab_to(page: Page, what: str) -> None:
    """Press Tab until something that matches has the focus."""
    for _ in range(80):
        if page.evaluate("(what) => document.activeElement.matches(what)", what):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"no Tab leads to {what}")


@pytest.mark.long
def test_a_whole_session_by_keyboard_alone(page: Page) -> None:
    press, tiles = page.keyboard.press, page.locator("#strip .tile:not(.prompt)")
    tab_to(page, "[aria-label=Temperature]")
    press("Home")
    expect(page.locator("[aria-label=Temperature]")).to_have_value("0")
    tab_to(page, "#text")
    page.keyboard.type("Where is 東京?")
    press("Enter")
    expect(page.locator(".message.assistant")).to_have_text(ANSWER)
    tab_to(page, "#strip")
    press("ArrowRight")
    expect(page.locator("#view[aria-busy=false]")).to_be_visible()
    tab_to(page, "[data-view=why]")
    for view in ("attention", "depths", "cache", "image", "number", "worlds"):
        press("ArrowRight")
        expect(page.locator(f"[data-view={view}]")).to_have_attribute("aria-selected", "true")
        expect(page.locator(f"[data-view={view}]")).to_be_focused()
    press("Home")
    expect(page.locator("[data-view=why]")).to_be_focused()
    expect(page.locator("#view tr.chosen")).to_be_visible()
    before = tiles.count()
    press("ArrowDown")
    press("ArrowDown")
    press("Enter")  # another token instead
    expect(page.locator(".strip-name")).to_have_count(2)
    expect(page.locator("#stop")).to_be_hidden()
    page.locator("#strip").focus()
    press("ArrowRight")
    press("Backspace")
    expect(tiles).not_to_have_count(before)
    tab_to(page, "#retry")
    press("Enter")
    expect(page.locator(".strip-name")).to_have_count(1)
    expect(page.locator(".message.assistant")).to_have_text(ANSWER)


def opened(browser: Browser, server: Live) -> Page:
    """The page, where chromium may tell of a refusal on the console."""
    page = browser.new_page()
    page.goto(f"{server.url}/")
    expect(page.locator("#status")).to_contain_text("ready")
    return page


def refuse(page: Page, path: str, status: int, message: str) -> None:
    body = {"error": {"message": message}}
    page.route(f"**{path}", lambda route: route.fulfill(status=status, json=body))


def test_a_refused_message_comes_back(browser: Browser, server: Live) -> None:
    page = opened(browser, server)
    page.evaluate(DROP)
    expect(page.locator("#pictures img")).to_have_count(1)
    page.fill("#text", "What is this?")
    refuse(page, "/v1/tokenize", 400, "This model reads no images.")
    page.press("#text", "Enter")
    expect(page.locator("#status")).to_contain_text("reads no images")
    expect(page.locator("#text")).to_have_value("What is this?")
    expect(page.locator("#pictures img")).to_have_count(1)
    page.close()


def test_a_server_that_went_away_comes_back(browser: Browser, server: Live) -> None:
    page = opened(browser, server)
    talk(page)
    page.route("**/health", lambda route: route.abort())
    page.route("**/v1/**", lambda route: route.abort())
    page.locator("#strip .tile").nth(5).click()
    expect(page.locator("#status")).to_contain_text("can't be reached. This page tries again")
    page.fill("#text", "Are you there?")
    page.press("#text", "Enter")
    expect(page.locator("#text")).to_have_value("Are you there?")  # nothing is lost
    page.unroute("**/v1/**")
    page.unroute("**/health")
    expect(page.locator("#status")).to_contain_text("is back")
    expect(page.locator("#view table")).to_be_visible()  # the look that failed was asked again
    page.press("#text", "Enter")
    expect(page.locator(".message.assistant")).to_have_count(2)
    page.close()


@pytest.mark.long
def test_on_a_phone_arcs_can_be_read_and_an_answer_stays_where_it_is(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    talk(page)
    assert page.evaluate("window.scrollY") == 0  # the cursor moves along the strip alone
    page.click("[data-view=attention]")
    expect(page.locator("#view[aria-busy=false] .arcs")).to_be_visible()
    page.wait_for_function(  # the newest token, where arcs begin, is what is seen
        """() => { const box = document.querySelector(".arcs");
            return box.scrollWidth - box.clientWidth - box.scrollLeft < 2; }"""
    )
    tall = page.evaluate("document.querySelector('.arcs text').getBoundingClientRect().height")
    assert tall >= 9


def test_bytes_that_are_no_character_are_told_apart(page: Page) -> None:
    talk(page)
    shown = page.evaluate(
        """async () => {
            const { pieceText } = await import("/web/dom.js");
            return [["\ufffd", "d7"], ["\ufffd", "f09f"], [" \ufffd", "20e6"], ["a\ufffd", "61c3a9e6"],
                ["\ufffd", "efbfbd"], ["x", "78"], ["\ufffd", ""]]
                .map(([text, bytes]) => pieceText({ text, bytes }));
        }"""  # noqa: E501
    )
    assert shown == ["\\xd7", "\\xf0\\x9f", " \\xe6", "aé\\xe6", "\\xef\\xbf\\xbd", "x", "�"]


@pytest.mark.long
def test_a_trace_is_saved_as_python_reads_it(page: Page) -> None:
    talk(page)
    with page.expect_download() as waiting:
        page.select_option("#export", "trace")
    trace = load_trace(waiting.value.path())
    assert "".join(trace.texts[len(trace.prompt) :]).startswith("Tokyo")
    assert trace.steps and trace.steps[0].candidates
    # And as it goes on: nothing is missing between the prompt and the end, and the draws are known.
    assert trace.tokens == [*trace.prompt, *(step.token for step in trace.steps)]
    assert draws_of(trace.sampling, "sampling", trace.stream).params.temperature == 0
    assert prompt_of(trace).tokens.tolist() == trace.prompt
    assert trace.dtype == "f32" and trace.n_layers
    with page.expect_download() as waiting:
        page.select_option("#export", "page")
    told = waiting.value.path().read_text(encoding="utf-8")
    assert trace.texts[len(trace.prompt)] in told and "&lt;" in told
    assert "<script" not in told and "<img" not in told
    with page.expect_download() as waiting:
        page.select_option("#export", "notebook")
    compile(waiting.value.path().read_text(encoding="utf-8"), "step.py", "exec")


@pytest.mark.parametrize(
    ("status", "told"), [(503, "Nothing is lost"), (429, "Nothing is lost"), (401, "wrong key")]
)
def test_a_full_server_and_a_wrong_key_say_what_to_do(
    browser: Browser, server: Live, status: int, told: str
) -> None:
    page = opened(browser, server)
    refuse(page, "/v1/completions", status, "wrong key" if status == 401 else "full")
    page.fill("#text", "Hello")
    page.press("#text", "Enter")
    expect(page.locator("#status")).to_contain_text(told)
    expect(page.locator("[aria-label='API key']")).to_have_count(int(status == 401))
    page.close()


def test_an_interrupted_stream_keeps_what_came(page: Page) -> None:
    talk(page)
    page.click("#retry")
    expect(page.locator("#send")).to_be_visible()
    page.route("**/v1/completions", lambda route: route.fulfill(
        status=200, content_type="text/event-stream", body=""))  # fmt: skip
    page.click("#more")
    expect(page.locator("#status")).to_contain_text("broke off")
    expect(page.locator("#more")).to_be_enabled()


@pytest.mark.long
@pytest.mark.parametrize(
    "view", ["why", "attention", "depths", "cache", "image", "number", "worlds"]
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, view: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    talk(page)
    page.click(f"[data-view={view}]")
    expect(page.locator("#view[aria-busy=false]")).to_be_visible()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    serious = [(v["id"], [n["html"][:120] for n in v["nodes"][:3]]) for v in found
               if v["impact"] in ("serious", "critical")]  # fmt: skip
    assert not serious


def test_hostile_text_stays_inside(page: Page, server: Live) -> None:
    assert server.runner is not None
    server.runner.say("\u202eevil" + "x" * 300 + "<img src=x onerror=alert(1)>")
    try:
        page.set_viewport_size({"width": 360, "height": 740})
        page.locator("[aria-label=Temperature]").fill("0")
        page.fill("#text", "=" * 10_000)  # few tokens, and nowhere to break a line
        page.press("#text", "Enter")
        expect(page.locator("#send")).to_be_visible(timeout=30_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert not page.locator("#messages img").count()
    finally:
        server.runner.say(ANSWER)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_has_no_sideways_scrolling(page: Page, scheme: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    talk(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.click("text=Two worlds")  # whose choices are long sentences
    choice = page.locator("#view select").last.bounding_box()
    assert choice is not None and choice["x"] + choice["width"] <= 340


def test_how_much_of_a_long_text_has_been_read(page: Page) -> None:
    """Piece by piece, each held up until the bar was seen; known text isn't read again."""
    page.add_init_script(
        """const own = window.fetch;
        window.asked = [];
        window.fetch = async (path, request) => {
            if (path === "/v1/look") {
                window.asked.push(JSON.parse(request.body).position);
                await new Promise((go) => { window.goOn = go; });
            }
            return own(path, request);
        };"""
    )
    page.reload()
    expect(page.locator("#status")).to_contain_text("ready")
    page.fill("#text", "a b c d e " * 120)
    page.press("#text", "Enter")
    reading, bar = page.locator("#reading"), page.locator("#reading progress")
    shown = []
    while True:
        page.wait_for_function("(n) => window.asked.length > n", arg=len(shown))
        shown.append(float(bar.get_attribute("value") or -1))
        total = int(bar.get_attribute("max") or 0)
        expect(reading).to_contain_text(f"{int(shown[-1])} of {total} tokens")
        page.evaluate("window.goOn()")
        if page.evaluate("window.asked.at(-1)") == total:
            break
    assert shown == [0, 240, 480]
    assert page.evaluate("window.asked") == [240, 480, total]
    expect(page.locator("#view[aria-busy=false]")).to_be_visible()
    expect(reading).to_be_hidden()
    page.click("[data-view=depths]")
    page.wait_for_function("(n) => window.asked.length > n", arg=len(shown))
    expect(reading).to_be_hidden()
    page.evaluate("window.goOn()")
    expect(page.locator("table.lens")).to_be_visible()


def test_what_is_said_before_the_first_look_has_come(page: Page) -> None:
    page.add_init_script(
        """const own = window.fetch, held = new Promise((go) => { window.goOn = go; });
        window.fetch = async (path, request) => {
            if (path === "/v1/look") await held;
            return own(path, request);
        };"""
    )
    page.reload()
    expect(page.locator("#status")).to_contain_text("ready")
    view = page.locator("#view")
    expect(view).to_contain_text("Say something")
    page.fill("#text", "Hello")
    page.press("#text", "Enter")
    expect(view).to_contain_text("Looking inside")
    expect(view).not_to_contain_text("Say something")
    page.evaluate("window.goOn()")
    expect(page.locator("#view[aria-busy=false]")).to_be_visible()
    expect(view).not_to_contain_text("Looking inside")


def test_a_server_that_loads_shows_how_far_and_then_the_page(
    browser: Browser, server: Live
) -> None:
    assert server.runner is not None
    runner, may_go_on = server.runner, threading.Event()

    def load() -> list[ServedModel]:
        with progress("fetching weights", in_bytes=True) as report:
            report(25, 100)
            may_go_on.wait(30)
        return [scripted_model(runner.tokenizer, runner)]

    with live(Settings(port=0, access_log="off"), load, wait=False) as slow:
        page = browser.new_page()
        page.goto(f"{slow.url}/")
        status = page.locator("#status")
        expect(status).to_contain_text("fetching: weights")
        expect(status.locator("progress")).to_have_attribute("value", "25")
        may_go_on.set()
        expect(status).to_contain_text("ready")
        page.close()


def test_a_key_is_asked_for(browser: Browser, server: Live) -> None:
    assert server.runner is not None
    runner, tokenizer = server.runner, server.runner.tokenizer
    settings = Settings(port=0, access_log="off", api_key=("secret",))
    with live(settings, lambda: [scripted_model(tokenizer, runner)]) as locked:
        page = browser.new_page()
        page.goto(f"{locked.url}/")
        page.fill("[aria-label='API key']", "secret")
        page.click("text=Use this key")
        expect(page.locator("#status")).to_contain_text("ready")
        page.close()
