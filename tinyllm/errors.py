"""The errors people can do something about: each says what is wrong, where, and the remedy."""

from __future__ import annotations

import unicodedata


class TinyllmError(Exception):
    """Base of every error that tinyllm raises on purpose."""


class ConfigError(TinyllmError, ValueError):
    """A checkpoint's config.json is missing, malformed, or asks for what isn't supported."""


class WeightsError(TinyllmError, ValueError):
    """A weight file is missing, truncated, corrupt, or doesn't fit its config."""


class FetchError(TinyllmError, RuntimeError):
    """Weights couldn't be fetched, verified or converted."""


class LicenseError(FetchError):
    """A model's terms must be accepted before it is fetched; the message has their address."""


class TokenizerError(TinyllmError, ValueError):
    """A tokenizer file or chat template is missing or can't be used."""


class CacheFull(TinyllmError, RuntimeError):
    """The KV cache has no room for the tokens that were to be appended."""


class TurnEnded(TinyllmError, RuntimeError):
    """The model has ended its turn, and a session was asked to go on without saying so."""


class ImageError(TinyllmError, ValueError):
    """An image can't be used; the message completes "the image can't be used: …"."""


class HookError(TinyllmError, ValueError):
    """A hook names no hook point, returns what doesn't fit, or is set where it can't run."""


class TraceError(TinyllmError, ValueError):
    """A past step can't be looked at, or a saved trace can't be read."""


# Marks that turn the direction of the text around them (Unicode TR 9): a line may read as another.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, keep: str = "") -> str:
    r"""Somebody else's text for a terminal: control characters spelled out, `\x1b` for one.

    A file's name or a model's answer may hold escape sequences, which would move the cursor,
    change the window's title or answer in the user's name. `keep` are letters that pass all the
    same, such as a line's end.
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if c not in keep and (unicodedata.category(c) in ("Cc", "Cs") or c in _BIDI)
        else c
        for c in text
    )
