"""What the page costs: bytes, first paint, frames while tokens stream in, and looks beside streams.

    python server.py &
    python -m tests.load.page http://127.0.0.1:8000

Tokens come from a stand-in for the server's stream, so that their pace is the one that is asked
for; looks and the streams beside them are the server's own. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import threading
import time
from typing import Any

import httpx
from playwright.sync_api import Page, expect, sync_playwright

from tests.load.__main__ import percentiles

PATIENCE = 120_000  # milliseconds
# The page's own requests, but a completion's stream: tokens at `pace` a second, `count` of them.
STAND_IN = """() => {
    const own = window.fetch;
    window.standIn = { pace: 200, count: 1000 };
    window.fetch = (path, request) => {
        if (path !== "/v1/completions") return own(path, request);
        const { pace, count } = window.standIn;
        const write = new TextEncoder();
        let sent = 0, begun = performance.now();
        const body = new ReadableStream({ pull: (to) => new Promise((next) => setTimeout(() => {
            const due = Math.min(count, Math.floor((performance.now() - begun) * pace / 1000));
            for (; sent < due; sent++) {
                const step = { token: 260, text: " the", logprob: -3 * Math.random(), candidates: [] };
                to.enqueue(write.encode(`data: ${JSON.stringify({ choices: [{ trace: { steps: [step] } }] })}\\n\\n`));
            }
            if (sent === count) { to.enqueue(write.encode("data: [DONE]\\n\\n")); to.close(); }
            next();
        }, 5)) }, { highWaterMark: 0 });
        return Promise.resolve(new Response(body, { headers: { "Content-Type": "text/event-stream" } }));
    };
    window.frames = [];
    let before = 0;
    const tick = (now) => { if (before) window.frames.push(now - before); before = now; requestAnimationFrame(tick); };
    requestAnimationFrame(tick);
}"""  # noqa: E501


def page_figures(address: str) -> None:
    """Bytes, paint and frames, in a headless chromium."""
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        paints = []
        for _ in range(5):
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            page.goto(f"{address}/")
            expect(page.locator("#status")).to_contain_text("ready", timeout=PATIENCE)
            told = page.evaluate(
                """() => [performance.getEntriesByName("first-contentful-paint")[0].startTime,
                    [...performance.getEntriesByType("resource"),
                     ...performance.getEntriesByType("navigation")]
                    .filter((e) => !e.name.includes("/v1/") && !e.name.includes("/health"))
                    .reduce((sum, e) => sum + e.transferSize, 0)]"""
            )
            paints.append(told[0])
            page.context.close()
        print(f"bytes over the wire, all files: {told[1]:,}")
        print(f"first contentful paint: {statistics.median(paints):.0f} ms (median of 5)")
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{address}/")
        expect(page.locator("#status")).to_contain_text("ready", timeout=PATIENCE)
        page.evaluate(STAND_IN)
        frames(page, "idle", 0, 0)
        frames(page, "200 tokens/s, from none", 200, 1000)
        frames(page, "2,000 tokens/s up to 4,000", 2000, 3000)
        frames(page, "200 tokens/s behind 4,000", 200, 600)
        moves = page.evaluate(
            """async () => {
                const times = [], strip = document.getElementById("strip");
                for (let i = 0; i < 40; i++) {
                    const start = performance.now();
                    strip.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
                    strip.getBoundingClientRect();
                    times.push(performance.now() - start);
                    await new Promise((next) => requestAnimationFrame(next));
                }
                return times;
            }"""  # noqa: E501
        )
        tiles = page.locator("#strip .tile").count()
        print(f"a key on {tiles:,} tiles: {statistics.median(moves):.1f} ms, most {max(moves):.1f}")
        browser.close()


def frames(page: Page, name: str, pace: int, count: int) -> None:
    """Frame times while so many tokens come."""
    if count:
        page.evaluate("([pace, count]) => { window.standIn = { pace, count }; }", [pace, count])
        if page.locator("#more").is_enabled():
            page.evaluate("window.frames.length = 0; document.getElementById('more').click()")
        else:
            page.fill("#text", "Hello")
            page.press("#text", "Enter")
            expect(page.locator("#strip .tile:not(.prompt)").first).to_be_attached()
            page.evaluate("window.frames.length = 0")
        page.wait_for_timeout(300)
        expect(page.locator("#stop")).to_be_hidden(timeout=PATIENCE)
    else:
        page.wait_for_timeout(2000)
    times = page.evaluate("window.frames")
    p50, p95, p99 = percentiles(times)
    late = sum(t > 34 for t in times)
    print(f"frames, {name:28} p50 {p50:5.1f} ms  p95 {p95:5.1f}  p99 {p99:5.1f}  "
          f"most {max(times):5.1f}; {late} of {len(times)} over two frames")  # fmt: skip


WANTS: dict[str, dict[str, Any]] = {
    "why": {"candidates": 12, "logits": True},
    "attention": {"candidates": 1, "attention": {"layer": 12}},
    "depths": {"candidates": 1, "lens": 5},
    "explain": {"explain": {"name": "p_raw"}},
    "cache": {"cache": True},
}


def look_figures(address: str) -> None:
    """Looks into 1,000 tokens, and what they cost the streams beside them."""
    with httpx.Client(base_url=address, timeout=300) as http:
        model = http.get("/health").json()["models"][0]
        rng = random.Random(0)
        ids = [rng.randrange(300, 40_000) for _ in range(1000)]

        def look(want: dict[str, Any], position: int) -> float:
            body = {"model": model, "tokens": ids[: position + 1], "position": position,
                    "n_prompt": 900, "want": want}  # fmt: skip
            start = time.perf_counter()
            http.post("/v1/look", json=body).raise_for_status()
            return time.perf_counter() - start

        print(f"a look at token 999, nothing kept: {look({'candidates': 1}, 999):.2f} s")
        for name, want in WANTS.items():
            waits = [look(want, rng.randrange(900, 1000)) for _ in range(21)]
            p50, p95, _ = percentiles(waits)
            print(f"a look, {name:10} p50 {1e3 * p50:5.0f} ms  p95 {1e3 * p95:5.0f} ms")
        alone = gaps(address, model)
        over = threading.Event()

        def look_on() -> None:
            while not over.is_set():
                look(WANTS["why"], rng.randrange(900, 1000))

        looking = threading.Thread(target=look_on)
        looking.start()
        beside = gaps(address, model)
        over.set()
        looking.join()
        for name, times in (("alone", alone), ("beside looks without end", beside)):
            p50, p95, p99 = percentiles(times)
            print(f"between tokens, {name:26} p50 {1e3 * p50:5.1f} ms  p95 {1e3 * p95:5.1f}  "
                  f"p99 {1e3 * p99:5.1f}  most {1e3 * max(times):5.1f}")  # fmt: skip


def gaps(address: str, model: str) -> list[float]:
    """Seconds between the tokens of four streams of 150 tokens at once."""
    found: list[float] = []

    def stream(seed: int) -> None:
        body = {
            "model": model, "prompt": "Once upon a time", "max_tokens": 150, "seed": seed,
            "ignore_eos": True, "stream": True, "trace": {"candidates": 12, "stages": True},
        }  # fmt: skip
        with (
            httpx.Client(base_url=address, timeout=300) as http,
            http.stream("POST", "/v1/completions", json=body) as answer,
        ):
            before = None
            for line in answer.iter_lines():
                steps = json.loads(line[6:])["choices"] if line.startswith("data: {") else []
                if steps and "trace" in steps[0]:
                    now = time.perf_counter()
                    if before is not None:
                        found.append(now - before)
                    before = now

    threads = [threading.Thread(target=stream, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("address", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("only", nargs="?", choices=["page", "looks"])
    asked = parser.parse_args()
    if asked.only != "looks":
        page_figures(asked.address)
    if asked.only != "page":
        look_figures(asked.address)
