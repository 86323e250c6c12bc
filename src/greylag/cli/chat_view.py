"""How a turn is shown: the answer on stdout, all that happens around it on stderr."""

import json
import math
import sys
from typing import Any

from greylag.cli.output import Output, one_line, shortened, visible
from greylag.cli.transport import StreamEvent

ARGUMENT_LENGTH = 100
QUESTION_LENGTH = 4000
QUESTION = "Allow it once? [y/N] "
LASTING_QUESTION = "Allow it once? [y/N, a: always in this session] "
_MINUTES = 90
_LONGEST = 86_400.0
_DOING = {
    "turn": "waiting for the model",
    "message": "waiting for the model",
    "thinking": "the model thinks",
    "tool_request": "the tool runs",
    "tool_response": "waiting for the model",
    "status": "waiting",
}


class TurnView:
    """Where a turn's events and the client's own remarks go: here each on a line of its own."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def show(self, event: StreamEvent) -> None:
        """Show one event of the turn."""
        raise NotImplementedError

    def note(self, text: str) -> None:
        """Tell the person what the client does."""
        self._output.note(text)

    def question(self, event: StreamEvent) -> None:
        """Show in full what a ``tool_confirmation`` asks; the caller reads the answer."""

    def answered(self) -> None:
        """Take note that Enter has ended the question's line."""

    def interrupted(self) -> None:
        """Take note of a Ctrl-C."""

    def silent(self, seconds: int) -> None:
        """Show that nothing has come for so long, 0 that something has."""

    def end(self) -> None:
        """Leave the cursor at the start of a line."""


class JsonView(TurnView):
    """Each event as one line of JSON on stdout; remarks on stderr."""

    def show(self, event: StreamEvent) -> None:
        """Print the event."""
        self._output.document(event.as_json())


class TextView(TurnView):
    """The answer as it comes, thinking dimmed, tool calls and their results in one line each.

    ``full`` shows the results of tools whole.
    """

    def __init__(self, output: Output, *, full: bool = False) -> None:
        super().__init__(output)
        self._full = full
        self._doing = "waiting"
        self._showing = ""
        self._line_open = False
        self._shown: set[str] = set()

    def show(self, event: StreamEvent) -> None:
        """Show the event; kinds that say nothing to a person are passed over."""
        self._doing = _DOING.get(event.type, "the agent works")
        match event.type:
            case "message":
                self._answer(event.text("content"))
            case "thinking":
                self._thought(event.text("message"))
            case "tool_request":
                self.end()
                self.note(f"> {one_line(event.text('tool_name'))} {_arguments(event)}")
            case "tool_response":
                self._tool_result(event)
            case "turn":
                self._once(event.text("demonstration"))
            case "status" | "context_exceeded":
                self.note(_with_hint(event))
            case "error":
                self._error(event)

    def note(self, text: str) -> None:
        """Print a line of its own on stderr, dimmed."""
        # Where the answer goes into a file, a remark must not break its line.
        if self._output.out or self._showing != "answer":
            self.end()
        super().note(text)

    def question(self, event: StreamEvent) -> None:
        """Print the whole tool call: nobody should allow what they have not seen."""
        arguments = _json(event.content.get("arguments"), indent=2)
        if len(arguments) > QUESTION_LENGTH:
            left = len(arguments) - QUESTION_LENGTH
            arguments = f"{arguments[:QUESTION_LENGTH]}\n... and {left} more characters, not shown"
        self.end()
        tool = one_line(event.text("tool_name"))
        self._output.note(f"The agent asks to run {tool}:", style="bold yellow")
        waiting = _time_left(event)
        told = f"It is declined by itself in {waiting}.\n" if waiting else ""
        question = LASTING_QUESTION if may_last(event) else QUESTION
        self._output.piece(f"{arguments}\n{told}{question}")
        self._leave_open()

    def answered(self) -> None:
        """Take note that Enter has ended the question's line."""
        self._line_open = False

    def interrupted(self) -> None:
        """Take note that the terminal has shown `^C`."""
        if sys.stdin.isatty() and not self._line_open:
            self._leave_open()

    def silent(self, seconds: int) -> None:
        """Show after what stands there that nothing has come for so long."""
        if self._showing != "question" or not self._line_open:
            self._output.passing(f" ... {self._doing}, {seconds} s" if seconds else "")

    def end(self) -> None:
        """Close the line that the last piece left open."""
        if self._line_open and self._showing == "answer":
            self._output.write("\n")
        elif self._line_open:
            self._output.piece("\n")
        self._line_open = False

    def _answer(self, text: str) -> None:
        self._switch_to("answer")
        # A reader that stops reading stops us here, and the server with us: nothing piles up.
        self._output.write(visible(text))
        self._mark(text)

    def _thought(self, text: str) -> None:
        self._switch_to("thought")
        self._output.piece(text, "dim italic")
        self._mark(text)

    def _tool_result(self, event: StreamEvent) -> None:
        result = event.content.get("result")
        found = result if isinstance(result, dict) else {}
        failed = bool(event.content.get("is_error"))
        parts = found.get("content" if failed else "Ok")
        told = [str(found.get("Err", ""))] if failed else []
        told += [_block(part) for part in parts if isinstance(part, dict)] if parts else []
        told += [_json(found["data"])] if "data" in found else []
        whole, how = "\n".join(told), "failed" if failed else "ok"
        if self._full:
            self.note(f"  {how}:")
            self._output.piece(whole if whole.endswith("\n") or not whole else f"{whole}\n")
            return
        short = shortened(whole, ARGUMENT_LENGTH)
        self.note(
            f"  {how}: {short}" + (" - `--full` shows all" if len(short) < len(whole) else "")
        )

    def _error(self, event: StreamEvent) -> None:
        self.end()
        words = event.text("error") or event.text("message")
        code = event.text("code")
        self._output.note(f"error: {words}" + (f" [{code}]" if code else ""), style="red")
        if event.text("hint"):
            self._output.note(f"hint: {event.text('hint')}", style="")

    def _once(self, text: str) -> None:
        if text and text not in self._shown:
            self._shown.add(text)
            self.note(text)

    def _switch_to(self, kind: str) -> None:
        if kind != self._showing:
            self.end()
        self._showing = kind

    def _leave_open(self) -> None:
        self._showing = "question"
        self._line_open = True

    def _mark(self, text: str) -> None:
        if text:
            self._line_open = not text.endswith("\n")


def may_last(event: StreamEvent) -> bool:
    """Tell whether a ``tool_confirmation`` may be answered for the rest of the session."""
    decisions = event.content.get("decisions")
    return isinstance(decisions, list) and "allow_session" in decisions


def _time_left(event: StreamEvent) -> str:
    """Return how long a ``tool_confirmation`` waited for its answer when it was told."""
    told, end = (event.content.get(name) for name in ("timestamp", "expires_at"))
    if not isinstance(told, int | float) or not isinstance(end, int | float):
        return ""
    if not math.isfinite(end - told):
        return ""
    seconds = int(min(max(end - told, 0.0), _LONGEST))
    return f"{seconds} s" if seconds < _MINUTES else f"{seconds // 60} min"


def _block(part: dict[str, Any]) -> str:
    """Return one block of a tool's result as text; what is no text is named."""
    if isinstance(text := part.get("text"), str):
        return text
    resource = part.get("resource")
    inside = resource if isinstance(resource, dict) else part
    if isinstance(text := inside.get("text"), str):
        return text
    if part.get("type") == "diff":
        return f"[changes {part.get('path')}]"
    named = inside.get("mimeType") or part.get("type") or "nothing"
    data = inside.get("data") or inside.get("blob")
    size = f", {len(data) * 3 // 4} bytes" if isinstance(data, str) else ""
    where = f", {inside['uri']}" if isinstance(inside.get("uri"), str) else ""
    return one_line(f"[{named}{size}{where}]")


def _with_hint(event: StreamEvent) -> str:
    hint = event.text("hint")
    return event.text("message") + (f" ({hint})" if hint else "")


def _arguments(event: StreamEvent) -> str:
    arguments = event.content.get("arguments")
    if isinstance(arguments, dict) and len(arguments) == 1:
        only = next(iter(arguments.values()))
        return shortened(only if isinstance(only, str) else _json(only), ARGUMENT_LENGTH)
    return shortened(_json(arguments), ARGUMENT_LENGTH)


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
