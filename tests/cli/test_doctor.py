"""`greylag doctor` tells what is wrong and what to do."""

import errno
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tests.cli.program import Cli, Done, call
from tests.cli.stack import NOTICE, Stack, running_stack
from tests.cluster.kubernetes.api_server import Answer, says, status
from tests.cluster.kubernetes.api_server import served as api_server
from tests.harness import settings
from tests.identity.people import Provider, needs_provider
from tests.store import mongo_servers
from tests.store.sites import sites_in
from tests.store.stored_projects import changed, make_stored

from greylag.cli.transport import Http
from greylag.common.server import listen


def verdicts(document: dict[str, object]) -> dict[str, str]:
    checks = document["checks"]
    assert isinstance(checks, list)
    return {check["name"]: check["verdict"] for check in checks}


def check_of(done: Done, name: str) -> Mapping[str, str]:
    """Return the one check of this name."""
    (found,) = (check for check in done.document["checks"] if check["name"] == name)
    return dict(found)


async def test_a_server_that_runs_is_well_and_its_notice_a_warning(
    stack: Stack, tmp_path: Path
) -> None:
    env = {**stack.env, "GREYLAG_DATA": str(tmp_path / "data"), "GREYLAG_TOKEN": stack.token}
    done = await call("doctor", "--json", env=env)
    found = verdicts(done.document)
    assert (found["server"], found["notice"], found["data folder"]) == ("ok", "warn", "ok")
    assert done.document["ok"] is (done.code == 0)
    shown = await call("doctor", env=env)
    assert NOTICE in shown.out
    assert not (tmp_path / "data").exists()


async def test_the_server_is_asked_for_its_model_and_this_shell_only_for_what_it_sets() -> None:
    given = settings(model_url="https://model.example")
    async with running_stack(given) as stack:
        env = {**stack.env, "GREYLAG_TOKEN": stack.token}
        done = await call("doctor", "--json", env=env)
        assert verdicts(done.document)["model"] == "ok"
        assert "model.example" in done.out
        assert "model of this shell" not in verdicts(done.document)
        for wrong in ({"GREYLAG_MODEL_KEY": "hunter2"}, {"GREYLAG_MODEL_URL": stack.address}):
            done = await call("doctor", "--json", env=env | wrong)
            assert verdicts(done.document)["model of this shell"] == "fail"
            assert "hunter2" not in done.out
    alone = await call("doctor", "--json", env=env)
    assert verdicts(alone.document)["model of this shell"] == "warn"


async def test_a_server_that_does_not_run_fails_with_what_to_do(tmp_path: Path) -> None:
    env = {"GREYLAG_SERVER": "http://127.0.0.1:1", "GREYLAG_DATA": str(tmp_path)}
    done = await call("doctor", env=env)
    assert done.code == 1
    assert "greylag up" in done.out


async def test_wrong_settings_fail_by_name_and_without_their_secrets(cli: Cli) -> None:
    secret = "abc"
    done = await call("doctor", "--json", env={"GREYLAG_TOKEN": secret, "GREYLAG_PORT": "99999"})
    assert verdicts(done.document)["settings"] == "fail"
    assert secret not in done.out.replace("GREYLAG", "")


async def test_a_bubblewrap_that_may_make_no_namespaces_is_a_warning_or_fails_if_demanded(
    tmp_path: Path,
) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho setting up uid map: Permission denied >&2\nexit 1\n")
    bwrap.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GREYLAG_DATA": str(tmp_path / "data")}
    for sandbox, verdict in (("auto", "warn"), ("bubblewrap", "fail")):
        done = await call("doctor", "--json", env=env | {"GREYLAG_SANDBOX": sandbox})
        assert verdicts(done.document)["bubblewrap"] == verdict
        assert "uid map: Permission denied" in done.out


async def test_an_agent_that_is_not_there_fails(tmp_path: Path) -> None:
    env = {"GREYLAG_GOOSE": str(tmp_path / "goose"), "GREYLAG_DATA": str(tmp_path)}
    done = await call("doctor", "--json", env=env)
    assert verdicts(done.document)["goose"] == "fail"


async def test_without_goose_the_scripted_agent_is_a_warning(tmp_path: Path) -> None:
    done = await call("doctor", "--json", env={"GREYLAG_GOOSE": "scripted"})
    assert verdicts(done.document)["goose"] == "warn"


async def test_a_data_folder_that_is_a_file_fails(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("not a folder")
    done = await call("doctor", "--json", env={"GREYLAG_DATA": str(file)})
    assert verdicts(done.document)["data folder"] == "fail"


async def test_the_folder_that_is_named_is_the_one_that_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("not a folder")
    done = await call("doctor", "--json", "--data", str(file), env={"GREYLAG_DATA": str(tmp_path)})
    assert str(file) in check_of(done, "data folder")["detail"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EROFS, "GREYLAG_DATA"),
        (errno.EACCES, "write access"),
    ],
)
async def test_why_a_data_folder_takes_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, advice: str
) -> None:
    def refuse(**_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    done = await call("doctor", "--json", env={"GREYLAG_DATA": str(tmp_path)})
    found = check_of(done, "data folder")
    assert found["verdict"] == "fail"
    assert os.strerror(number) in found["detail"]
    assert advice in found["advice"]


async def test_a_port_that_is_taken_is_told_where_no_greylag_answers(tmp_path: Path) -> None:
    env = {"GREYLAG_SERVER": "http://127.0.0.1:1", "GREYLAG_DATA": str(tmp_path)}
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        done = await call("doctor", "--json", env=env | {"GREYLAG_PORT": str(port)})
    found = check_of(done, "port")
    assert found["verdict"] == "fail"
    assert found["detail"] == f"127.0.0.1:{port} cannot be used: Address already in use."
    assert found["advice"]
    done = await call("doctor", "--json", env=env | {"GREYLAG_PORT": str(port)})
    assert verdicts(done.document)["port"] == "ok"


async def test_the_port_of_a_server_elsewhere_is_none_of_this_machine(tmp_path: Path) -> None:
    env = {"GREYLAG_SERVER": "http://greylag.invalid", "GREYLAG_DATA": str(tmp_path)}
    done = await call("doctor", "--json", env=env)
    assert "port" not in verdicts(done.document)


async def test_the_port_of_a_server_that_answers_is_not_tried(stack: Stack) -> None:
    done = await call("doctor", "--json", env={**stack.env, "GREYLAG_TOKEN": stack.token})
    assert "port" not in verdicts(done.document)


@pytest.mark.parametrize(("minutes", "warned"), [(-10, True), (0, False), (10, True)])
async def test_clocks_that_are_apart_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, stack: Stack, minutes: int, *, warned: bool
) -> None:
    answered = Http.answered

    async def dated(*given: Any) -> tuple[Any, Mapping[str, str]]:
        told, headers = await answered(*given)
        assert "Date" in headers
        return told, {"Date": format_datetime(datetime.now(UTC) + timedelta(minutes=minutes))}

    monkeypatch.setattr(Http, "answered", dated)
    done = await call("doctor", "--json", env={**stack.env, "GREYLAG_TOKEN": stack.token})
    assert ("clock" in verdicts(done.document)) is warned


VERSION = says({"gitVersion": "v1.35.4"})
PODS = says({"metadata": {"resourceVersion": "1"}, "items": []})


@pytest.mark.parametrize(
    ("answers", "verdict", "words"),
    [
        ((VERSION, PODS), "ok", "Kubernetes v1.35.4"),
        ((status(401, "Unauthorized", "Unauthorized"),), "fail", "KUBE_TOKEN does not fit"),
        ((VERSION, status(403, "Forbidden", "pods is forbidden")), "fail", "pods is forbidden"),
        ((says({}),), "fail", "no Kubernetes"),
    ],
)
async def test_a_cluster_is_asked_whether_it_takes_us(
    tmp_path: Path, answers: tuple[Answer, ...], verdict: str, words: str
) -> None:
    async with api_server(*answers) as (server, _):
        env = {
            "GREYLAG_DATA": str(tmp_path),
            "ACR_IMAGE": "goose:1",
            "KUBE_HOST": server.url,
            "KUBE_TOKEN": "hunter2-is-a-token",
        }
        done = await call("doctor", "--json", env=env)
    found = check_of(done, "cluster")
    assert (found["verdict"], bool(found["advice"])) == (verdict, verdict == "fail")
    assert words in found["detail"]
    assert "hunter2" not in done.out + done.err
    assert not {"bubblewrap", "goose", "node"} & verdicts(done.document).keys()


async def test_where_nothing_is_kept_on_this_machine_no_folder_is_looked_at(tmp_path: Path) -> None:
    async with api_server(VERSION, PODS) as (server, _):
        env = {
            "GREYLAG_DATA": str(tmp_path / "file" / "data"),
            "ACR_IMAGE": "goose:1",
            "KUBE_HOST": server.url,
            "KUBE_TOKEN": "a-token",
            "MONGODB_URI": mongo_servers.NOBODY,
            "GREYLAG_MONGODB_TIMEOUT": "0.1",
        }
        done = await call("doctor", "--json", env=env)
    found = verdicts(done.document)
    assert (found["cluster"], found["mongodb"]) == ("ok", "fail")
    assert "data folder" not in found


async def test_a_cluster_that_is_not_named_or_does_not_answer_fails(tmp_path: Path) -> None:
    env = {"GREYLAG_DATA": str(tmp_path), "HOME": str(tmp_path)}
    done = await call("doctor", "--json", env=env | {"ACR_IMAGE": "goose:1"})
    assert "no setting says on which cluster" in check_of(done, "cluster")["detail"]
    there = {"KUBE_HOST": "http://127.0.0.1:1", "KUBE_TOKEN": "a"}
    done = await call("doctor", "--json", env=env | there)
    assert "ACR_IMAGE is not set" in check_of(done, "cluster")["detail"]
    done = await call("doctor", "--json", env=env | there | {"ACR_IMAGE": "goose:1"})
    found = check_of(done, "cluster")
    assert found["verdict"] == "fail"
    assert "127.0.0.1:1" in found["detail"]


async def test_projects_with_an_error_are_warnings_with_what_to_do(tmp_path: Path) -> None:
    async with sites_in(tmp_path) as sites:
        sound = changed(make_stored("sound"), error=None)
        many = [make_stored(f"bad{number}") for number in range(7)]
        site = await sites.filled("sqlite", [sound, *many])
    done = await call("doctor", "--json", env=site.env)
    told = [check for check in done.document["checks"] if check["name"] == "project"]
    assert len(told) == 6
    assert {check["verdict"] for check in told} == {"warn"}
    assert "'bad0' of user 'ada'" in told[0]["detail"]
    assert "[image_not_found]" in told[0]["detail"]
    assert told[0]["advice"] == "Name another."
    assert told[-1]["detail"] == "2 more projects have an error."


async def test_a_model_address_with_a_password_is_not_shown(tmp_path: Path) -> None:
    env = {"GREYLAG_MODEL_URL": "https://user:hunter2@models.example/v1"}
    done = await call("doctor", env=env)
    assert "(models.example)" in done.out
    assert "hunter2" not in done.out + done.err


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://ann:hunter2@127.0.0.1:1/",
        "mongodb://ann:hunter2@127.0.0.1:port/",
        "mongodb://ann:hunter2:x@y@127.0.0.1/",
        "postgres://ann:hunter2@127.0.0.1/",
    ],
)
async def test_a_mongodb_that_cannot_be_used_fails_without_its_password(uri: str) -> None:
    env = {"MONGODB_URI": uri, "GREYLAG_MONGODB_TIMEOUT": "0.1"}
    done = await call("doctor", "--json", env=env)
    assert verdicts(done.document)["mongodb"] == "fail"
    assert "hunter2" not in done.out + done.err


async def test_a_pipe_gets_one_line_of_tabs_for_each_check() -> None:
    done = await call("doctor", env={"GREYLAG_GOOSE": "scripted"})
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert rows[0] == ["check", "verdict", "found", "advice"]
    assert {len(row) for row in rows} == {4}


@needs_provider
async def test_an_identity_provider_is_asked_what_it_says_of_itself(
    provider: Provider, tmp_path: Path
) -> None:
    plain = {"GREYLAG_DATA": str(tmp_path), "GREYLAG_OIDC_CLIENT_ID": "greylag"}
    for issuer, verdict, words in (
        (provider.issuer, "ok", "says how to sign in"),
        (f"{provider.issuer}/", "fail", "calls itself"),
        ("http://127.0.0.1:1", "fail", "Cannot connect"),
    ):
        done = await call("doctor", "--json", env=plain | {"GREYLAG_OIDC_ISSUER": issuer})
        assert verdicts(done.document)["identity provider"] == verdict
        assert words in done.out
