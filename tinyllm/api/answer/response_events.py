"""Updates of one choice → the events of a streamed response, the last of which is the whole of it.

The order is OpenAI's: an item is added, its part is added, deltas, and each is done before the next
begins. A thought is an item of its own, and so is every call.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from tinyllm.api.answer.generation import Update
from tinyllm.api.answer.reader import Piece
from tinyllm.api.answer.run import Run
from tinyllm.api.constraints.call_reader import CallArguments, CallStart
from tinyllm.api.contract.answers import TokenLogprob
from tinyllm.api.contract.errors import ApiError
from tinyllm.api.contract.response_answers import (
    CallItem,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ResponseEvent,
    ResponseOut,
    Status,
)
from tinyllm.api.contract.response_tools import full_name
from tinyllm.api.contract.responses import ResponsesRequest
from tinyllm.api.contract.tools import SchemaFormat
from tinyllm.inside.trace_file import VERSION, StepRecord


class ResponseWriter:
    """Writes one response as events.

    Args:
        run: what answers; one prompt, one choice.
        request: what was asked, which the response repeats.
        created: seconds since the epoch.
        on_done: is given the finished response.
    """

    def __init__(
        self,
        run: Run,
        request: ResponsesRequest,
        created: float,
        on_done: Callable[[ResponseOut], None],
    ) -> None:
        self._run, self._request, self._on_done = run, request, on_done
        self._created = run.plans[0].dialect.created(created)
        self._hide_thought = run.plans[0].hide_thought
        self._items: list[Item] = []
        self._open: Item | None = None
        self._logprobs: list[TokenLogprob] = []
        self._steps: list[StepRecord] = []
        self._finish: str | None = None
        self._number = 0
        self._events: list[ResponseEvent] = []

    def start(self) -> list[ResponseEvent]:
        """What can be said before the first token."""
        self._emit("response.created", response=self.response("in_progress"))
        self._emit("response.in_progress", response=self.response("in_progress"))
        return self._taken()

    def push(self, update: Update) -> list[ResponseEvent]:
        """The events that an update makes."""
        piece = update.piece
        self._steps += piece.steps
        if piece.thought and not self._hide_thought:
            self._thought(piece.thought)
        if piece.content or piece.logprobs:
            self._content(piece)
        for call in piece.calls:
            self._call(call)
        if update.finish is not None:
            self._finish = update.finish
            self._close()
        return self._taken()

    def end(self) -> list[ResponseEvent]:
        """The last event, with the whole response."""
        if not self._items:  # nothing was said: a message without words
            self._message()
            self._close()
        cut = self._finish == "length"
        response = self.response("incomplete" if cut else "completed")
        self._on_done(response)
        self._emit(f"response.{response['status']}", response=response)
        return self._taken()

    def failed(self, error: ApiError) -> list[ResponseEvent]:
        """What a stream ends with after a fault."""
        fault = {"code": error.code, "message": error.message, "param": error.param}
        self._emit("error", **fault)
        response = self.response("failed")
        response["error"] = {"code": error.code or "server_error", "message": error.message}
        self._emit("response.failed", response=response)
        return self._taken()

    # -- items ---------------------------------------------------------------------------------

    def _thought(self, text: str) -> None:
        item = self._open
        if item is None or item["type"] != "reasoning":
            self._close()
            new: ReasoningItem = {
                "id": _id("rs"), "type": "reasoning", "status": "in_progress", "summary": [],
                "content": [{"type": "reasoning_text", "text": ""}],
            }  # fmt: skip
            self._add({**new, "content": []})
            self._open = item = new
            self._part("added", item)
        assert item["type"] == "reasoning"
        item["content"][0]["text"] += text
        self._emit("response.reasoning_text.delta", delta=text, **self._place(item))

    def _content(self, piece: Piece) -> None:
        item = self._message()
        item["content"][0]["text"] += piece.content
        logprobs = list(piece.logprobs) if self._request.wants_logprobs else []
        item["content"][0]["logprobs"] += logprobs
        self._emit(
            "response.output_text.delta", delta=piece.content, logprobs=logprobs,
            **self._place(item),
        )  # fmt: skip

    def _message(self) -> MessageItem:
        """The open message, begun if there is none."""
        item = self._open
        if item is not None and item["type"] == "message":
            return item
        self._close()
        part: OutputText = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        new: MessageItem = {
            "id": _id("msg"), "type": "message", "status": "in_progress", "role": "assistant",
            "content": [part],
        }  # fmt: skip
        self._add({**new, "content": []})
        self._open = new
        self._part("added", new)
        return new

    def _call(self, call: CallStart | CallArguments) -> None:
        if isinstance(call, CallStart):
            self._close()
            namespace, name = self._request.functions.split(call.name)
            new: CallItem = {
                "id": _id("fc"), "type": "function_call", "status": "in_progress",
                "call_id": _id("call"), "name": name, "arguments": "",
            }  # fmt: skip
            if namespace is not None:
                new["namespace"] = namespace
            self._add({**new})
            self._open = new
            return
        item = self._open
        assert item is not None and item["type"] == "function_call"
        item["arguments"] += call.text
        self._emit(
            "response.function_call_arguments.delta", item_id=item["id"],
            output_index=len(self._items), delta=call.text,
        )  # fmt: skip

    def _close(self) -> None:
        """End the open item, with everything in it."""
        item, self._open = self._open, None
        if item is None:
            return
        item["status"] = "incomplete" if self._finish == "length" else "completed"
        index = len(self._items)
        if item["type"] == "message":
            part = item["content"][0]
            self._emit(
                "response.output_text.done", text=part["text"], logprobs=part["logprobs"],
                **self._place(item),
            )  # fmt: skip
            self._part("done", item)
        elif item["type"] == "reasoning":
            text = item["content"][0]["text"]
            self._emit("response.reasoning_text.done", text=text, **self._place(item))
            self._part("done", item)
        else:
            self._emit(
                "response.function_call_arguments.done", item_id=item["id"], output_index=index,
                name=item["name"], arguments=item["arguments"],
            )  # fmt: skip
        self._items.append(item)
        self._emit("response.output_item.done", output_index=index, item=item)

    def _add(self, item: Item) -> None:
        self._emit("response.output_item.added", output_index=len(self._items), item=item)

    def _part(self, what: str, item: MessageItem | ReasoningItem) -> None:
        part = {**item["content"][0]}
        self._emit(f"response.content_part.{what}", part=part, **self._place(item))

    def _place(self, item: Item) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self._items), "content_index": 0}

    # -- the response --------------------------------------------------------------------------

    def response(self, status: Status) -> ResponseOut:
        """The response as it stands; its usage only once it is over."""
        request, plan, over = self._request, self._run.plans[0], status != "in_progress"
        response: ResponseOut = {
            "id": self._run.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": plan.named,
            "output": list(self._items),
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "reasoning": {
                "effort": request.reasoning.effort if request.reasoning else None,
                "summary": None,
            },
            "store": request.kept,
            "temperature": plan.params.temperature,
            "text": _text_options(request),
            "tool_choice": _dumped(request.tool_choice) or "auto",
            "tools": [_dumped(tool) for tool in request.tools or ()],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": plan.params.top_p,
            "truncation": request.truncation or "disabled",
            "usage": None,
            "user": request.user,
        }
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if over:
            usage = self._run.usage
            response["usage"] = {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": usage["completion_tokens_details"],
                "total_tokens": usage["total_tokens"],
            }
        if over and request.trace is not None:
            response["trace"] = {"version": VERSION, "steps": list(self._steps)}
        return response

    def _emit(self, kind: str, **fields: Any) -> None:
        event: Any = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        self._events.append(event)

    def _taken(self) -> list[ResponseEvent]:
        events, self._events = self._events, []
        return events


def _text_options(request: ResponsesRequest) -> dict[str, Any]:
    if isinstance(named := request.response_format, SchemaFormat):  # by another name
        return {"format": {"type": "json_schema", **_dumped(named.json_schema)}}
    wanted = request.response_format or (request.text.format if request.text else None)
    return {"format": _dumped(wanted) or {"type": "text"}}


def _dumped(value: Any) -> Any:
    """A part of the request as it was sent."""
    if value is None or isinstance(value, str):
        return value
    return value.model_dump(by_alias=True, exclude_unset=True)


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"


def messages_of(response: ResponseOut) -> list[dict[str, Any]]:
    """A response's items as messages of the conversation that it belongs to."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    for item in response["output"]:
        if item["type"] == "message":
            message["content"] = item["content"][0]["text"]
        elif item["type"] == "reasoning":
            message["reasoning"] = item["content"][0]["text"]
        else:
            name = full_name(item.get("namespace"), item["name"])
            function = {"name": name, "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            message.setdefault("tool_calls", []).append(call)
    if message["content"] is None and "tool_calls" not in message:
        message["content"] = ""
    return [message]
