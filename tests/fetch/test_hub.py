"""`tinyllm pull hf:OWNER/NAME` against a loopback server that answers as the hub does."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
from safetensors.numpy import load, save, save_file

import tinyllm
from tests.fetch.files import Kind, write_gguf
from tests.smolvlm_folder import write_smolvlm
from tinyllm import fetch
from tinyllm.config import ModelConfig
from tinyllm.errors import FetchError, TokenizerError, WeightsError
from tinyllm.fetch.convert import convert
from tinyllm.fetch.validate import validate
from tinyllm.vision.smolvlm import PROJECTION
from tinyllm.weights import Checkpoint

REPO = "acme/tiny-chat"
SHA = {"main": "a" * 40, "v1.0": "b" * 40, "refs/pr/1": "c" * 40}
INDEX = "model.safetensors.index.json"


@dataclass
class Served:
    """What the server holds and what it has seen."""

    files: dict[str, bytes]
    status: int = 200  # of every answer
    error_code: str = ""  # the hub's X-Error-Code
    stall: threading.Event = field(default_factory=threading.Event)  # hold shard 2 up half-way
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # verb, path, range
    sent: dict[str, int] = field(default_factory=dict)  # bytes sent of each file


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        served = self.server.served
        path = unquote(urlsplit(self.path).path)
        served.requests.append((self.command, path, self.headers.get("Range")))
        if served.status != 200:
            self.reply(served.status, b"{}", {"X-Error-Code": served.error_code})
        elif path.startswith(f"/api/models/{REPO}"):
            self.api(path.removeprefix(f"/api/models/{REPO}"))
        elif path.startswith(f"/{REPO}/resolve/"):
            self.file(path.removeprefix(f"/{REPO}/resolve/"))
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def api(self, rest: str) -> None:
        files = self.server.served.files
        verb, _, revision = rest.removeprefix("/").partition("/")
        revision = revision or "main"
        sha = SHA.get(revision) or (revision if revision in SHA.values() else None)
        if sha is None:
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif verb == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": blob(data)}
                for name, data in files.items()
            ]
            self.reply(200, json.dumps(tree).encode())
        else:
            info = {
                "id": REPO,
                "modelId": REPO,
                "sha": sha,
                "createdAt": "2024-11-01T00:00:00.000Z",
                "cardData": {"license": "apache-2.0"},
                "siblings": [{"rfilename": name} for name in files],
                "tags": [],
            }
            self.reply(200, json.dumps(info).encode())

    def file(self, rest: str) -> None:
        served = self.server.served
        sha, _, name = rest.partition("/")
        if sha not in SHA.values() or name not in served.files:
            self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        data = served.files[name]
        headers = {"ETag": f'"{blob(data)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if (wanted := self.headers.get("Range")) and wanted != "bytes=0-":
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        served.sent[name] = served.sent.get(name, 0)
        self.reply(status, data[start:], headers, name=name)

    def reply(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, name: str = ""
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        if "00002-of" in name:
            while self.server.served.stall.is_set():
                time.sleep(0.02)
        self.wfile.write(body[half:])
        if name:
            self.server.served.sent[name] += len(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class Hub(http.server.ThreadingHTTPServer):
    daemon_threads = True
    served: Served

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of these tests."""


def blob(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sharded repository, with the odd files that real ones have beside the model's own."""
    folder = tmp_path_factory.mktemp("checkpoint")
    convert(write_gguf(folder / "m.gguf"), folder)
    tensors = dict(Checkpoint(folder, ModelConfig.from_folder(folder)))
    names = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    files = {
        name: (folder / name).read_bytes()
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", *shards)
    }
    files[INDEX] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    files["chat_template.jinja"] = b"{{ messages[0].content }}<think>"
    files["README.md"] = b"# a model"
    files["pytorch_model.bin"] = b"a pickle"
    files["original/consolidated.safetensors"] = b"not ours"
    files["onnx/model.onnx"] = b"not ours"
    files["modeling_evil.py"] = b"raise SystemExit"
    return files


@pytest.fixture
def served(
    checkpoint: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    with Hub(("127.0.0.1", 0), Handler) as server:
        server.served = Served(dict(checkpoint))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        monkeypatch.setattr(
            huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template
        )
        monkeypatch.setenv("HF_ENDPOINT", url)  # for processes that we start
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("TINYLLM_WEIGHTS", str(tmp_path / "weights"))
        yield server.served
        server.served.stall.clear()
        server.shutdown()


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def visible(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if not path.name.startswith(".")]


def test_a_model_folder_and_nothing_else(served: Served) -> None:
    folder = fetch.resolve(f"hf:{REPO}")
    assert folder == fetch.weights_root() / "acme--tiny-chat"
    assert names_in(folder) == {
        "card.json", "chat_template.jinja", "config.json", INDEX,
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    asked = {path.rpartition("/")[2] for _, path, _ in served.requests}
    assert not asked & {"pytorch_model.bin", "consolidated.safetensors", "modeling_evil.py"}
    card = json.loads((folder / "card.json").read_text())
    assert card == {
        "id": "acme--tiny-chat",
        "aliases": [REPO],
        "kind": "text",
        "domain_aligned": False,
        "reasoning": "native",
        "license": "apache-2.0",
        "source": f"hf:{REPO}@{SHA['main']}",
        "created": 1730419200,
    }
    lm = tinyllm.load(folder)
    assert lm.tokenizer.render_chat([{"role": "user", "content": "x"}]) == "x<think>"
    assert lm.generate("hello", max_tokens=3, temperature=0).tokens

    served.requests.clear()
    served.status = 500
    assert fetch.resolve(f"hf:{REPO}") == folder  # it is there: no network is needed
    assert served.requests == []
    assert visible(fetch.weights_root()) == ["acme--tiny-chat"]


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/1", "b" * 40])
def test_a_revision(served: Served, revision: str) -> None:
    folder = fetch.resolve(f"hf:{REPO}@{revision}")
    assert folder.parent == fetch.weights_root()
    sha = SHA.get(revision, revision)
    assert json.loads((folder / "card.json").read_text())["source"] == f"hf:{REPO}@{sha}"
    assert any(f"/resolve/{sha}/" in path for _, path, _ in served.requests)
    assert not any(f"/resolve/{SHA['main']}/" in path for _, path, _ in served.requests)


def test_one_file_of_weights_goes_before_shards(served: Served) -> None:
    shards = [name for name in served.files if name.startswith("model-")]
    served.files["model.safetensors"] = served.files[shards[0]]
    served.files[INDEX] = b"{}"
    with pytest.raises(WeightsError, match="missing from the checkpoint"):
        fetch.resolve(f"hf:{REPO}")
    assert not set(served.sent) & {*shards, INDEX}


def gguf_bytes(folder: Path, kind: Kind) -> bytes:
    return write_gguf(folder / f"{kind.name}.gguf", kind).read_bytes()


def test_one_gguf_file_of_a_repository(served: Served, tmp_path: Path) -> None:
    """The file that is named, and no other; the repository's own files are not mixed with it."""
    served.files = {
        "README.md": b"# quantised",
        "model.gguf": gguf_bytes(tmp_path, Kind.Q8_0),
        "more/tiny-Q4_1.gguf": gguf_bytes(tmp_path, Kind.Q4_1),
    }
    folder = fetch.resolve(f"hf:{REPO}:more/tiny-Q4_1.gguf")
    assert folder == fetch.weights_root() / "acme--tiny-chat--more-tiny-Q4_1"
    assert set(served.sent) == {"more/tiny-Q4_1.gguf"}
    assert names_in(folder) == {"card.json", "config.json", "generation_config.json", "model.gguf",
                                "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    card = json.loads((folder / "card.json").read_text())
    assert card["source"] == f"hf:{REPO}@{SHA['main']}:more/tiny-Q4_1.gguf"
    assert tinyllm.load(folder).generate("hello", max_tokens=3, temperature=0).tokens
    other = fetch.resolve(f"hf:{REPO}@v1.0:model.gguf")
    assert other != folder and (other / "model.gguf").read_bytes() == served.files["model.gguf"]
    served.status = 500
    assert fetch.resolve(f"hf:{REPO}:more/tiny-Q4_1.gguf") == folder


def test_a_gguf_that_is_not_there(served: Served, tmp_path: Path) -> None:
    served.files["tiny-Q8_0.gguf"] = gguf_bytes(tmp_path, Kind.Q8_0)
    served.files["cut-00001-of-00002.gguf"] = b"GGUF"
    with pytest.raises(FetchError, match=r"no file tiny-Q4_K.gguf; .* nearest .* tiny-Q8_0.gguf"):
        fetch.resolve(f"hf:{REPO}:tiny-Q4_K.gguf")
    with pytest.raises(FetchError, match=r"lacks a part .*: cut-00002-of-00002.gguf"):
        fetch.resolve(f"hf:{REPO}:cut-00001-of-00002.gguf")
    assert visible(fetch.weights_root()) == []
    with pytest.raises(FetchError, match=r"hf:OWNER/NAME:FILE.gguf"):
        fetch.resolve(f"hf:{REPO}:../tiny.gguf")


def test_a_model_that_sees_images(served: Served, tmp_path: Path, weights_folder: Path) -> None:
    write_smolvlm(tmp_path / "vlm", weights_folder)
    served.files = {path.name: path.read_bytes() for path in (tmp_path / "vlm").iterdir()}
    folder = fetch.resolve(f"hf:{REPO}")
    assert names_in(folder) == {*served.files, "card.json"}
    assert json.loads((folder / "card.json").read_text())["kind"] == "vision"
    shutil.rmtree(folder)
    tensors = load(served.files["model.safetensors"])
    del tensors[PROJECTION]
    served.files["model.safetensors"] = save(tensors)
    with pytest.raises(WeightsError, match=PROJECTION):
        fetch.resolve(f"hf:{REPO}")


REFUSED = {
    "no such repository": (404, "RepoNotFound", "does not exist, or is private"),
    "gated": (401, "GatedRepo", "is gated: accept its terms"),
    "gated, logged in": (403, "GatedRepo", "is gated: accept its terms"),
    "private": (401, "RepoNotFound", "does not exist, or is private"),
    "a wrong token": (401, "", "refuses access: check your token"),
    "no such revision": (404, "RevisionNotFound", "no such revision"),
    "broken": (418, "", "could not be fetched"),
}


@pytest.mark.parametrize(("status", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(served: Served, status: int, code: str, message: str) -> None:
    served.status, served.error_code = status, code
    with pytest.raises(FetchError, match=f"hf:{REPO}@v1.0.*{message}"):
        fetch.resolve(f"hf:{REPO}@v1.0")
    assert visible(fetch.weights_root()) == []


def test_no_server(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="check the connection and run this again"):
        fetch.resolve(f"hf:{REPO}")


def test_repositories_without_what_is_needed(served: Served) -> None:
    whole = dict(served.files)

    def without(*names: str) -> None:
        served.files = {k: v for k, v in whole.items() if not k.startswith(names)}

    without("config.json")
    with pytest.raises(FetchError, match=r"no config\.json"):
        fetch.resolve(f"hf:{REPO}")
    without("model")
    with pytest.raises(FetchError, match=r"pytorch_model\.bin is a pickle.*never opened"):
        fetch.resolve(f"hf:{REPO}")
    without("model-00002")
    with pytest.raises(WeightsError, match=r"model-00002-of-00002\.safetensors is missing"):
        fetch.resolve(f"hf:{REPO}")
    without("tokenizer.json")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is missing"):
        fetch.resolve(f"hf:{REPO}")
    assert visible(fetch.weights_root()) == []


def test_weights_that_do_not_fit(served: Served) -> None:
    shard = "model-00002-of-00002.safetensors"
    whole = served.files[shard]
    served.files[shard] = whole[:-4]
    with pytest.raises(WeightsError, match=shard):
        fetch.resolve(f"hf:{REPO}")
    config = json.loads(served.files["config.json"])
    served.files[shard] = whole
    served.files["config.json"] = json.dumps({**config, "intermediate_size": 100}).encode()
    with pytest.raises(WeightsError, match=r"shape \(.*\), but config\.json asks for"):
        fetch.resolve(f"hf:{REPO}")
    served.files["config.json"] = json.dumps(config).encode()
    assert fetch.resolve(f"hf:{REPO}").is_dir()  # the mended repository is fetched


def test_interrupted_then_run_again(served: Served, tmp_path: Path) -> None:
    """Through the command, in a process that is stopped half-way through the second shard."""
    served.stall.set()
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    command = [sys.executable, "-m", "tinyllm", "pull", f"hf:{REPO}"]
    checkout = Path(fetch.__file__).parents[2]
    with subprocess.Popen(command, cwd=checkout, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 30
        while len(served.sent) < 6 or served.sent.get(shards[0], 0) == 0:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert visible(fetch.weights_root()) == []
    served.stall.clear()
    before = dict(served.sent)
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder == fetch.weights_root() / "acme--tiny-chat"
    validate(folder)
    assert served.sent[shards[0]] == before[shards[0]]  # what had come whole is not sent again
    names = {path.name for path in fetch.weights_root().iterdir()}
    assert names == {"acme--tiny-chat", ".acme--tiny-chat.lock"}


def test_without_the_client_library(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it now fails
    with pytest.raises(FetchError, match=r"pip install 'tinyllm\[hub\]'"):
        fetch.resolve(f"hf:{REPO}")


@pytest.mark.parametrize(
    "reference", ["hf:", "hf:tiny", "hf:a/b/c", "hf:../../etc", "hf:a/..", "hf:a/b@../x", "hf:a/b@"]
)
def test_references_that_are_none(served: Served, reference: str) -> None:
    with pytest.raises(FetchError, match="no hub model"):
        fetch.resolve(reference)
    assert served.requests == []


def test_a_folder_in_the_way(served: Served) -> None:
    mine = fetch.weights_root() / "acme--tiny-chat"
    mine.mkdir(parents=True)
    with pytest.raises(FetchError, match="is in the way"):
        fetch.resolve(f"hf:{REPO}")
