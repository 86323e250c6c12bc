"""`greylag manifests`."""

import click

from greylag.cli.output import Output
from greylag.cli.serve import StartError
from greylag.domain.errors import GreylagError


@click.command()
@click.argument("user")
@click.argument("project")
@click.option("--template", help="Name of a template (default: the project has picked none).")
@click.option("--stopped", is_flag=True, help="Print it as it sleeps, with no pod.")
def manifests(user: str, project: str, template: str | None, *, stopped: bool) -> None:
    """Print the Kubernetes objects of a project's environment as YAML.

    The settings of this shell decide, as those of the server do there; no server is asked and no
    record is needed. Secrets are not printed: placeholders stand in their place.

    Example: ACR_IMAGE=goose-api-server:1 greylag manifests alice search
    """
    from greylag.wiring import printed_manifests

    replicas = 0 if stopped else 1
    try:
        text = printed_manifests(user, project, template=template, replicas=replicas)
    except GreylagError as error:
        raise StartError(error.info.message, error.info.hint) from error
    Output(as_json=False).write(text)
