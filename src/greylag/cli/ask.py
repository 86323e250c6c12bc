"""Questions before something is lost."""

import sys

import click

from greylag.cli.text import one_line


def confirm(question: str, *, yes: bool) -> None:
    """Return when the person agrees, or has agreed with --yes.

    Raises ``click.Abort`` when they do not, and ``click.UsageError`` where nobody can be asked.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError("Nobody can be asked here: add --yes to delete without asking.")
    if not click.confirm(one_line(question), err=True):
        raise click.Abort
