"""The page in a real browser: talk, look, force, fork, by mouse and by keys."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.api.support import Live, live, scripted_model
from tinyllm.api.house.settings import Settings

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
        ("number", "pre"),
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
    expect(page.locator(".tile.differs")).to_have_count(1)


def test_any_text_can_be_forced(page: Page) -> None:
    talk(page)
    page.fill("[aria-label='Any text to force here']", "Kyoto")
    page.click("text=Force")
    expect(page.locator(".message.assistant")).to_contain_text("Kyoto")


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


def test_a_link_opens_the_same_state(page: Page, browser: Browser) -> None:
    talk(page)
    page.click("#share")
    address = page.evaluate("location.href")
    tiles = page.locator("#strip .tile").all_text_contents()
    other = browser.new_page()
    other.goto(address)
    expect(other.locator("#strip .tile")).to_have_count(len(tiles))
    other.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_has_no_sideways_scrolling(page: Page, scheme: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    talk(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


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
