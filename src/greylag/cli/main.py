"""The entry of `greylag`: finds the verb, imports only it, and turns its end into an exit code."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.exceptions import NoSuchCommand
from click.shell_completion import CompletionItem

from greylag import __version__
from greylag.cli.errors import CliError, ClosedPipeError, Exit, OutputLostError
from greylag.cli.output import as_text, drop_output, prepare_streams, print_usage_error, visible


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a command is found, and its line in the help; it is imported only when it is used."""

    place: str
    help: str


VERBS = {
    "up": Verb("greylag.cli.serve:up", "Run everything on this machine and print the address."),
    "serve": Verb("greylag.cli.serve:serve", "Run the web: API, dashboard and streams."),
    "worker": Verb("greylag.cli.serve:worker", "Run the reconciler."),
    "agentd": Verb("greylag.cli.agentd:agentd", "Run the agent's API inside an environment."),
    "users": Verb("greylag.cli.projects:users", "List the users."),
    "projects": Verb(
        "greylag.cli.projects:projects", "List, create, show, rename, delete projects."
    ),
    "activate": Verb("greylag.cli.projects:activate", "Start a project's environment."),
    "deactivate": Verb("greylag.cli.projects:deactivate", "Stop a project's environment."),
    "chat": Verb("greylag.cli.chat:chat", "Talk to a project's agent."),
    "sessions": Verb("greylag.cli.sessions:sessions", "List, read or delete conversations."),
    "logs": Verb("greylag.cli.logs:logs", "Print what a project's environment says."),
    "events": Verb("greylag.cli.logs:events", "Print a project's activation log."),
    "manifests": Verb(
        "greylag.cli.manifests:manifests", "Print a project's Kubernetes objects as YAML."
    ),
    "export": Verb("greylag.cli.store:export_", "Write all records into a file: a backup."),
    "import": Verb("greylag.cli.store:import_", "Put the records of an export into a store."),
    "orphans": Verb(
        "greylag.cli.orphans:orphans", "List, or delete, environments without a record."
    ),
    "doctor": Verb("greylag.cli.doctor:doctor", "Check the server and this machine."),
    "version": Verb("greylag.cli.serve:version", "Print the version."),
}


class LazyGroup(click.Group):
    """A group that knows its verbs by name, so that starting one does not import the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the verbs in the order in which people meet them."""
        return list(VERBS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; a wrong one is told with those that look like it."""
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            raise NoSuchCommand(error.command_name, possibilities=VERBS, ctx=ctx) from error

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import one verb."""
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        module, _, name = verb.place.partition(":")
        command = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{verb.place} is not a command")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; a reader of its output that has gone is an end of its own."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            # Left alone, click would end the program with 1, which is for refusals.
            drop_output()
            raise ClosedPipeError("Nobody reads the output.") from error
        except OutputLostError:
            drop_output()
            raise
        return result

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write the verbs into the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a verb without importing any."""
        found = [
            CompletionItem(name, help=verb.help)
            for name, verb in VERBS.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="greylag", message="%(prog)s %(version)s")
def greylag() -> None:
    """Give each user isolated environments, one per project, each with a Goose agent.

    \b
    Start everything on this machine, then talk to an agent:
      greylag up
      greylag projects create "My first project" --id first
      greylag chat first "What can you do?"

    Every command that asks the server takes --server, --user and --json. The address comes from
    GREYLAG_SERVER (by default http://127.0.0.1:8700), the token from GREYLAG_TOKEN, the user from
    GREYLAG_USER.
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line (by default the process's own) and return its exit code."""
    prepare_streams()
    words = as_text(sys.argv[1:] if args is None else args)
    try:
        result = greylag.main(words, prog_name="greylag", standalone_mode=False)
    except click.ClickException as error:
        print_usage_error(error)
        return error.exit_code
    except CliError as error:
        for line in error.lines:
            click.echo(visible(line), err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return Exit.INTERRUPTED
    return result if isinstance(result, int) else Exit.OK
