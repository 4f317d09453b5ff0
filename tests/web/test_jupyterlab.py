"""The notebooks as JupyterLab shows them, light and dark: numbers hang right, all text can be read.

JupyterLab's own style wins over attributes such as `align`, and a notebook that was just fetched
isn't trusted, so its HTML is cleaned before it is shown; only a browser tells what is left of it.

Run with `-m jupyterlab`; TINYLLM_JUPYTER is the `jupyter` program of an environment that has
JupyterLab (`pip install jupyterlab`: nothing of tinyllm needs it, so it isn't among the extras).
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.sync_api import Browser

from notebooks.run import notebooks

pytestmark = pytest.mark.jupyterlab

THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
READABLE = 4.5  # contrast of text and ground: WCAG 2.2, 1.4.3
# Every cell of every table in an output: its text, where it hangs, and its contrast.
CELLS = """() => {
    const parts = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const light = (colour) =>
        [0.2126, 0.7152, 0.0722].reduce((sum, c, i) => sum + c * linear(colour[i] / 255), 0);
    const over = ([r, g, b, a = 1], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
    const ground = (node) => {
        const layers = [];
        for (let at = node; at; at = at.parentElement) {
            layers.unshift(parts(getComputedStyle(at).backgroundColor));
        }
        const paint = (under, layer) => (layer.length ? over(layer, under) : under);
        return layers.reduce(paint, [255, 255, 255]);
    };
    const shown = ["td", "th", "pre"].map((tag) => `.jp-OutputArea-output ${tag}`);
    const nodes = [...document.querySelectorAll([...shown, ".jp-RenderedMarkdown p"].join())];
    return nodes.filter((node) => node.textContent.trim()).map((node) => {
        const style = getComputedStyle(node), back = ground(node);
        const [a, b] = [light(over(parts(style.color), back)), light(back)].sort((x, y) => y - x);
        return { tag: node.tagName, text: node.textContent.trim(), align: style.textAlign,
            contrast: (a + 0.05) / (b + 0.05), wanted: node.style.textAlign };
    });
}"""


def all_cells() -> list[Any]:
    """The cells of all notebooks, one behind another, as they are committed: opened at once."""
    cells: list[Any] = []
    for path in notebooks():
        for cell in nbformat.read(path, as_version=4).cells:  # type: ignore[no-untyped-call]
            cells.append({**cell, "id": f"cell-{len(cells):03}"})
    return [nbformat.from_dict(cell) for cell in cells]  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module", params=THEMES)
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A JupyterLab over a copy of the notebooks, in a theme: the theme, and the address."""
    program = os.environ.get("TINYLLM_JUPYTER") or shutil.which("jupyter-lab")
    assert program, "TINYLLM_JUPYTER must name the jupyter-lab of an environment that has it"
    home = tmp_path_factory.mktemp(request.param)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    whole = nbformat.v4.new_notebook(  # type: ignore[no-untyped-call]
        cells=all_cells(), metadata={"kernelspec": kernel}
    )
    (home / "notebooks").mkdir()
    nbformat.write(whole, home / "notebooks" / "all.ipynb")  # type: ignore[no-untyped-call]
    settings = home / "settings" / "@jupyterlab"
    for plugin, values in {
        "apputils-extension/themes": {"theme": THEMES[request.param]},
        "apputils-extension/notification": {"fetchNews": "false"},
        "notebook-extension/tracker": {
            "windowingMode": "none"
        },  # every cell, not only those in sight
    }.items():
        path = settings / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [program, "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
             "--IdentityProvider.token=", "--ServerApp.password=", "--ServerApp.port_retries=0",
             f"--ServerApp.root_dir={home / 'notebooks'}",
             f"--LabApp.user_settings_dir={home / 'settings'}"],
            stdout=log, stderr=log,
            env={**os.environ, "HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config")},
        )  # fmt: skip
    try:
        _wait_until_up(f"{url}/api/status", process, home / "log")
        yield request.param, url
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_numbers_hang_right_and_text_can_be_read(browser: Browser, lab: tuple[str, str]) -> None:
    theme, url = lab
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(f"{url}/doc/tree/all.ipynb?reset")
    wait = functools.partial(page.wait_for_function, timeout=120_000)
    wait(
        "n => document.querySelectorAll('.jp-Notebook .jp-Cell').length >= n", arg=len(all_cells())
    )
    wait(
        "n => document.querySelectorAll('.jp-RenderedMarkdown h1').length >= n",
        arg=len(notebooks()),
    )
    assert page.evaluate("document.body.dataset.jpThemeLight") == str(theme == "light").lower()
    cells = page.evaluate(CELLS)
    if shots := os.environ.get("TINYLLM_SHOTS"):
        outputs = page.locator(".jp-OutputArea-output table, .jp-OutputArea-output img")
        for i in range(outputs.count()):
            outputs.nth(i).scroll_into_view_if_needed()
            outputs.nth(i).screenshot(path=Path(shots) / f"{theme}-{i:02}.png")
    page.close()
    dim = [c for c in cells if c["contrast"] < READABLE]
    assert not dim, dim[:5]
    # JupyterLab hangs right what doesn't say how it wants to hang, words too.
    crooked = [c for c in cells if c["tag"] in ("TD", "TH") and c["wanted"] != c["align"]]
    assert not crooked, crooked[:5]
    # What the files ask for is still there when JupyterLab has cleaned what it doesn't trust.
    asked = sum(
        len(re.findall(r"<td[^>]*text-align: right", html))
        for cell in all_cells()
        for output in cell.get("outputs", [])
        for html in [output.get("data", {}).get("text/html", "")]
    )
    assert asked > 100
    assert sum(c["tag"] == "TD" and c["align"] == "right" for c in cells) >= asked
