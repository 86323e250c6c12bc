"""`greylag logs`."""

import codecs
from collections.abc import AsyncIterator

import click

from greylag.cli.access import Access, api_options, with_client
from greylag.cli.client import ApiClient
from greylag.cli.log_text import log_line
from greylag.cli.text import visible

MAX_LINES = 10_000
MAX_LINE_LENGTH = 1024 * 1024


@click.command()
@click.argument("project")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option(
    "--tail",
    metavar="LINES",
    type=click.IntRange(0, MAX_LINES),
    default=200,
    show_default=True,
    help="Begin with so many of the last lines, 0 to 10000.",
)
@api_options
@with_client
async def logs(access: Access, api: ApiClient, *, project: str, follow: bool, tail: int) -> None:
    """Print what PROJECT's environment says.

    On a terminal the lines are made readable; a pipe gets them as they are. With --json each line
    is one document: {"line": "..."}.
    """
    place = await access.place(api, project)
    async with api.logs(place, follow=follow, tail=tail) as chunks:
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
