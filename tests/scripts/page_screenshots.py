"""Pictures of the page's views, from a server that runs: python -m tests.scripts.page_screenshots

python server.py &
python -m tests.scripts.page_screenshots http://127.0.0.1:8000 FOLDER

Names of pictures behind the folder make those alone. Whatever the page says on the console is
printed, and ends the script with 1.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, expect, sync_playwright

PATIENCE = 240_000  # milliseconds: the first look loads the readable model
QUESTION = "What is the capital of France?"
DROP = """(png) => {
    const data = new DataTransfer();
    const bytes = Uint8Array.from(atob(png), (c) => c.charCodeAt(0));
    data.items.add(new File([bytes], "a.png", {type: "image/png"}));
    document.getElementById("talk").dispatchEvent(
        new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def main(address: str, folder: Path, wanted: list[str]) -> int:
    """Make the pictures; how many lines the page said on the console."""
    folder.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, make in PICTURES.items():
            if wanted and name not in wanted:
                continue
            page = make(browser, address, said)
            page.screenshot(path=folder / f"{name}.png")
            page.close()
            print(name, flush=True)
    for line in said:
        print(line, file=sys.stderr)
    return len(said)


def opened(
    browser: Browser, address: str, said: list[str], *, path: str = "/", width: int = 1280,
    height: int = 820, dark: bool = False,
) -> Page:  # fmt: skip
    """The page, ready."""
    scheme = "dark" if dark else "light"
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{address}{path}")
    expect(page.locator("#status")).to_contain_text("ready", timeout=PATIENCE)
    return page


def settled(page: Page) -> Page:
    """The page when nothing is going on any more."""
    expect(page.locator("#stop")).to_be_hidden(timeout=PATIENCE)
    page.locator("#view[aria-busy=false]").wait_for(timeout=PATIENCE)
    return page


def asked(page: Page, question: str = QUESTION) -> Page:
    page.locator("[aria-label=Temperature]").fill("0.8")
    page.fill("#text", question)
    page.press("#text", "Enter")
    expect(page.locator("#view table")).to_be_visible(timeout=PATIENCE)
    return settled(page)


def select(page: Page, text: str) -> None:
    """The first tile of the answer that holds a text, or the answer's first."""
    answer = page.locator("#strip .tile:not(.prompt)")
    found = answer.filter(has_text=text)
    (found if found.count() else answer).first.click()
    settled(page)


def view(name: str, **how: object) -> Callable[[Browser, str, list[str]], Page]:
    def make(browser: Browser, address: str, said: list[str]) -> Page:
        page = asked(opened(browser, address, said, **how))  # type: ignore[arg-type]
        select(page, "Paris")
        page.click(f"[data-view={name}]")
        settled(page)
        if how.get("width", 1280) < 800:  # type: ignore[operator]
            page.locator("#tabs").scroll_into_view_if_needed()
            page.evaluate("document.getElementById('strips').scrollIntoView()")
        return page

    return make


def owed(browser: Browser, address: str, said: list[str]) -> Page:
    page = view("attention")(browser, address, said)
    page.click("text=Take parts out")
    expect(page.locator(".owed button")).to_have_count(0, timeout=PATIENCE)
    page.locator(".owed").scroll_into_view_if_needed()
    return page


def explained(browser: Browser, address: str, said: list[str]) -> Page:
    page = view("why")(browser, address, said)
    page.locator("#view tbody td .opens").first.click()
    for _ in range(2):  # a probability, its logit, the row of the unembedding
        settled(page)
        page.locator("#view td button.opens").first.click()
    return settled(page)


def broken(browser: Browser, address: str, said: list[str]) -> Page:
    page = view("worlds")(browser, address, said)
    page.select_option("[aria-label='Part to break']", "softmax-scale")
    page.click("#view button:has-text('Break it')")
    settled(page)
    page.click("#view button:has-text('Look there')")
    expect(page.locator(".beside section")).to_have_count(2, timeout=PATIENCE)
    page.locator(".beside").scroll_into_view_if_needed()
    return settled(page)


def forked(browser: Browser, address: str, said: list[str]) -> Page:
    page = view("why")(browser, address, said)
    page.fill("[aria-label='Any text to force here']", " Lyon")
    page.click("text=Force")
    expect(page.locator(".strip-name")).to_have_count(2, timeout=PATIENCE)
    settled(page)
    page.click("[data-view=worlds]")
    expect(page.locator(".beside section")).to_have_count(2, timeout=PATIENCE)
    return settled(page)


def attended(browser: Browser, address: str, said: list[str]) -> Page:
    page = image(browser, address, said)
    select(page, "red")
    page.click("[data-view=attention]")
    settled(page)
    page.locator(".looked-at").scroll_into_view_if_needed()
    return page


def lesson(browser: Browser, address: str, said: list[str]) -> Page:
    page = opened(browser, address, said, path="/?lesson=depths")
    page.click("#guide button:has-text('Ask')")
    expect(page.locator("table.lens")).to_be_visible(timeout=PATIENCE)
    page.click("#guide button:has-text('Next')")
    return settled(page)


def image(browser: Browser, address: str, said: list[str]) -> Page:
    page = opened(browser, address, said)
    sees = page.locator("#model option", has_text="vision")
    if sees.count():
        page.click("#whom summary")
        page.select_option("#model", sees.first.text_content() or "")
        page.click("#whom summary")
    page.evaluate(DROP, drawn())
    expect(page.locator("#pictures img")).to_have_count(1)
    asked(page, "What is in this picture?")
    page.click("#strip .picture")
    expect(page.locator("#view .seen")).to_be_visible(timeout=PATIENCE)
    return settled(page)


def drawn() -> str:
    """A red circle and a blue square, as a PNG in base64."""
    picture = Image.new("RGB", (448, 448), (222, 228, 214))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((50, 60, 220, 230), fill=(190, 60, 50))
    draw.rectangle((260, 250, 400, 390), fill=(60, 90, 170))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode("ascii")


PICTURES: dict[str, Callable[[Browser, str, list[str]], Page]] = {
    "why": view("why"),
    "attention": view("attention"),
    "owed": owed,
    "depths": view("depths"),
    "cache": view("cache"),
    "number": explained,
    "worlds": forked,
    "broken": broken,
    "image": image,
    "attended": attended,
    "lesson": lesson,
    "narrow": view("why", width=360, height=740),
    "dark": view("attention", dark=True),
}


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])))
