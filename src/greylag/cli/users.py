"""`greylag users`."""

import click

from greylag.cli.access import Access, api_options, with_client
from greylag.cli.client import ApiClient


@click.command()
@api_options
@with_client
async def users(access: Access, api: ApiClient) -> None:
    """List the users whom projects can belong to."""
    found = await api.users()
    if access.output.json:
        access.output.document({"users": found})
    else:
        access.output.table(
            ("ID", "NAME"),
            [(user["id"], user["display_name"]) for user in found],
            prose=("NAME",),
        )
