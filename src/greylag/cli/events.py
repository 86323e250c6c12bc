"""`greylag events`."""

import asyncio
from collections.abc import AsyncIterator

import click

from greylag.cli.access import Access, api_options, with_client
from greylag.cli.api_types import ProjectPlace, StreamEvent
from greylag.cli.client import ApiClient
from greylag.cli.errors import CliError, RefusedError
from greylag.cli.event_text import event_line
from greylag.cli.patience import Patience

# The server sends what it has at once and then waits: so much silence ends the log so far.
QUIET_SECONDS = 1.0


@click.command()
@click.argument("project")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@api_options
@with_client
async def events(access: Access, api: ApiClient, *, project: str, follow: bool) -> None:
    """Print PROJECT's activation log: what the platform did for it, and why.

    With --json each event is one document on its own line.
    """
    place = await access.place(api, project)
    found = _live(access, api, place) if follow else _so_far(api, place)
    async for event in found:
        if access.output.json:
            access.output.document(event.as_json())
        else:
            access.output.line(event_line(event))


async def _so_far(api: ApiClient, place: ProjectPlace) -> AsyncIterator[StreamEvent]:
    async with api.events(place) as found:
        while True:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    event = await anext(found)
            except (TimeoutError, StopAsyncIteration):
                return
            yield event


async def _live(access: Access, api: ApiClient, place: ProjectPlace) -> AsyncIterator[StreamEvent]:
    """Yield every event once, over as many connections as it takes, until the project is gone."""
    patience = Patience()
    last = 0
    while True:
        try:
            async with api.events(place, last) as found:
                patience.opened()
                async for event in found:
                    patience.worked()
                    last = int(event.id) if event.id and event.id.isdigit() else last
                    yield event
            # The stream ends with the project, and with the server: ask which it was.
            await api.project(place)
        except CliError as error:
            if isinstance(error, RefusedError) and error.problem.code == "project_not_found":
                return
            access.output.note("The connection dropped; going on ...")
            if not await patience.pause_after(error):
                raise
