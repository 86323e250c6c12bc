"""Which store the settings name, and how it is shown: never with a password."""

import io
from pathlib import Path

import pytest
from tests.contract.store_adapters import at
from tests.store.sites import KINDS, sites_in
from tests.store.stored_projects import make_stored

from greylag.archives import import_records, place_of
from greylag.config import Settings
from greylag.ports import Origin, StoredPerson
from greylag.services.store_file import ExportUnusableError, ExportWriter


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"id": "ann", "display_name": "Ann", "role": "s3cret"}, "role: Input should be"),
        ({"id": "ann", "display_name": ["s3cret"]}, "display_name: Input should be"),
        ({"display_name": "s3cret"}, "id: Field required"),
    ],
)
async def test_a_person_whom_no_store_can_read_is_found_before_anything_is_removed(
    tmp_path: Path, kind: str, body: dict[str, object], words: str
) -> None:
    writer = ExportWriter()
    lines = writer.header(at(0), "x", 0, Origin(people=1))
    file = lines + writer.record(StoredPerson("users", body)) + writer.end()
    async with sites_in(tmp_path) as sites:
        site = await sites.filled(kind, [make_stored("mine")])
        before = await site.holds()
        with pytest.raises(ExportUnusableError) as caught:
            await import_records(site.settings, io.BytesIO(file), _tell_nobody, replacing=True)
        async with site.archive(write=False) as archive:
            assert not await archive.incomplete()
        assert await site.holds() == before
    told = caught.value.info
    assert told.message.startswith("Line 2 of the export cannot be read by this Greylag. A record")
    assert words in told.message
    assert told.hint.startswith("Nothing was changed.")
    assert "s3cret" not in f"{told}"


def _tell_nobody(*_: object) -> None:
    """Hear nothing."""
