"""README.md and docs/ say what is so of settings, commands, paths, codes, links and files."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import click
import pytest
import yaml
from pydantic_settings import BaseSettings
from tests.harness import TOKEN, Harness, served, settings

from greylag.agentd.turns import errors
from greylag.cli.errors import Exit
from greylag.cli.main import VERBS, greylag
from greylag.cluster.kubernetes.options import ConnectionSettings, OptionsSettings
from greylag.clusters import printed_manifests
from greylag.common.git import CAUSES
from greylag.common.settings import variable_of
from greylag.config import DEFAULT_USERS, Settings, load_settings
from greylag.domain.audit import AuditAction
from greylag.domain.users import Action
from greylag.web.app import create_app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if path.name != "CHANGELOG.md"
)
TEXTS = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in PAGES}
ALL = "\n".join(TEXTS.values())
CODE = re.compile(r"^ *```[a-z]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^ *```(?:sh|console)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
OTHERS_VARIABLES = {"GREYLAG_SECRET"}
"""What the pages name of other programs' settings: Dex's."""


def rows(page: str) -> Iterator[list[str]]:
    """Yield the cells of each row of a page's tables."""
    for line in TEXTS[page].splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


# Settings.

MODELS: tuple[type[BaseSettings], ...] = (Settings, OptionsSettings, ConnectionSettings)
FIELDS = {
    variable_of(model, field): (model, field) for model in MODELS for field in model.model_fields
}
LISTED = ("docs/settings.md", "docs/sign-in.md", "docs/kubernetes.md")
DECIDED_ELSEWHERE = {
    "GOOSE_MODE": "goose's own",
    "GREYLAG_MODEL": "agentd's",
    "GREYLAG_USERS": "of no list",
}
"""What stands in the tables is what counts in the end, and no default of the setting itself."""


def settings_of(cell: str) -> list[str]:
    """Return the settings that a cell names; `_LIKE_THIS` is the first one's with another end."""
    named: list[str] = []
    for name in re.findall(r"`([A-Z_]+)`", cell):
        begin = named[0] if name.startswith("_") else ""
        while begin and f"{begin}{name}" not in FIELDS:
            begin = begin.rpartition("_")[0]
        named.append(f"{begin}{name}")
    return named


DEFAULTS = {
    name: (cells[1], at)
    for page in LISTED
    for cells in rows(page)
    if len(cells) == 3
    for at, name in enumerate(settings_of(cells[0]))
    if name in FIELDS
}


def test_each_setting_is_documented() -> None:
    text = "".join(TEXTS[page] for page in LISTED)
    assert sorted(name for name in FIELDS if name not in DEFAULTS and f"`{name}`" not in text) == []


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_a_setting_has_the_default_that_is_documented(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for other in FIELDS:
        monkeypatch.delenv(other, raising=False)
    if name in DECIDED_ELSEWHERE:
        return
    (model, field), (cell, at) = FIELDS[name], DEFAULTS[name]
    default = getattr(model(), field)
    literals = re.findall(r"`([^`]+)`", cell) or re.findall(r"^[\d.]+$", cell)
    words = re.sub(r"`[^`]*`|[\d.]+|,| ", "", cell)
    if not literals or words or literals[0] in FIELDS:
        return
    said = literals[at] if len(literals) > 1 else literals[0]
    assert getattr(model(**{field: said}), field) == default


def test_without_a_list_there_is_the_user_that_is_documented(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GREYLAG_USERS", raising=False)
    said = DEFAULTS["GREYLAG_USERS"][0].strip("`")
    assert load_settings(users=said).user_list == load_settings().user_list == DEFAULT_USERS


def test_no_setting_is_named_that_nothing_reads() -> None:
    read = "\n".join(
        path.read_text("utf-8")
        for folder in ("src/greylag", "tools", "tests", "images")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".sh", ".ts"} or path.name == "Dockerfile"
    )
    known = set(re.findall(r"[A-Z][A-Z0-9_]+", read)) | FIELDS.keys()
    places = {**TEXTS, **{str(path): path.read_text("utf-8") for path in _deployed()}}
    for place, text in places.items():
        named = set(
            re.findall(r"\b(?:GREYLAG|KUBE|GOOSE|MONGODB)_[A-Z0-9_]*[A-Z0-9]\b(?!_?\*)", text)
        )
        assert sorted(named - known - OTHERS_VARIABLES) == [], place


def _deployed() -> Iterator[Path]:
    for path in (ROOT / "deploy").rglob("*"):
        if path.suffix in {".yaml", ".env", ".json", ".txt", ".tpl", ".py"}:
            yield path


# The command line.

COMMON = {"--server", "--data", "--user", "--json", "--help"}


def commands(
    group: click.Group = greylag, *path: str
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


COMMANDS = dict(commands())


def command_of(words: list[str]) -> tuple[tuple[str, ...], click.Command]:
    """Return the command that a command line begins with."""
    depth = next(n for n in (2, 1) if tuple(words[:n]) in COMMANDS)
    return tuple(words[:depth]), COMMANDS[tuple(words[:depth])]


@pytest.mark.parametrize("words", list(COMMANDS), ids=" ".join)
def test_no_two_options_of_a_command_go_by_one_name(words: tuple[str, ...]) -> None:
    """One of them would count for nothing."""
    command = COMMANDS[words]
    names = [option.name for option in command.get_params(click.Context(command))]
    assert len(names) == len(set(names))


def options_of(command: click.Command) -> set[str]:
    return {
        one for given in command.params if isinstance(given, click.Option) for one in given.opts
    }


def synopses() -> Iterator[list[str]]:
    """Yield the words of each command line in the table of verbs; `a|b` is two of them."""
    for cells in rows("docs/cli.md"):
        for span in re.findall(r"`([^`]+)`", cells[0]):
            words = re.sub(r"[\[\]]", " ", span.replace("\\|", "|")).split()
            if words[0] not in VERBS:
                continue
            for at, word in enumerate(words):
                if "|" in word and not word.startswith("-") and word.islower():
                    yield from ([*words[:at], one, *words[at + 1 :]] for one in word.split("|"))
                    break
            else:
                yield words


def test_each_verb_stands_in_the_table_of_the_command_line() -> None:
    told = {tuple(words[:n]) for words in synopses() for n in (1, 2)}
    assert sorted(path for path in COMMANDS if path not in told) == []


def test_the_table_names_no_option_that_a_verb_has_not() -> None:
    for words in synopses():
        path, command = command_of(words)
        named = {word for word in words if re.fullmatch(r"--?[a-z-]+", word)} - {"--", "-"}
        assert sorted(named - options_of(command)) == [], path


def test_each_option_is_told_of_in_the_documents() -> None:
    words = set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", ALL))
    for path, command in COMMANDS.items():
        options = [set(one.opts) for one in command.params if isinstance(one, click.Option)]
        assert [one for one in options if not one & (words | COMMON)] == [], path


def test_each_command_and_option_is_told_of_in_its_help_whole() -> None:
    for path, command in {(): greylag, **COMMANDS}.items():
        told = command.get_help(click.Context(command, info_name="greylag", terminal_width=80))
        assert [line for line in told.splitlines() if re.search(r"\w\.\.\.$", line)] == [], path
        options = [one for one in command.params if isinstance(one, click.Option)]
        assert [one.opts for one in options if not one.help] == [], path
        named = [
            one.is_flag or one.metavar or isinstance(one.type, click.Choice) for one in options
        ]
        assert all(named), path


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Yield each `greylag` of the pages' blocks of code, with its words."""
    for page, text in TEXTS.items():
        for block in SHELL.findall(text):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"(?:^|[ /$(])greylag ((?:[a-z]|--)\S*.*)", line)
                if found is None or "=" in found[1].split()[0]:
                    continue
                end = re.split(r" \| | > | < | 2>|;| # |\)\"", found[1] + " ")[0]
                words = shlex.split(end, comments=True)
                if words and words[0] in VERBS:
                    yield page, words


@pytest.mark.parametrize(("page", "words"), list(command_lines()))
def test_a_command_line_of_the_pages_can_be_understood(page: str, words: list[str]) -> None:
    path, command = command_of(words)
    if isinstance(command, click.Group):
        assert "..." in words, page
        return
    command.make_context(path[-1], words[len(path) :], resilient_parsing=False)


def test_the_exit_codes_are_those_of_the_table() -> None:
    told = {int(cells[0]) for cells in rows("docs/cli.md") if cells[0].isdecimal()}
    assert told == {int(code) for code in Exit}


# The API.


async def _described() -> dict[str, Any]:
    """Return the paths of the platform's OpenAPI document."""
    app = create_app(Harness(settings()).use_cases, settings())
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        served(app) as port,
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"http://127.0.0.1:{port}/openapi.json") as answer,
    ):
        found: dict[str, Any] = (await answer.json())["paths"]
        return found


def _template(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{[^/]*\\}", "[^/]+", re.escape(path)))


async def test_each_path_of_the_platform_is_there() -> None:
    described = await _described()
    known = [
        (_template(path), {verb.upper() for verb in verbs}) for path, verbs in described.items()
    ]
    asked = re.compile(
        r"\b(GET|POST|PUT|PATCH|DELETE) +(?:http://127\.0\.0\.1:8700)?(/api/|\.\.\./)([^\s`'\"|,;?)]+)"
    )
    for page, text in TEXTS.items():
        if page.startswith(("docs/decisions", "docs/agentd")):
            continue
        for verb, begin, rest in asked.findall(text):
            there = "/" + rest.rstrip(".:") if begin == ".../" else begin + rest.rstrip(".:")
            matches = [
                form
                for form, verbs in known
                if verb in verbs
                and (
                    form.fullmatch(there)
                    if begin == "/api/"
                    else form.fullmatch("/api/users/u/projects/p" + there)
                    or form.fullmatch("/api/users/u" + there)
                    or form.fullmatch("/api/users/u/notifications" + there)
                )
            ]
            assert matches, f"{page}: {verb} {there}"


def test_the_table_of_git_has_each_cause() -> None:
    told = {code for cells in rows("docs/git.md") for code in re.findall(r"`(git_\w+)`", cells[0])}
    assert told == CAUSES.keys()


def test_each_reason_for_which_a_turn_fails_is_told_of() -> None:
    codes = {*errors._HINTS, "context_exceeded", "storage_failed", "internal"}
    text = TEXTS["docs/agentd.md"]
    assert sorted(code for code in codes if f"`{code}`" not in text) == []


def test_each_action_of_the_audit_trail_is_told_of() -> None:
    text = TEXTS["docs/audit.md"] + TEXTS["docs/people.md"]
    known = {*map(str, Action), *map(str, AuditAction)}
    assert sorted(action for action in known if f"`{action}`" not in text) == []


# What accounts may do on a cluster.


def _verbs(cell: str) -> set[str]:
    """Return the verbs of a cell, as they are with a key for agents' tokens."""
    if cell.startswith("only without"):
        return set()
    listed = cell.rpartition(": ")[2].partition(";")[0].partition(", which")[0]
    return set(re.findall(r'[a-z]+|""', listed)) - {"and"}


def _roles(*names: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for file in ("access/worker-role", "access/web-role", "outside/proxy-role"):
        for thing in yaml.safe_load_all((ROOT / f"deploy/kubernetes/{file}.yaml").read_text()):
            if thing["kind"] == "ClusterRole" and thing["metadata"]["name"] in names:
                for rule in thing["rules"]:
                    for kind in rule["resources"]:
                        found.setdefault(kind, set()).update(one or '""' for one in rule["verbs"])
    return found


@pytest.mark.parametrize(("column", "program"), [(1, "worker"), (2, "web")])
def test_the_table_of_rights_is_that_of_the_roles(column: int, program: str) -> None:
    roles = _roles(f"greylag-{program}", f"greylag-{program}-proxy")
    told = {
        kind: _verbs(cells[column])
        for cells in rows("docs/kubernetes.md")
        for kind in re.findall(r"`([a-z/]+)`", cells[0])
        if len(cells) == 3 and kind in _roles("greylag-worker", "greylag-web-proxy")
    }
    assert {kind: verbs for kind, verbs in told.items() if verbs} == roles


def test_each_object_of_an_environment_stands_in_the_tables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in FIELDS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACR_IMAGE", "goose:1")
    monkeypatch.setenv("INGRESS_BASE_DOMAIN", "agents.test")
    monkeypatch.setenv("GREYLAG_KUBE_AUTHORITIES", "-----BEGIN CERTIFICATE-----")
    told = {tuple(cells[:2]) for cells in rows("docs/kubernetes.md")}
    for thing in yaml.safe_load_all(printed_manifests("ada", "notes")):
        name = thing["metadata"]["name"].replace("ada", "<user>").replace("notes", "<project>")
        assert (thing["kind"], f"`{name}`") in told


# Links and files.


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", re.sub(CODE, "", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", TEXTS)
def test_each_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(CODE, "", TEXTS[page])):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target.read_text("utf-8")), link


def test_the_first_page_leads_to_each_other() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", TEXTS["README.md"]))
    assert sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")) == sorted(linked)


@pytest.mark.parametrize("page", TEXTS)
def test_each_file_that_is_named_is_there(page: str) -> None:
    folders = r"(?:tests|deploy|tools|images|src|docs|benchmarks|frontend|requirements)"
    for path in re.findall(rf"`({folders}/[\w./-]+)`", TEXTS[page]):
        assert "node_modules" in path or (ROOT / path).exists(), path
