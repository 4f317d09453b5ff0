"""Every knob of the server, once: its flag, its environment variable, its help, its default."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_type_hints

import tinyllm
from tinyllm.api.house.origins import is_loopback
from tinyllm.files import generation_config
from tinyllm.kernels.formats import Asked
from tinyllm.sampler import SamplingParams

MiB = 1024 * 1024


def _flag(default: Any, help: str, **more: Any) -> Any:
    if isinstance(default, (list, dict)):
        raise TypeError("defaults are shared: use a tuple")
    return dataclasses.field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class Settings:
    """What `python server.py` can be told. Each field is `--field` and `TINYLLM_FIELD`.

    A repeatable flag's variable holds its values separated by commas. A flag on the command line
    wins over the environment.
    """

    host: str = _flag("127.0.0.1", "address to listen on")
    port: int = _flag(8000, "port to listen on; 0 takes a free one")
    model: tuple[str, ...] = _flag(
        ("smollm2-135m-instruct", "smollm2-135m-vision"),
        "name or folder of a model to serve; repeatable, the first is the default",
    )
    dtype: Asked = _flag(  # noqa: RUF009
        "auto",
        "what the weights are computed in; auto: what the checkpoint holds, without rounding",
        also="--format",
    )
    activations: Literal["16", "8"] = _flag(
        "16", "bits of what q8 and q4 weights are multiplied with; 8 is quicker, answers change"
    )
    kv_dtype: Literal["auto", "f16", "f32"] = _flag(
        "auto", "numbers in the KV cache; auto: f32 beside f32 weights, f16 beside the others"
    )
    backend: Literal["compiled", "reference"] = _flag(
        "compiled", "compiled kernels, or the readable numpy forward (f32 alone)"
    )
    threads: int = _flag(0, "threads of the kernels; 0 takes every core")

    api_key: tuple[str, ...] = _flag((), "a key that clients may use; repeatable")
    api_key_file: str = _flag("", "a file with one key a line; # starts a comment")
    insecure_no_auth: bool = _flag(False, "listen beyond this machine although no key is set")
    allow_host: tuple[str, ...] = _flag(
        (), "one more name by which a server without keys may be called; repeatable"
    )
    cors_origin: tuple[str, ...] = _flag(
        (), "pages elsewhere that may ask, as https://example.org; * is any; repeatable"
    )
    alias: tuple[str, ...] = _flag((), "NAME[=MODEL]: one more name for a model; repeatable")
    ignore_tool: tuple[str, ...] = _flag(
        (), "a built-in tool of /responses, as web_search, to leave out, not refuse; repeatable"
    )
    strict: bool = _flag(False, "refuse unknown parameters instead of ignoring them by name")

    temperature: float | None = _flag(None, "where neither request nor model says; on /v1")
    top_p: float | None = _flag(None, "where neither request nor model says")
    top_k: int | None = _flag(None, "where neither request nor model says; 0 keeps all")
    min_p: float | None = _flag(None, "where neither request nor model says")
    repetition_penalty: float | None = _flag(None, "where neither request nor model says")

    max_n: int = _flag(8, "most choices a request may ask for")
    max_tokens_cap: int = _flag(0, "most completion tokens of a choice; 0: no cap")
    max_body: int = _flag(32 * MiB, "largest request body, in bytes")
    max_batch: int = _flag(16, "most choices that are decoded at once")
    max_queue: int = _flag(64, "most requests that wait; more get 429")
    kv_cache_mb: int = _flag(1024, "memory for the KV caches, in MiB")
    trace_inside: int = _flag(
        2, "requests at once whose `trace` may look inside the model; 0 refuses that"
    )

    request_timeout: float = _flag(600.0, "seconds that a request may take; 0 is for ever")
    drain_timeout: float = _flag(30.0, "seconds that running requests get after the first SIGTERM")

    image_urls: Literal["public", "allowlist", "off"] = _flag(
        "public", "which https image addresses are fetched"
    )
    image_host: tuple[str, ...] = _flag((), "a host for `--image-urls allowlist`; repeatable")

    access_log: str = _flag("-", "file for the access log (JSON lines); - is stderr, off is none")

    def api_keys(self) -> tuple[str, ...]:
        """Every API key. Raises ValueError for a blank one, or a file that holds none."""
        if not all(key.strip() for key in self.api_key):
            raise ValueError("--api-key is blank: give a key, or leave the flag out")
        given = tuple(key.strip() for key in self.api_key)
        if not self.api_key_file:
            return given
        try:
            lines = Path(self.api_key_file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--api-key-file {self.api_key_file}: {error}") from None
        keys = tuple(key for line in lines if (key := line.split("#")[0].strip()))
        if not keys:
            raise ValueError(f"--api-key-file {self.api_key_file}: the file holds no key")
        return given + keys

    def sampling(self) -> dict[str, float]:
        """The sampling parameters among the flags that were given."""
        given = {key: getattr(self, key) for key in generation_config.KEYS}
        return {key: value for key, value in given.items() if value is not None}

    def check(self) -> Settings:
        """Itself, when every value makes sense. Raises ValueError that names the flag."""
        at_least = {
            "max_n": 1, "max_body": 1024, "max_batch": 1, "max_queue": 0, "kv_cache_mb": 1,
            "threads": 0, "max_tokens_cap": 0, "trace_inside": 0, "request_timeout": 0,
            "drain_timeout": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{_option(name)} must be at least {least}")
        if not 0 <= self.port <= 65535:
            raise ValueError("--port must be from 0 to 65535")
        try:
            SamplingParams(**self.sampling())  # type: ignore[arg-type]
        except ValueError as error:
            name, _, what = str(error).partition(" ")
            raise ValueError(f"{_option(name)} {what}") from None
        for kind in self.ignore_tool:
            if kind in ("function", "namespace"):
                raise ValueError(f"--ignore-tool {kind}: these are offered; name a built-in tool")
        if not self.model:
            raise ValueError("--model must name at least one model")
        if self.image_urls == "allowlist" and not self.image_host:
            raise ValueError("--image-urls allowlist needs at least one --image-host")
        if not self.api_keys() and not self.insecure_no_auth and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} can be reached from other machines and no key is set: give "
                "--api-key, or --insecure-no-auth if that is what you want"
            )
        return self


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _given(kind: Any) -> Any:
    """What a flag's value is if it is given: `float` of `float | None`."""
    return next((inner for inner in get_args(kind) if type(None) in get_args(kind)), kind)


def _choices(kind: Any) -> tuple[str, ...] | None:
    return get_args(kind) if kind not in (str, int, float, bool, tuple[str, ...]) else None


class _Parser(argparse.ArgumentParser):
    """argparse's, whose mistakes are one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        for word in message.split() if "unrecognized" in message else ():
            if near := difflib.get_close_matches(word.partition("=")[0], known, 1):
                message += f"; did you mean {near[0]}?"
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")


class _Version(argparse.Action):
    """Print the version, which takes a moment to look up, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"tinyllm {tinyllm.__version__}")
        parser.exit()


def parse(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    program: str = "server.py",
) -> Settings:
    """Settings from the command line and the environment. Exits with a sentence on a mistake."""
    environ = os.environ if environ is None else environ
    parser = _Parser(
        prog=program,
        allow_abbrev=False,
        description="Serve a model behind a chat-completions API.",
        epilog="Each flag can be given as an environment variable too: --max-n as TINYLLM_MAX_N.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="what this is")
    kinds = {name: _given(kind) for name, kind in get_type_hints(Settings).items()}
    for field in dataclasses.fields(Settings):
        kind = kinds[field.name]
        options: dict[str, Any] = {
            "default": None,
            "help": f"{field.metadata['help']} [{_shown(field.default)}; {_variable(field.name)}]",
        }
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif kind == tuple[str, ...]:
            options |= {"action": "append", "metavar": field.name.split("_")[-1].upper()}
        elif (choices := _choices(kind)) is not None:
            options["choices"] = choices
        else:
            options |= {"type": kind, "metavar": field.name.split("_")[-1].upper()}
        options["help"] = options["help"].replace("%", "%%")
        names = (_option(field.name), field.metadata.get("also"))
        parser.add_argument(*filter(None, names), **options)
    parser.formatter_class = argparse.HelpFormatter
    given = vars(parser.parse_args(argv))
    values: dict[str, Any] = {}
    try:
        keys = environ.get(_variable("api_key"))
        if keys is not None and not all(key.strip() for key in keys.split(",")):
            raise ValueError("TINYLLM_API_KEY is blank: give a key, or unset it")
        for field in dataclasses.fields(Settings):
            value = given[field.name]
            text = environ.get(_variable(field.name), "")
            if value is None and text:
                value = _from_text(text, kinds[field.name], _variable(field.name))
            if value is not None:
                values[field.name] = tuple(value) if isinstance(value, list) else value
        return Settings(**values).check()
    except ValueError as error:
        parser.error(str(error))


def _variable(name: str) -> str:
    return "TINYLLM_" + name.upper()


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ", ".join(default) or "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default in ("", None) else str(default)


def _from_text(text: str, kind: Any, variable: str) -> Any:
    """An environment variable's text as a value of the field's type; ValueError names it."""
    if kind is bool:
        flags = {"1": True, "true": True, "yes": True, "on": True}
        flags |= {"0": False, "false": False, "no": False, "off": False}
        if text.lower() not in flags:
            raise ValueError(f"{variable} must be 1 or 0, not {text!r}")
        return flags[text.lower()]
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if (choices := _choices(kind)) is not None:
        if text not in choices:
            raise ValueError(f"{variable} must be one of {', '.join(choices)}, not {text!r}")
        return text
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{variable} must be a {kind.__name__}, not {text!r}") from None
