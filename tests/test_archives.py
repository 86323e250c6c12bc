"""Where a URL leads, and that no password of it is ever shown."""

from pathlib import Path

import pytest
from tests.store.archive_places import SETTINGS

from greylag.archives import MongoPlace, SqlitePlace, copy_store, place_of, place_of_settings
from greylag.config import Settings
from greylag.domain.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///srv/x.db", "/srv/x.db"),
        ("sqlite:////srv/x.db", "/srv/x.db"),
        ("sqlite:///srv/with%20space/x.db", "/srv/with space/x.db"),
        ("sqlite:///srv/folder", "/srv/folder/greylag.db"),
        ("sqlite:sub/x.db", "{here}/sub/x.db"),
        ("sub/x.db", "{here}/sub/x.db"),
        ("sub", "{here}/sub/greylag.db"),
        ("there.db", "{here}/there.db/greylag.db"),
        ("~/x.db", "{here}/x.db"),
    ],
)
def test_files_and_folders_are_found(
    url: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there.db").mkdir()
    found = place_of(url, SETTINGS)
    assert found == SqlitePlace(Path(path.format(here=tmp_path.resolve())))
    assert found.shown == f"sqlite://{found.path}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mongodb://host/x", "mongodb://host/x"),
        ("mongodb://host", "mongodb://host/goose"),
        ("mongodb://host:1/?replicaSet=r", "mongodb://host:1/goose"),
        ("mongodb://u:s3cret@B:2,a:1/x?ssl=true", "mongodb://a:1,b:2/x"),
        ("mongodb+srv://u:s3%40cret@host/x%20y", "mongodb://host/x y"),
        ("mongodb://u:s3cret@[::1]:5/x", "mongodb://[::1]:5/x"),
    ],
)
def test_a_database_is_shown_without_user_and_password(url: str, shown: str) -> None:
    place = place_of(url, SETTINGS)
    assert isinstance(place, MongoPlace)
    assert (place.shown, place.uri) == (shown, url)
    assert "s3" not in repr(place)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "postgres://u:s3cret@host/x",
        "sqlite://u:s3cret@host/x",
        "mongodb://",
        "mongodb://u:s3cret@",
        "mongodb://u:s3/cret@host/x",
        "mongodb://u:s3?cret@host/x",
        "mongodb://u:s3#cret@host/x",
        "mongodb://u:a@s3/cret@host/x",
        "mongodb://[u:s3cret@host/x",
    ],
)
def test_what_is_no_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place_of(url, SETTINGS)
    assert "s3" not in f"{caught.value.info} {caught.value.__cause__}"


def test_the_settings_name_a_store_too(tmp_path: Path) -> None:
    assert place_of_settings(Settings(data=tmp_path, _env_file=None)) == SqlitePlace(
        tmp_path.resolve() / "greylag.db"
    )
    named = Settings(mongodb_uri="mongodb://u:s3cret@h/other", mongodb_db="mine", _env_file=None)
    assert place_of_settings(named).shown == "mongodb://h/mine"
    odd = Settings(mongodb_uri="mongodb://u:s3@c/ret@h", _env_file=None)
    assert place_of_settings(odd).shown == "mongodb://(MONGODB_URI)/goose"


async def test_a_store_is_not_copied_onto_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the same store"):
        await copy_store(str(tmp_path), f"sqlite://{tmp_path}/greylag.db", lambda _: None)
