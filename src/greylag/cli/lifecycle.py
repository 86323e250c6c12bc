"""`greylag activate` and `greylag deactivate`."""

import asyncio

import click

from greylag.cli.access import Access, api_options, place_of, with_client
from greylag.cli.api_types import Action, ProjectJson, ProjectPlace, Wish
from greylag.cli.client import ApiClient
from greylag.cli.errors import CliError
from greylag.cli.event_text import event_line
from greylag.cli.output import Output
from greylag.cli.projects import show_project
from greylag.cli.tasks import task_group
from greylag.cli.waiting import wait_options

# The answer and the log come over two connections: the log's last line may be a moment behind.
LAST_LINE_SECONDS = 1.0
WISHED = {"activate": "active", "deactivate": "inactive"}


@click.command()
@click.argument("project")
@wait_options
@api_options
@with_client
async def activate(access: Access, api: ApiClient, *, project: str, wish: Wish) -> None:
    """Start PROJECT's environment and wait until its agent answers.

    The activation log is shown on the way. A project that is active already stays as it is.
    Exit code 4 says that the time was over and it goes on.
    """
    found = await access.project(api, project)
    await _change(access.output, api, found, "activate", wish)


@click.command()
@click.argument("project")
@wait_options
@api_options
@with_client
async def deactivate(access: Access, api: ApiClient, *, project: str, wish: Wish) -> None:
    """Stop PROJECT's environment and wait until it is down; its files and history are kept."""
    found = await access.project(api, project)
    await _change(access.output, api, found, "deactivate", wish)


async def _change(
    output: Output, api: ApiClient, before: ProjectJson, action: Action, wish: Wish
) -> None:
    if wish.wait is False:
        show_project(output, await api.change(place_of(before), action, wish))
        return
    words = f"{'Activating' if action == 'activate' else 'Deactivating'} ..."
    with output.busy(words):
        after = await _while_showing(output, api, before, action, wish)
    show_project(output, after)


async def _while_showing(
    output: Output, api: ApiClient, before: ProjectJson, action: Action, wish: Wish
) -> ProjectJson:
    place = place_of(before)
    same_wish = before["desired"] == WISHED[action] and before["status"] != "error"
    settled = before["observed_generation"] >= before["generation"]
    if same_wish and settled:
        return await api.change(place, action, wish)
    # What is already on its way is the change that we join; else ours will be the next one.
    first = before["generation"] + (0 if same_wish else 1)
    async with task_group() as group:
        log = group.create_task(
            _show_log(output, api, place, first, WISHED[action]), name="activation log"
        )
        try:
            return await api.change(place, action, wish)
        except asyncio.CancelledError:
            log.cancel()
            raise
        finally:
            await asyncio.wait({log}, timeout=LAST_LINE_SECONDS)
            log.cancel()


async def _show_log(
    output: Output, api: ApiClient, place: ProjectPlace, first: int, wished: str
) -> None:
    """Print the log from generation ``first`` on, until it tells the end."""
    try:
        async with api.events(place) as events:
            async for event in events:
                generation = event.content.get("generation")
                if isinstance(generation, int) and generation >= first:
                    output.note(event_line(event))
                    # Its code, not its status: steps written with the last event share that.
                    if event.text("code") == wished or event.text("status") == "error":
                        return
    except CliError as error:
        # The log is an extra: the change itself tells how it ends.
        output.note(f"The activation log cannot be shown: {error.message}")
