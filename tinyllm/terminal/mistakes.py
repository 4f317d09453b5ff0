"""Mistakes on the command line: one sentence with the remedy, and no traceback."""

from __future__ import annotations

from typing import Any

import typer

import tinyllm
from tinyllm.errors import TinyllmError, printable

# The class of wrong flags and missing arguments: click's own, or of the click that typer brings.
UsageError: Any = typer.BadParameter.__bases__[0]
# A bare `tinyllm`: its message is the help, which has been shown.
NoArguments = "NoArgsIsHelpError"


def run(app: typer.Typer, program: str = "tinyllm") -> int:
    """Run the command that this process was started with; the exit status."""
    try:
        return int(app(prog_name=program, standalone_mode=False) or 0)
    except UsageError as error:
        code = int(error.exit_code)
        if type(error).__name__ == NoArguments:
            return code
        if error.ctx is not None:
            program = error.ctx.command_path
        message = f"{printable(error.format_message())} (`{program} --help` lists what there is)"
    except TinyllmError as error:
        message, code = printable(str(error)), 1
    except typer.Abort:  # control-C or control-D at a question
        message, code = "stopped", 1
    typer.echo(f"{program}: {message}", err=True)
    return code


def tell_version(wanted: bool) -> None:
    """Print which tinyllm this is, and end."""
    if wanted:
        typer.echo(f"tinyllm {tinyllm.__version__}")
        raise typer.Exit


def check_dtype(dtype: str) -> None:
    """BadParameter for what is no format."""
    from tinyllm.kernels.formats import FORMATS

    if dtype not in ("auto", *FORMATS):
        raise typer.BadParameter(
            f"{dtype!r} is not one of auto, {', '.join(FORMATS)}", param_hint="--dtype"
        )
