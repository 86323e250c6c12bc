"""What is told at the start of settings that cannot work, and of a model provider."""

import json
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.harness import Harness, settings

from greylag.domain.audit import SYSTEM, ChainCheck
from greylag.domain.errors import ConfigError
from greylag.domain.project import Desired, ProjectRef
from greylag.domain.users import OPERATOR
from greylag.services.projects import NewProject
from greylag.wiring import assembled


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"goose": "/nope"}, "GREYLAG_GOOSE=/nope is no program that can be run."),
        ({"model_key": "sk-123"}, "GREYLAG_MODEL_KEY is set, but GREYLAG_MODEL_URL does not say"),
        ({"model_url": "api.test"}, "GREYLAG_MODEL_URL must be an http or https address"),
        ({"model_url": "https://a:sk-123@api.test"}, "GREYLAG_MODEL_URL must not hold a key"),
        ({"ca_file": "/nope"}, "GREYLAG_CA_FILE: /nope is no readable file of certificates"),
    ],
)
async def test_a_setting_that_cannot_work_ends_the_start_with_a_sentence(
    tmp_path: Path, wrong: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        async with assembled(settings(data=tmp_path, cluster="local", **wrong)):
            pass
    assert str(refused.value).startswith(sentence)
    assert "sk-123" not in str(refused.value)


async def test_the_data_folder_is_made_for_our_account_only(tmp_path: Path) -> None:
    data = tmp_path / "srv" / "greylag"
    for _ in range(2):
        async with assembled(settings(data=data, cluster="local", goose="scripted")):
            assert stat.S_IMODE(data.stat().st_mode) == 0o700


async def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"GREYLAG_DATA: the folder .* cannot be made"):
        async with assembled(settings(data=tmp_path / "file" / "data", cluster="local")):
            pass


async def test_the_log_of_an_activation_tells_what_is_wrong_with_the_model_provider() -> None:
    house = Harness()
    model = house.use_cases.platform.model
    assert model is not None
    assert model.provider == "model.example"
    model.problem = "GREYLAG_MODEL_URL: nothing is there."
    projects = house.use_cases.projects
    async with house.working():
        await projects.create(OPERATOR, "me", NewProject("Demo", project_id="demo"))
        wanted = await projects.want(OPERATOR, ProjectRef("me", "demo"), Desired.ACTIVE)
        told = [event.code async for event in projects.progress(wanted)]
    assert told[-2:] == ["model_provider_problem", "active"]


async def test_the_audit_trail_is_copied_and_a_minutes_refusals_are_told_at_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = settings(data=tmp_path, cluster="local", goose="scripted", audit_copy="stdout")
    async with assembled(given) as greylag:
        audit = greylag.use_cases.audit
        await greylag.use_cases.projects.create(OPERATOR, "me", NewProject("Demo"))
        for _ in range(3):
            await audit.refused(SYSTEM, "test", "x", "forbidden")
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    copied = [json.loads(line) for line in lines]
    assert [one["count"] for one in copied] == [1, 1, 2]
    check = ChainCheck()
    check.follow(copied)


async def test_a_place_that_takes_no_copy_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    nowhere = settings(data=tmp_path, cluster="local", audit_copy="syslog://greylag.invalid:514")
    with pytest.raises(ConfigError, match="GREYLAG_AUDIT_COPY"):
        async with assembled(nowhere):
            pass
