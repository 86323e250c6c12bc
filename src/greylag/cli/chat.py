"""`greylag chat`."""

import asyncio
import contextlib
import importlib
import sys

import click

from greylag.cli.access import Access, api_options
from greylag.cli.api_types import Decision
from greylag.cli.ask import somebody_is_there
from greylag.cli.chat_view import JsonView, TextView
from greylag.cli.conversation import Conversation, End
from greylag.cli.errors import CliError, Exit, InterruptedByUserError
from greylag.cli.text import visible

PROMPT = "you> "
# Far above what a server takes; it only guards this machine's memory.
LONGEST_MESSAGE = 64 * 1024 * 1024
EXIT_CODES = {
    End.COMPLETED: Exit.OK,
    End.FAILED: Exit.REFUSED,
    End.CANCELLED: Exit.REFUSED,
    End.INTERRUPTED: Exit.INTERRUPTED,
}


@click.command()
@click.argument("project")
@click.argument("message", required=False)
@click.option(
    "--session", metavar="SESSION", help="Go on with this session; without it a new one begins."
)
@click.option("--allow-tools", is_flag=True, help="Allow every tool call without asking.")
@api_options
def chat(
    access: Access, *, project: str, message: str | None, session: str | None, allow_tools: bool
) -> int:
    """Talk to PROJECT's agent; a sleeping environment is woken first.

    With MESSAGE (or a message on stdin) one turn, else a conversation until Ctrl-D. Ctrl-C cancels
    the turn; Ctrl-C again leaves. The answer goes to stdout, all else to stderr. Where nobody can
    be asked, tool calls that need a confirmation are declined, unless --allow-tools is given.

    \b
    Examples:
      greylag chat search "Which files are in the workspace?"
      git diff | greylag chat search > review.md
      greylag chat search
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph
    text = _message(message, as_json=access.output.json)
    # One loop for the whole conversation; it rests while the prompt waits for a line.
    with asyncio.Runner() as runner:
        api = access.client()
        runner.run(api.__aenter__())
        try:
            place = runner.run(access.place(api, project))
            view = JsonView(access.output) if access.output.json else TextView(access.output)
            fixed = _fixed_decision(access, allow_tools=allow_tools)
            talk = Conversation(api, place, view, session_id=session, fixed=fixed)
            if text is not None:
                end = runner.run(talk.turn(text))
                _tell_session(access, talk)
                return EXIT_CODES[end]
            return _converse(runner, talk, access)
        finally:
            runner.run(api.__aexit__())


def _converse(runner: asyncio.Runner, talk: Conversation, access: Access) -> int:
    # Line editing and history at the prompt, where Python was built with it.
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")
    access.output.note("Ctrl-D ends the conversation.")
    while True:
        try:
            line = input(PROMPT)
        except EOFError:
            access.output.note("")
            _tell_session(access, talk)
            return Exit.OK
        if not line.strip():
            continue
        try:
            runner.run(talk.turn(line))
        except InterruptedByUserError:
            raise
        except CliError as error:
            access.output.note("\n".join(error.lines), style="red")


def _message(argument: str | None, *, as_json: bool) -> str | None:
    """Return the one message to send, or ``None`` to converse on the terminal."""
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        if as_json or not sys.stdout.isatty():
            raise click.UsageError("Give a MESSAGE, as an argument or on stdin.")
        return None
    raw = sys.stdin.buffer.read(LONGEST_MESSAGE + 1)
    if len(raw) > LONGEST_MESSAGE:
        raise click.UsageError(f"The message on stdin is longer than {LONGEST_MESSAGE} bytes.")
    text = raw.decode("utf-8", "replace")
    if not text.strip():
        raise click.UsageError("The message on stdin is empty.")
    return text


def _fixed_decision(access: Access, *, allow_tools: bool) -> Decision | None:
    if allow_tools:
        return "allow_once"
    return None if somebody_is_there() and not access.output.json else "reject_once"


def _tell_session(access: Access, talk: Conversation) -> None:
    if talk.session_id is not None and not access.output.json:
        access.output.note(f"session: {visible(talk.session_id)}")
