"""The token as a file: made once, for its owner alone, and not taken where it may be bait."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from greylag.common.token_file import SECRET_KEY, ensure_token, own_token_file, read_token
from greylag.domain.errors import ConfigError

TOKEN = "a-token-of-many-letters"


def test_it_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    made = ensure_token(tmp_path)
    assert len(made) >= 43
    assert ensure_token(tmp_path) == made == read_token(tmp_path / "token")
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["token"]


def test_of_many_that_start_at_once_all_have_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(ensure_token, [tmp_path] * 64))
    assert len(found) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["token"]


def test_one_that_others_may_read_starts_nothing(tmp_path: Path) -> None:
    token = ensure_token(tmp_path)
    (tmp_path / "token").chmod(0o640)
    with pytest.raises(ConfigError, match="others may read it") as refused:
        ensure_token(tmp_path)
    assert token not in str(refused.value)


@pytest.mark.parametrize("held", ["", "short", f"{TOKEN}\n{TOKEN}", "ä" * 20, "x" * 5000])
def test_what_is_no_token_is_told_by_its_place_and_not_its_content(
    tmp_path: Path, held: str
) -> None:
    path = tmp_path / "token"
    path.write_text(held)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="cannot be used") as refused:
        ensure_token(tmp_path)
    assert str(path) in str(refused.value)
    assert held == "" or held not in str(refused.value)


def test_a_link_a_pipe_and_a_folder_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(TOKEN)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    reasons = {"link": "it is a link", "pipe": "not a plain file", "folder": "not a plain file"}
    for name, why in reasons.items():
        with pytest.raises(ConfigError, match=f"cannot be used: .*{why}"):
            read_token(tmp_path / name)
    assert read_token(tmp_path / "link", follow=True) == TOKEN


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_another_account_s_file_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_token(tmp_path)
    os.chown(tmp_path / "token", 12345, 12345)
    # Root may read everything anyway; whoever else runs a command is not to be led.
    assert read_token(tmp_path / "token")
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(ConfigError, match="another account"):
        read_token(tmp_path / "token")


def test_where_there_is_none_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_token(tmp_path / "token") is None
    assert read_token(tmp_path / "file" / "token") is None
    assert read_token(tmp_path / "nowhere" / "token") is None


def test_a_folder_that_takes_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be kept in"):
        ensure_token(tmp_path / "nowhere")


def test_a_person_s_own_is_where_the_desktop_keeps_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert own_token_file({}) == tmp_path / ".config/greylag/token"
    assert own_token_file({"XDG_CONFIG_HOME": "/etc/mine"}) == Path("/etc/mine/greylag/token")
    assert own_token_file({"XDG_CONFIG_HOME": "here"}) == tmp_path / ".config/greylag/token"


def test_nobody_is_told_to_remove_the_key_that_opens_what_is_sealed(tmp_path: Path) -> None:
    key = ensure_token(tmp_path, SECRET_KEY)
    path = tmp_path / SECRET_KEY
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read it") as refused:
        read_token(path, private=True)
    assert "chmod 600" in refused.value.info.hint
    path.write_text("short")
    with pytest.raises(ConfigError) as refused:
        ensure_token(tmp_path, SECRET_KEY)
    assert "remove" not in refused.value.info.hint.lower()
    assert key
