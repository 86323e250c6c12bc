"""`greylag version`."""

import json
import platform

import click

from greylag import __version__


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def version(*, as_json: bool) -> None:
    """Print the version of Greylag and of the Python that runs it."""
    if as_json:
        click.echo(json.dumps({"greylag": __version__, "python": platform.python_version()}))
    else:
        click.echo(f"greylag {__version__} (Python {platform.python_version()})")
