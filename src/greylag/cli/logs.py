"""`greylag logs` and `greylag events`: what an environment says, and what was done for it."""

import asyncio
import codecs
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import click

from greylag.cli.access import Access, api_command
from greylag.cli.client import ApiClient, ProjectPlace
from greylag.cli.errors import CliError, Patience, ServerRefusedError, ServerUnreachableError
from greylag.cli.output import moment, one_line, visible
from greylag.cli.transport import ANSWER_SECONDS, StreamEvent
from greylag.common.typed import parse_json

MAX_LINES = 10_000
MAX_LINE_LENGTH = 1024 * 1024
# The fields of a log line of our own that are shown without their names.
STANDARD = {"timestamp", "level", "event"}


@click.command()
@click.argument("project")
@click.option("-f", "--follow", is_flag=True, help="Print what comes, too, until Ctrl-C.")
@click.option(
    "--tail",
    metavar="LINES",
    type=click.IntRange(0, MAX_LINES),
    default=200,
    show_default=True,
    help="Begin with this many of the last lines.",
)
@api_command
async def logs(access: Access, *, project: str, follow: bool, tail: int) -> None:
    """Print what PROJECT's environment says.

    On a terminal the lines are made readable; a pipe gets them as they are, but with control
    characters made visible. With --json each line is one document: {"line": "..."}.
    """
    place = await access.place(project)
    async with access.api.logs(place, follow=follow, tail=tail) as chunks:
        if access.output.json:
            async for line in _lines(chunks):
                access.output.document({"line": line})
        elif access.output.out:
            async for line in _lines(chunks):
                access.output.write(log_line(line) + "\n")
        else:
            async for text in _decoded(chunks):
                # A reader that stops reading stops us here, and the server with us.
                access.output.write(visible(text))


async def _decoded(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Yield the text; a chunk may end inside a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    async for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Yield whole lines; one that is too long for memory comes in pieces."""
    rest = ""
    async for text in _decoded(chunks):
        *whole, rest = (rest + text).split("\n")
        for line in whole:
            yield line
        if len(rest) > MAX_LINE_LENGTH:
            yield rest
            rest = ""
    if rest:
        yield rest


@click.command()
@click.argument("project")
@click.option("-f", "--follow", is_flag=True, help="Print what comes, too, until Ctrl-C.")
@api_command
async def events(access: Access, *, project: str, follow: bool) -> None:
    """Print PROJECT's activation log: what the platform did for it, and why.

    With --json each event is one document on its own line.
    """
    place = await access.place(project)
    # An end in between, such as of the reader of the output, closes the stream, too.
    async with aclosing(_live(access, place) if follow else _so_far(access.api, place)) as found:
        async for event in found:
            if access.output.json:
                access.output.document(event.as_json())
            else:
                access.output.line(event_line(event))


async def _so_far(api: ApiClient, place: ProjectPlace) -> AsyncGenerator[StreamEvent]:
    async with api.events(place, follow=False) as found:
        while True:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    event = await anext(found)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise ServerUnreachableError(
                    "The log does not end: there may be more of it.",
                    "Try again; an earlier Greylag does not end it, but shows it with --follow.",
                    connected=True,
                ) from error
            yield event


async def _live(access: Access, place: ProjectPlace) -> AsyncGenerator[StreamEvent]:
    """Yield every event once, over as many connections as it takes, until the project is gone."""
    patience = Patience()
    last = 0
    while True:
        try:
            async with access.api.events(place, last) as found:
                patience.opened()
                async for event in found:
                    patience.worked()
                    last = int(event.id) if event.id and event.id.isdigit() else last
                    yield event
            # The stream ends with the project, and with the server: ask which it was.
            await access.api.project(place)
        except CliError as error:
            if isinstance(error, ServerRefusedError) and error.problem.code == "project_not_found":
                return
            access.output.note("The connection dropped; going on ...")
            if not await patience.pause_after(error):
                raise


def log_line(line: str) -> str:
    """Return one line: time, level, event and its fields where it is Greylag's own JSON.

    A line of another shape comes back as it is. All of it is harmless to a terminal.
    """
    try:
        found = parse_json(line)
    except ValueError:
        return one_line(line)
    if not isinstance(found, dict) or not {"timestamp", "event"} <= found.keys():
        return one_line(line)
    fields = [f"{name}={_value(value)}" for name, value in found.items() if name not in STANDARD]
    level = f"{found.get('level', '')!s:<7}"
    return one_line(
        " ".join([moment(str(found["timestamp"])), level, str(found["event"]), *fields])
    )


def _value(value: object) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value)


def event_line(event: StreamEvent) -> str:
    """Return an event of the activation log as one line, with its hint if it has one."""
    hint = event.text("hint")
    words = one_line(event.text("message")) + (f" ({one_line(hint)})" if hint else "")
    status = one_line(event.text("status"))
    return f"{moment(event.text('at') or None)}  {status:<12}  {words}"
