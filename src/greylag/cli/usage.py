"""Wrong usage, told as every other error is: a sentence, then what to do."""

import click
from click.exceptions import NoArgsIsHelpError, NoSuchOption

from greylag.cli.text import visible


def print_usage_error(error: click.ClickException) -> None:
    """Print what is wrong with a command line, how it is used, and where to read more."""
    if isinstance(error, NoArgsIsHelpError):
        error.show()
        return
    click.echo(visible(f"error: {error.format_message()}"), err=True)
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return
    if isinstance(error, NoSuchOption) and context.parent is None:
        hint = f"Options stand after the verb: {context.command_path} VERB {error.option_name} ..."
    else:
        hint = f"`{context.command_path} --help` tells more."
    click.echo(context.get_usage().replace("Usage:", "usage:", 1), err=True)
    click.echo(visible(f"hint: {hint}"), err=True)
