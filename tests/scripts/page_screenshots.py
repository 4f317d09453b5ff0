"""Pictures of the page's views, from a server that runs: python -m tests.scripts.page_screenshots

python server.py &
python -m tests.scripts.page_screenshots http://127.0.0.1:8000 FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

PATIENCE = 60_000  # milliseconds: the first look loads the readable model


def main(address: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 820})
        page.goto(f"{address}/")
        expect(page.locator("#status")).to_contain_text("ready", timeout=PATIENCE)
        page.fill("#text", "What is the capital of France?")
        page.press("#text", "Enter")
        expect(page.locator("#view table")).to_be_visible(timeout=PATIENCE)
        for view in ("why", "attention", "depths"):
            page.click(f"[data-view={view}]")
            page.locator("#view[aria-busy=false]").wait_for(timeout=PATIENCE)
            page.screenshot(path=folder / f"{view}.png")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
