"""`greylag ports`, `preview` and `shares`: what an environment serves, and links that show it."""

import re

import click

from greylag.cli.access import Access, api_command
from greylag.cli.output import moment, open_in_browser

_TIME = re.compile(r"([1-9]\d{0,6})([smhd]?)")
_LEAST, _MOST = 60, 30 * 24 * 3600  # seconds, as the API has it
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


class _Duration(click.ParamType[int]):
    """A time such as 30m, 1h or 7d, in seconds."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return its seconds."""
        found = _TIME.fullmatch(value)
        if found is None:
            self.fail(f"{value!r} is no time such as 30m, 1h or 7d.", param, ctx)
        seconds = int(found[1]) * _SECONDS[found[2]]
        if not _LEAST <= seconds <= _MOST:
            self.fail(f"{value!r} is not from 1m to 30d.", param, ctx)
        return seconds


@click.command()
@click.argument("project")
@api_command
async def ports(access: Access, *, project: str) -> None:
    """List the ports on which a project's environment listens."""
    place = await access.place(project)
    found = (await access.api.get(*place.path, "ports"))["ports"]
    rows = ((str(one["port"]), one["process"]) for one in found)
    access.output.listing(
        {"ports": found}, ("PORT", "PROCESS"), rows, prose=("PROCESS",), empty="Nothing is served."
    )


@click.command()
@click.argument("project")
@click.argument("target", metavar="PORT|FILE")
@click.option("--path", metavar="PATH", help="Where at the port, by default /.")
@click.option("--share", type=_Duration(), metavar="TIME", help="For anybody, for 1h or 7d.")
@click.option("--open", "opens", is_flag=True, help="Open it in this machine's browser.")
@api_command
async def preview(  # noqa: PLR0913 - one argument per option
    access: Access,
    *,
    project: str,
    target: str,
    path: str | None,
    share: int | None,
    opens: bool,
) -> None:
    """Print a link that shows what a port of a project serves, or a file of its workspace.

    The link opens one browser, once, within five minutes; with --share any browser, as long as it
    says. A file whose name is a number is written ./8000.

    Example: greylag preview search 8000 --share 1h
    """
    place = await access.place(project)
    is_port = target.isdecimal()
    if path is not None and not is_port:
        raise click.UsageError("--path: a file has none but its own.")
    what = ("ports", target) if is_port else ("files",)
    body = {"path": (path or "/") if is_port else target, "share_seconds": share}
    made = await access.api.post(*place.path, *what, "preview", body=body)
    if access.output.json:
        access.output.document(made)
    else:
        access.output.line(made["url"])
        until = moment(made["expires_at"])
        once = f"It opens one browser, once, until {until}."
        often = f"It opens any browser until {until}; `greylag shares {project} --end "
        access.output.note(once if share is None else f"{often}{made['share']}` ends it.")
    if opens and not await open_in_browser(made["url"]):
        access.output.note("No browser was found here: open the link yourself.")


@click.command()
@click.argument("project")
@click.option("--end", "ended", metavar="SHARE", help="End this one.")
@api_command
async def shares(access: Access, *, project: str, ended: str | None) -> None:
    """List the links that show something of a project to anybody, or end one."""
    place = await access.place(project)
    if ended is not None:
        await access.api.delete(*place.path, "shares", ended)
        access.output.done({"share": ended, "ended": True}, "It opens nothing any more.")
        return
    found = (await access.api.get(*place.path, "shares"))["shares"]
    rows = (
        (
            one["share"],
            "files" if one["port"] is None else str(one["port"]),
            moment(one["expires_at"]),
            one["path"],
        )
        for one in found
    )
    columns = ("SHARE", "PORT", "UNTIL", "PATH")
    access.output.listing(
        {"shares": found}, columns, rows, prose=("PATH",), empty="Nothing is shared."
    )
