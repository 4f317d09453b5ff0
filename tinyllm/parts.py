"""What a model is made of: one whole checkpoint, or parts that a card names.

    whole       config.json, *.safetensors, tokenizer.json; perhaps an image encoder among them
    assembled   card.json with "parts": {"language_model": NAME, "image_encoder": NAME}, and
                connector.safetensors, which joins the two

The language model of an assembled one is a model of its own, unchanged: text alone goes the same
way through the same weights, and a server holds them once for both names.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm import fetch
from tinyllm.config import read_json_object
from tinyllm.errors import ConfigError, WeightsError
from tinyllm.files import generation_config
from tinyllm.sampler import SamplingParams
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision.prompt import ImagePrompts
from tinyllm.vision.whole import eyes_of, sees_images
from tinyllm.weights import read_folder

if TYPE_CHECKING:
    from tinyllm.vision.connector import Connector

CONNECTOR_FILE = "connector.safetensors"
IMAGE_TOKEN = "<|endoftext|>"  # no chat template writes it, and no user's text can
EMBEDDINGS = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Parts:
    """The pieces of a model, found but not loaded.

    Attributes:
        folder: what was asked for: the card's folder.
        card: card.json, or just the folder's name as id.
        language_model: the folder with config.json, the weights and tokenizer.json.
        image_encoder: the name or folder of an assembled model's encoder.
    """

    folder: Path
    card: dict[str, Any] = field(repr=False)
    language_model: Path
    image_encoder: str | None = None

    @classmethod
    def of(cls, folder: Path) -> Parts:
        """Look at a folder; an assembled model's language model is fetched if it isn't here.

        Raises:
            ConfigError: the card names parts in a way that makes no sense.
            FetchError: the language model can't be had.
        """
        path = folder / "card.json"
        card = read_json_object(path) if path.is_file() else {"id": folder.name}
        parts = card.get("parts")
        if parts is None:
            return cls(folder, card, folder)
        names = ("language_model", "image_encoder")
        if not isinstance(parts, dict) or not all(isinstance(parts.get(n), str) for n in names):
            raise ConfigError(f"{path}: parts must name a language_model and an image_encoder")
        return cls(folder, card, fetch.resolve(parts[names[0]]), parts[names[1]])

    @property
    def name(self) -> str:
        """The card's id."""
        return str(self.card.get("id", self.folder.name))

    @property
    def sees(self) -> bool:
        """Whether the model takes images."""
        if self.image_encoder is not None:
            return True
        return sees_images(self.language_model)

    def sampling_defaults(self) -> dict[str, float]:
        """What generation_config.json asks of sampling: fields of SamplingParams; {} if nothing.

        Servers and `tinyllm chat` go by it; sessions draw as they are told. Raises ConfigError for
        a value that makes no sense.
        """
        values: dict[str, Any] = generation_config.sampling_defaults(self.language_model)
        try:
            SamplingParams(**values)
        except ValueError as error:
            path = self.language_model / generation_config.FILE
            raise ConfigError(f"{path}: {error}") from None
        return values

    def fetch(self) -> None:
        """Have every part on this machine."""
        if self.image_encoder is not None:
            fetch.resolve(self.image_encoder)

    def image_side(
        self, tokenizer: Tokenizer, *, compiled: bool, threads: int | None = None
    ) -> ImagePrompts:
        """Load what makes prompts out of images; an encoder that isn't here is fetched.

        Raises:
            ConfigError, WeightsError, FetchError: naming the file and the remedy.
        """
        if self.image_encoder is None:
            eyes = eyes_of(self.folder, tokenizer, compiled=compiled, threads=threads)
            return ImagePrompts(eyes, tokenizer)
        # What sees is imported when there is something to see.
        from tinyllm.vision.connected import ConnectedEncoder
        from tinyllm.vision.load import load_encoder

        connector = self.connector(tokenizer)
        encoder = load_encoder(
            fetch.resolve(self.image_encoder), compiled=compiled, threads=threads
        )
        image_id = tokenizer.special_tokens.get(IMAGE_TOKEN, -1)
        return ImagePrompts(ConnectedEncoder(encoder, connector, IMAGE_TOKEN, image_id), tokenizer)

    def connector(self, tokenizer: Tokenizer) -> Connector:
        """An assembled model's connector.

        Raises:
            WeightsError: its file is missing, damaged, or of other shapes.
        """
        from tinyllm.vision.connector import Connector

        path = self.folder / CONNECTOR_FILE
        remedy = "it comes with tinyllm: `git checkout` the file, or install tinyllm anew"
        if not path.is_file():
            raise WeightsError(f"{path} is missing; {remedy}")
        _, embeddings = read_folder(self.language_model, keep=EMBEDDINGS.__eq__)[EMBEDDINGS]
        try:
            return Connector.load(path, embeddings, tokenizer.encode)
        except WeightsError as error:
            shown = str(error) if str(path) in str(error) else f"{path}: {error}"
            raise WeightsError(f"{shown}; {remedy}") from None

    def fingerprint(self, runner: str) -> str:
        """What answers depend on, as a hash: the runner's own, and what images go through."""
        if self.image_encoder is None:
            return runner
        path = self.folder / CONNECTOR_FILE
        joined = path.read_bytes() if path.is_file() else b""
        names = f"{runner} {self.image_encoder}".encode()
        digest = hashlib.sha256(names + hashlib.sha256(joined).digest())
        return digest.hexdigest()[: len(runner)]
