"""`greylag audit`: who did what, listed, written out, and checked."""

from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

import click

from greylag.cli.access import Access, api_command
from greylag.cli.client import ApiClient
from greylag.cli.errors import CodedError
from greylag.cli.output import counted, moment
from greylag.common.typed import parse_json
from greylag.domain.audit import ChainBrokenError, ChainCheck, Link, Result

COLUMNS = ("NUMBER", "WHEN", "WHO", "ACTION", "OBJECT", "RESULT", "FROM")
_MOST = 500
_C = TypeVar("_C", bound=Callable[..., Any])


def filters(command: _C) -> _C:
    """Give a command the options that say which entries."""
    for option in (
        click.option("--until", metavar="TIME", help="Before, as 2026-11-26T12:00:00Z."),
        click.option("--since", metavar="TIME", help="Not before."),
        click.option("--result", type=click.Choice([*map(str, Result)]), help="What came of it."),
        click.option("--object", metavar="PATH", help="As project/ada/notes, or below it."),
        click.option("--action", metavar="NAME", help="As projects.edit."),
        click.option("--by", metavar="ID", help="What this user did."),
    ):
        command = option(command)
    return command


@click.group()
def audit() -> None:
    """Read and check the audit trail, as an administrator."""


@audit.command("list")
@filters
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1, _MOST),
    default=50,
    show_default=True,
    help="How many.",
)
@api_command
async def list_entries(access: Access, /, *, limit: int, **asked: str | None) -> None:
    """List the newest entries, the newest first.

    Example: greylag audit list --object project/ada/notes --result refused
    """
    page = await access.api.get("audit", query={**_given(asked), "limit": str(limit)})
    rows = (
        (
            str(one["number"]),
            moment(one["at"]),
            one["actor"]["user"] or one["actor"]["kind"],
            one["action"] or "-",
            one["object"] or "-",
            one["result"] + (f" x{one['count']}" if one["count"] > 1 else ""),
            one["actor"]["address"] or "-",
        )
        for one in page["entries"]
    )
    access.output.listing(page, COLUMNS, rows, prose=("OBJECT",), empty="No entry matches.")


@audit.command("export", short_help="Write all entries, each a line of JSON.")
@filters
@api_command
async def export_entries(access: Access, /, **asked: str | None) -> None:
    """Write all entries to standard output, the oldest first, each a line of JSON.

    Example: greylag audit export --since 2026-11-01T00:00:00Z > audit.jsonl
    """
    async with access.api.audit_lines(_given(asked)) as lines:
        async for line in lines:
            access.output.write(line.decode() + "\n")


def _link(_context: click.Context, _option: click.Parameter, value: str | None) -> Link | None:
    if value is None:
        return None
    number, _, told = value.partition(":")
    if not (number.isascii() and number.isdecimal()):
        raise click.BadParameter("it is of the form NUMBER:HASH.")
    return Link(int(number), told)


@audit.command("verify", short_help="Check that none is missing or was changed.")
@click.argument("file", type=click.File("rb"), required=False)
@click.option(
    "--known",
    metavar="NUMBER:HASH",
    callback=_link,
    help="An entry that you have noted: it must be there, unchanged.",
)
@api_command
async def verify(access: Access, *, file: BinaryIO | None, known: Link | None) -> None:
    """Check that no entry is missing or was changed, and name the first that is.

    It asks the server, or reads FILE, which `greylag audit export` wrote without a filter. Note
    what it prints: with --known, a later check finds that all was written anew, too.
    """
    try:
        if file is None:
            check = await _verify_server(access.api, known)
        else:
            check = _verify_file(file, known)
    except ChainBrokenError as error:
        raise CodedError(error.info.message, error.info.hint, error.info.code) from error
    last = f"{check.last.number}:{check.last.hash}"
    access.output.made(
        {"whole": True, "entries": check.count, "last": last},
        lambda: (
            f"The audit trail is whole: {counted(check.count, 'entry', 'entries')}. The last is",
            last,
        ),
    )


class KnownCheck(ChainCheck):
    """A check that counts entries, and that meets ``known`` on its way.

    Raises:
        ChainBrokenError: it begins after ``known``, or with another entry of its number.
    """

    def __init__(self, start: Link, known: Link | None) -> None:
        super().__init__(start)
        self.count = 0
        self._known = known
        if known is not None and known.number < start.number:
            raise ChainBrokenError(
                f"The entry {known.number} is not there any more, so nothing tells whether it was"
                " changed.",
            )
        self._meet()

    def take(self, entry: Any) -> None:
        """Check one more entry."""
        self.follow([entry])
        self.count += 1
        self._meet()

    def _meet(self) -> None:
        if self._known is not None and self.last.number == self._known.number:
            if self.last.hash != self._known.hash:
                raise ChainBrokenError(f"The entry {self.last.number} was changed.")
            self._known = None

    def finish(self, end: Link) -> "KnownCheck":
        """Check that the end is there."""
        self.end(end if self._known is None else max(end, self._known, key=lambda x: x.number))
        return self


async def _verify_server(api: ApiClient, known: Link | None) -> KnownCheck:
    while True:
        page = await api.get("audit", query={"limit": "1"})
        start, end = Link(**page["start"]), Link(**page["end"])
        check = KnownCheck(start, known)
        try:
            async with api.audit_lines({}) as lines:
                async for line in lines:
                    check.take(parse_json(line))
            return check.finish(end)
        except ChainBrokenError:
            # What was trimmed meanwhile is not missing.
            if (await api.get("audit", query={"limit": "1"}))["start"] == page["start"]:
                raise


def _verify_file(file: BinaryIO, known: Link | None) -> KnownCheck:
    check: KnownCheck | None = None
    for line in file:
        try:
            entry = parse_json(line)
            before = Link(entry["number"] - 1, entry["previous"])
        except (ValueError, TypeError, KeyError) as error:
            raise click.UsageError("FILE: a line of it is no entry.") from error
        # A file may begin anywhere in the chain.
        check = check or KnownCheck(before, known)
        check.take(entry)
    if check is None:
        raise click.UsageError("FILE: it holds no entry.")
    return check.finish(check.last)


def _given(asked: dict[str, str | None]) -> dict[str, str]:
    # Not an option named "user": that of all commands, for whom they act, would take its place.
    named = {"user" if name == "by" else name: value for name, value in asked.items()}
    return {name: value for name, value in named.items() if value}
