"""Which store the settings name, and how it is shown: never with a password."""

from pathlib import Path

import pytest

from greylag.archives import place_of
from greylag.config import Settings


def test_without_a_server_it_is_the_file_in_the_data_folder(tmp_path: Path) -> None:
    place = place_of(Settings(data=tmp_path, _env_file=None))
    assert place == f"sqlite://{tmp_path.resolve()}/greylag.db"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("mongodb://host", "mongodb://host/goose"),
        ("mongodb://host:1/?replicaSet=r", "mongodb://host:1/goose"),
        ("mongodb://u:s3cret@B:2,a:1/x?ssl=true", "mongodb://a:1,b:2/goose"),
        ("mongodb+srv://u:s3%40cret@host/x%20y", "mongodb://host/goose"),
        ("mongodb://u:s3cret@[::1]:5/x", "mongodb://[::1]:5/goose"),
        ("mongodb://", "mongodb://(MONGODB_URI)/goose"),
        ("mongodb://u:s3cret@", "mongodb://(MONGODB_URI)/goose"),
        ("mongodb://u:s3/cret@host/x", "mongodb://(MONGODB_URI)/goose"),
        ("mongodb://u:s3?cret@host/x", "mongodb://(MONGODB_URI)/goose"),
        ("mongodb://u:s3#cret@host/x", "mongodb://(MONGODB_URI)/goose"),
        ("mongodb://u:a@s3/cret@host/x", "mongodb://(MONGODB_URI)/goose"),
        ("mongodb://[u:s3cret@host/x", "mongodb://(MONGODB_URI)/goose"),
    ],
)
def test_a_database_is_shown_without_user_and_password(uri: str, shown: str) -> None:
    settings = Settings(mongodb_uri=uri, _env_file=None)
    place = place_of(settings)
    assert place == shown
    assert "s3" not in repr(settings) + place
