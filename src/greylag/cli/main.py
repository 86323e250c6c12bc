"""The entry of `greylag`: finds the verb, imports only it, and turns its end into an exit code."""

import importlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError, NoSuchCommand, NoSuchOption
from click.shell_completion import CompletionItem

from greylag import __version__
from greylag.cli.errors import CliError, ClosedPipeError, Exit, OutputLostError
from greylag.cli.output import (
    drop_output,
    is_of_echo,
    one_line,
    output_lost,
    prepare_streams,
)
from greylag.common.loading import loading

# What Python makes of bytes that the locale's encoding does not know.
_UNREAD = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class LazyVerb:
    """A verb's line in the help, and its command, imported when it is used (``module:name``)."""

    place: str
    help: str

    def load(self) -> click.Command:
        """Import the command."""
        module, _, name = self.place.partition(":")
        with loading():
            command = getattr(importlib.import_module(f"greylag.cli.{module}"), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.place} is not a command")
        return command


VERBS = {
    "up": LazyVerb("programs:up", "Run everything on this machine and print the address."),
    "serve": LazyVerb("programs:serve", "Run the web: API, dashboard and streams."),
    "worker": LazyVerb("programs:worker", "Run the reconciler."),
    "agentd": LazyVerb("programs:agentd", "Run the agent's API inside an environment."),
    "whoami": LazyVerb("account:whoami", "Say who the server takes you for."),
    "login": LazyVerb("account:login", "Keep a token for the commands to come."),
    "logout": LazyVerb("account:logout", "Forget the kept token, and revoke it."),
    "tokens": LazyVerb("account:tokens", "List, create and revoke tokens for programs."),
    "audit": LazyVerb("audit:audit", "List, write out and check who did what."),
    "users": LazyVerb("projects:users", "List the users."),
    "projects": LazyVerb("projects:projects", "List, create, show, rename, delete projects."),
    "activate": LazyVerb("projects:activate", "Start a project's environment."),
    "deactivate": LazyVerb("projects:deactivate", "Stop a project's environment."),
    "chat": LazyVerb("chat:chat", "Talk to a project's agent."),
    "sessions": LazyVerb("sessions:sessions", "List, read or delete conversations."),
    "extensions": LazyVerb("sessions:extensions", "List what extensions a project's agent has."),
    "files": LazyVerb("files:files", "List, read, write, search a workspace's files."),
    "cp": LazyVerb("files:cp", "Copy files and folders from and to a workspace."),
    "changes": LazyVerb("changes:changes", "List what a turn changed in the workspace."),
    "diff": LazyVerb("changes:diff", "Print what a turn changed in a file."),
    "undo": LazyVerb("changes:undo", "Bring back what a turn changed."),
    "git": LazyVerb("git:git", "Say how a workspace's repository stands, fetch, commit, push."),
    "secrets": LazyVerb("git:secrets", "List, set and delete tokens for git hosts."),
    "notifications": LazyVerb(
        "account:notifications", "List, add, test, remove who is told of turns."
    ),
    "shell": LazyVerb("terminal:shell", "Open a shell in a project's workspace."),
    "exec": LazyVerb("terminal:exec_", "Run a command in a project's workspace."),
    "ports": LazyVerb("preview:ports", "List what a project's environment serves."),
    "preview": LazyVerb("preview:preview", "Print a link to a port or a file of a project."),
    "shares": LazyVerb("preview:shares", "List or end the links that anybody may open."),
    "logs": LazyVerb("logs:logs", "Print what a project's environment says."),
    "events": LazyVerb("logs:events", "Print a project's activation log."),
    "manifests": LazyVerb(
        "environments:manifests", "Print a project's Kubernetes objects as YAML."
    ),
    "export": LazyVerb("store:export_", "Write all records into a file: a backup."),
    "import": LazyVerb("store:import_", "Put the records of an export into a store."),
    "orphans": LazyVerb(
        "environments:orphans", "List, adopt or delete environments without a record."
    ),
    "rollout": LazyVerb(
        "environments:rollout", "Start outdated environments anew, a few at a time."
    ),
    "doctor": LazyVerb("doctor:doctor", "Check the server and this machine."),
    "version": LazyVerb("programs:version", "Print the version."),
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
        return None if verb is None else verb.load()

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

    Every command that asks the server takes --server, --data, --user and --json. The address comes
    from GREYLAG_SERVER (by default http://127.0.0.1:8700), the token from GREYLAG_TOKEN, else from
    the data folder, else it is what `greylag login` keeps; the user from GREYLAG_USER.
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
            click.echo(one_line(line), err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return Exit.INTERRUPTED
    except OSError as error:
        if not is_of_echo(error):
            raise
        drop_output()
        click.echo(f"error: {output_lost(error)}", err=True)
        return Exit.REFUSED
    return result if isinstance(result, int) else Exit.OK


def as_text(arguments: Sequence[str]) -> list[str]:
    """Return arguments as they were typed, where the locale could not read all of them as UTF-8."""
    return [
        os.fsencode(given).decode("utf-8", "replace") if _UNREAD.search(given) else given
        for given in arguments
    ]


def print_usage_error(error: click.ClickException) -> None:
    """Print what is wrong with a command line as every other error is told, and how it is used."""
    if isinstance(error, NoArgsIsHelpError):
        error.show()
        return
    click.echo(one_line(f"error: {error.format_message()}"), err=True)
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return
    if isinstance(error, NoSuchOption) and context.parent is None:
        hint = f"Options stand after the verb: {context.command_path} VERB {error.option_name} ..."
    else:
        hint = f"`{context.command_path} --help` tells more."
    click.echo(context.get_usage().replace("Usage:", "usage:", 1), err=True)
    click.echo(one_line(f"hint: {hint}"), err=True)
