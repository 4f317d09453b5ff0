"""`tinyllm step` as a full-screen program: its keys, its lines and its colours."""

from __future__ import annotations

from prompt_toolkit import Application
from prompt_toolkit.application import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import (
    BufferControl,
    ConditionalContainer,
    FormattedTextControl,
    HSplit,
    Layout,
    VSplit,
    Window,
)
from prompt_toolkit.output import Output
from prompt_toolkit.styles import Style

from tinyllm.terminal.stepper import Stepper

STYLE = Style.from_dict(
    {
        "prompt": "ansibrightblack",
        "surprise": "ansiyellow",
        "forced": "ansimagenta bold",
        "rule": "ansibrightblack",
        "marked": "reverse",
        "raw": "ansiblue",
        "drawn": "ansigreen bold",
        "cut": "ansired",
        "faint": "ansibrightblack",
        "key": "bold",
    }
)

KEYS = [
    ("enter", "take →"), ("↑↓", "mark"), ("⌫", "back"), ("t", "type"), ("f", "fork"),
    ("tab", "switch"), ("+−", "temperature"), ("a", "attention, lens"), ("q", "quit"),
]  # fmt: skip


def keys_line() -> StyleAndTextTuples:
    """What can be pressed; a key stays on the line of what it does."""
    out: StyleAndTextTuples = [("", "  ")]
    column, width = 2, _width()
    for key, what in KEYS:
        if column + len(key) + len(what) + 3 > width:
            out.append(("", "\n  "))
            column = 2
        out += [("class:key", key), ("class:faint", f" {what}  ")]
        column += len(key) + len(what) + 3
    return out


def application(
    stepper: Stepper, input: Input | None = None, output: Output | None = None
) -> Application[None]:
    """The full-screen program around a stepper."""
    line = Buffer(multiline=False)  # what is typed to be forced
    line_window = Window(BufferControl(line), height=1)
    main = Window(FormattedTextControl(stepper.text, focusable=True), wrap_lines=True)
    typing = Condition(lambda: get_app().layout.has_focus(line_window))
    keys = KeyBindings()

    @keys.add("enter", filter=~typing)
    @keys.add(" ", filter=~typing)
    @keys.add("right", filter=~typing)
    def _take(event: KeyPressEvent) -> None:
        stepper.take()

    @keys.add("down", filter=~typing)
    @keys.add("up", filter=~typing)
    def _mark(event: KeyPressEvent) -> None:
        stepper.mark(1 if event.key_sequence[0].key == "down" else -1)

    @keys.add("backspace", filter=~typing)
    @keys.add("left", filter=~typing)
    def _back(event: KeyPressEvent) -> None:
        stepper.back()

    @keys.add("f", filter=~typing)
    def _fork(event: KeyPressEvent) -> None:
        stepper.fork()

    @keys.add("tab", filter=~typing)
    def _switch(event: KeyPressEvent) -> None:
        stepper.switch()

    @keys.add("+", filter=~typing)
    @keys.add("=", filter=~typing)
    @keys.add("-", filter=~typing)
    def _heat(event: KeyPressEvent) -> None:
        stepper.heat(-0.1 if event.data == "-" else 0.1)

    @keys.add("a", filter=~typing)
    def _turn(event: KeyPressEvent) -> None:
        stepper.turn()

    @keys.add("[", filter=~typing)
    @keys.add("]", filter=~typing)
    def _layer(event: KeyPressEvent) -> None:
        stepper.move_layer(1 if event.data == "]" else -1)

    @keys.add("t", filter=~typing)
    def _type(event: KeyPressEvent) -> None:
        event.app.layout.focus(line_window)

    @keys.add("enter", filter=typing)
    def _typed(event: KeyPressEvent) -> None:
        if line.text:
            stepper.force(line.text)
        line.reset()
        event.app.layout.focus(main)

    @keys.add("escape", filter=typing, eager=True)
    @keys.add("c-c", filter=typing)
    def _not_typed(event: KeyPressEvent) -> None:
        line.reset()
        event.app.layout.focus(main)

    @keys.add("q", filter=~typing)
    @keys.add("c-c", filter=~typing)
    @keys.add("c-d", filter=~typing)
    def _quit(event: KeyPressEvent) -> None:
        event.app.exit()

    def panel() -> StyleAndTextTuples:
        return stepper.body(_width())

    label = Window(FormattedTextControl([("class:key", "  text to take: ")]), width=16)
    layout = HSplit(
        [
            main,
            Window(height=1, char="─", style="class:rule"),
            Window(
                FormattedTextControl(panel), height=stepper.n_candidates, dont_extend_height=True
            ),
            Window(FormattedTextControl(stepper.stages), wrap_lines=True, dont_extend_height=True),
            Window(FormattedTextControl(stepper.status), wrap_lines=True, dont_extend_height=True),
            ConditionalContainer(VSplit([label, line_window]), filter=typing),
            ConditionalContainer(
                Window(FormattedTextControl(keys_line), dont_extend_height=True), filter=~typing
            ),
        ]
    )
    return Application(
        Layout(layout, focused_element=main),
        key_bindings=keys,
        style=STYLE,
        full_screen=True,
        input=input,
        output=output,
    )


def _width() -> int:
    return get_app().output.get_size().columns
