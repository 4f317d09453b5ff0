"""Flags and their environment variables."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import tinyllm
from tinyllm.api.house.settings import Settings, parse


def test_every_flag_is_in_help_with_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(["--help"], {})
    assert exit.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Settings):
        assert "--" + field.name.replace("_", "-") in text
        assert "TINYLLM_" + field.name.upper() in text


def test_flags_win_over_the_environment() -> None:
    environ = {"TINYLLM_PORT": "9", "TINYLLM_MAX_N": "3", "TINYLLM_ALIAS": "a, b=c",
               "TINYLLM_STRICT": "yes", "TINYLLM_DTYPE": "f32"}  # fmt: skip
    settings = parse(["--port", "7", "--no-strict"], environ)
    assert (settings.port, settings.max_n, settings.alias) == (7, 3, ("a", "b=c"))
    assert settings.strict is False and settings.dtype == "f32"


@pytest.mark.parametrize(
    ("argv", "environ", "word"),
    [
        (["--host", "0.0.0.0"], {}, "no key"),
        (["--port", "70000"], {}, "--port"),
        (["--max-n", "0"], {}, "--max-n"),
        ([], {"TINYLLM_PORT": "x"}, "TINYLLM_PORT"),
        ([], {"TINYLLM_STRICT": "maybe"}, "TINYLLM_STRICT"),
        ([], {"TINYLLM_DTYPE": "q1"}, "TINYLLM_DTYPE"),
        (["--dtype", "q1"], {}, "--dtype"),
        (["--api-key-file", "/nonexistent"], {}, "--api-key-file"),
        (["--image-urls", "allowlist"], {}, "--image-host"),
        (["--api-key", ""], {}, "--api-key is blank"),
        (["--api-key", "one", "--api-key", " "], {}, "--api-key is blank"),
        ([], {"TINYLLM_API_KEY": ""}, "TINYLLM_API_KEY is blank"),
        ([], {"TINYLLM_API_KEY": "one,,two"}, "blank"),
    ],
)
def test_mistakes_are_named(
    argv: list[str], environ: dict[str, str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(argv, environ)
    assert word in capsys.readouterr().err


def test_keys_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\none\n two # of us\n\n")
    settings = parse(["--api-key", "zero", "--api-key-file", str(path), "--host", "0.0.0.0"], {})
    assert settings.api_keys() == ("zero", "one", "two")
    path.write_text("# nothing\n")
    with pytest.raises(SystemExit):
        parse(["--api-key-file", str(path)], {})


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--version"], {})
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tinyllm {tinyllm.__version__}\n"
