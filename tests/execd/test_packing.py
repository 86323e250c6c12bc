"""Archives of a workspace: while it changes, of any size, and from hostile hands."""

import errno
import gzip
import io
import os
import stat
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greylag.execd import packing
from greylag.execd.files import Place, Workspace
from greylag.execd.packing import extract, pack_tar, pack_zip, tar_members, zip_members
from greylag.execd.protocol import RefusedError

MIB = 1024 * 1024
PACKERS = {"tar.gz": pack_tar, "zip": pack_zip}
READERS = {"tar.gz": tar_members, "zip": zip_members}
both = pytest.mark.parametrize("form", ["tar.gz", "zip"])


class Sink(io.RawIOBase):
    """Counts what is written, and keeps none of it."""

    written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.written += len(data)
        return len(data)


class Made(Workspace):
    """A workspace of as many empty files as one likes, none of which is on the disk."""

    def __init__(self, count: int) -> None:
        super().__init__("/")
        self._count = count

    def walk(self, path: str, skipped: Any = ()) -> Any:  # noqa: ARG002 - as the real one
        about = os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 0, 0, 0, 0, 0, 0, 0))
        for number in range(self._count):
            yield b"folder/%08d" % number, Place(-1, b"-"), about


def packed(root: Path, form: str) -> bytes:
    out = io.BytesIO()
    PACKERS[form](Workspace(str(root)), "", out)
    return out.getvalue()


def unpacked(root: Path, form: str, content: bytes) -> tuple[int, list[str]]:
    root.mkdir(exist_ok=True)
    with tempfile.TemporaryFile() as spool:
        spool.write(content)
        spool.seek(0)
        return extract(Workspace(str(root)), "", READERS[form](spool))


def refusal(root: Path, form: str, content: bytes) -> str:
    with pytest.raises(RefusedError) as refused:
        unpacked(root, form, content)
    assert refused.value.code == "invalid_archive"
    return str(refused.value)


def peak(work: Any, *about: Any) -> int:
    """Return how much memory more than before some work took at most."""
    tracemalloc.start()
    try:
        with suppress(RefusedError):
            work(*about)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def vanishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is called ``gone`` vanish once it has been looked at, and ``cut`` be shortened."""
    walk = Workspace.walk

    def walked(self: Workspace, path: str) -> Iterator[Any]:
        for name, place, about in walk(self, path):
            if name.startswith(b"gone"):
                os.unlink(place.name, dir_fd=place.folder)
            if name == b"swapped":
                os.unlink(place.name, dir_fd=place.folder)
                os.mkdir(place.name, dir_fd=place.folder)
            if name == b"cut":
                os.truncate(f"/proc/self/fd/{place.folder}/cut", 20_000)
            yield name, place, about

    monkeypatch.setattr(Workspace, "walk", walked)


@both
@pytest.mark.usefixtures("vanishing")
def test_what_changes_while_it_is_packed_breaks_nothing_off(form: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("gone", "kept", "swapped"):
        (source / name).write_text(name)
    (source / "cut").write_bytes(b"x" * 50_000)
    (source / "gone-link").symlink_to("kept")
    made, left_out = unpacked(tmp_path / "new", form, packed(source, form))
    assert (made, left_out) == (3, [])
    assert (tmp_path / "new/kept").read_text() == "kept"
    assert (tmp_path / "new/cut").read_bytes() == b"x" * 20_000 + bytes(30_000)
    left = sorted((tmp_path / "new/LEFT-OUT.txt").read_text().split())
    assert left == ["gone", "gone-link", "swapped"]


@both
def test_links_that_lead_to_any_bytes_come_and_go(form: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    target = Path(os.fsdecode(b"\xff\\there"))
    (tmp_path / "source/link").symlink_to(target)
    assert unpacked(tmp_path / "new", form, packed(tmp_path / "source", form)) == (1, [])
    assert (tmp_path / "new/link").readlink() == target


@both
def test_an_archive_of_many_takes_no_more_memory_than_one_of_few(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_MOST_HELD", 10_000)
    few, many = (peak(PACKERS[form], Made(count), "", Sink()) for count in (200, 2_000))
    assert many - few < MIB / 4


def test_a_zip_whose_list_is_on_the_disk_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_MOST_HELD", 100)
    (tmp_path / "é").mkdir()
    (tmp_path / "é/f").write_text("f" * 10_000)
    (tmp_path / "é/f").chmod(0o755)
    with zipfile.ZipFile(io.BytesIO(packed(tmp_path, "zip"))) as archive:
        assert archive.namelist() == ["é/", "é/f"]
        assert archive.testzip() is None
        one = archive.getinfo("é/f")
        assert (one.file_size, stat.S_IMODE(one.external_attr >> 16)) == (10_000, 0o755)


def zipped(name: str, content: bytes, mode: int = stat.S_IFREG | 0o644) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        one = zipfile.ZipInfo(name)
        one.external_attr, one.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        archive.writestr(one, content)
    return out.getvalue()


def tarred(*members: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for one in members:
            tar.addfile(one, io.BytesIO(b"x" * one.size))
    return gzip.compress(out.getvalue())


def named(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    one = tarfile.TarInfo(name)
    one.size, one.type = size, kind
    return one


def raw_tar(kind: bytes, size: int, content: bytes = b"") -> bytes:
    one = named("x", size, kind)
    return one.tobuf(tarfile.GNU_FORMAT) + content


def leading(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    one = named(name, kind=kind)
    one.linkname = target
    return one


def test_a_tar_s_hard_links_are_links_inside(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    root = tmp_path / "in"
    hard = tarfile.LNKTYPE
    content = tarred(
        named("first", 3),
        leading("deep/second", "first", hard),
        leading("out", str(tmp_path)),
        leading("up", "../secret", hard),
        leading("through", "out/secret", hard),
        leading("none", "nothing", hard),
    )
    for _ in range(2):  # the second time over the first
        assert unpacked(root, "tar.gz", content) == (3, ["up", "through", "none"])
        assert sorted(os.listdir(root)) == ["deep", "first", "out"]  # noqa: PTH208 - names
        assert os.listdir(root / "deep") == ["second"]  # noqa: PTH208 - names
        assert (root / "first").samefile(root / "deep/second")


def test_what_an_archive_holds_takes_the_place_of_links(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "kept").write_text("kept")
    for name in ("file", "link", "hard"):
        (root / name).symlink_to("kept")
    (root / "was").touch()
    (root / "folder").mkdir()
    content = tarred(
        named("file", 2),
        leading("link", "file"),
        leading("hard", "file", tarfile.LNKTYPE),
        leading("was", "file"),
        leading("folder", "file"),
    )
    assert unpacked(root, "tar.gz", content) == (4, ["folder"])
    assert (root / "kept").read_text() == "kept"
    assert (root / "file").read_text() == (root / "hard").read_text() == "xx"
    assert not (root / "file").is_symlink()
    assert os.readlink(root / "link") == os.readlink(root / "was") == "file"  # noqa: PTH115


@pytest.mark.parametrize("form", PACKERS)
def test_folders_keep_their_rights(form: str, tmp_path: Path) -> None:
    source = tmp_path / "from"
    for name, mode in (("private", 0o700), ("shut", 0o550), ("sticky", 0o1777)):
        (source / name).mkdir(parents=True)
        (source / name / "f").touch()
        (source / name).chmod(mode)
    root = tmp_path / "in"
    assert unpacked(root, form, packed(source, form)) == (6, [])
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in root.iterdir()}
    assert modes == {"private": 0o700, "shut": 0o750, "sticky": 0o777}
    (source / "shut").chmod(0o750)


def test_a_link_s_target_is_not_read_whole(tmp_path: Path) -> None:
    bomb = zipped("link", b"a" * 40 * MIB, stat.S_IFLNK | 0o777)
    assert peak(unpacked, tmp_path, "zip", bomb) < 4 * MIB
    assert unpacked(tmp_path, "zip", bomb) == (0, ["link"])


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
def test_a_tar_s_headers_are_not_read_whole(kind: bytes, tmp_path: Path) -> None:
    bomb = gzip.compress(raw_tar(kind, 40 * MIB, b"a" * 40 * MIB))
    assert peak(unpacked, tmp_path, "tar.gz", bomb) < 4 * MIB
    assert "too long" in refusal(tmp_path, "tar.gz", bomb)


def test_a_tar_s_headers_for_all_that_follows_do_not_gather(tmp_path: Path) -> None:
    members = []
    for number in range(1000):
        body = f"{number:08d}=" + "v" * 8_000 + "\n"
        record = f"{len(body) + 5} {body}".encode()
        members.append(raw_tar(b"g", len(record), record + bytes(-len(record) % 512)))
        members.append(raw_tar(b"5", 0))
    bomb = gzip.compress(b"".join(members) + bytes(1024))
    assert peak(unpacked, tmp_path, "tar.gz", bomb) < 2 * MIB


def test_a_map_of_holes_is_not_read_whole(tmp_path: Path) -> None:
    numbers = b"9000000\n" + b"1\n" * 18_000_000
    pax = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    head = raw_tar(b"x", len(pax), pax + bytes(-len(pax) % 512))
    bomb = gzip.compress(head + raw_tar(b"0", len(numbers), numbers), 1)
    assert peak(unpacked, tmp_path, "tar.gz", bomb) < 4 * MIB
    assert "too long" in refusal(tmp_path, "tar.gz", bomb)


def test_a_length_below_nothing_leads_nobody_round(tmp_path: Path) -> None:
    header = bytearray(raw_tar(b"0", 0))
    header[124:136] = (b"\xff" * 12)[:10] + struct.pack(">h", -512)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    bomb = gzip.compress(raw_tar(b"5", 0) + bytes(header) + raw_tar(b"5", 0) + bytes(1024))
    said = refusal(tmp_path, "tar.gz", bomb)
    assert "backwards" in said or "breaks off" in said  # newer tarfiles take no such header at all


def test_a_tar_that_breaks_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    whole = gzip.decompress(tarred(named("a"), named("b")))
    for cut in (whole[:700], whole[:512] + b"no header" * 100):
        assert "breaks off" in refusal(tmp_path, "tar.gz", gzip.compress(cut))
    assert unpacked(tmp_path, "tar.gz", gzip.compress(whole[:1024])) == (2, [])


@pytest.mark.parametrize("method", [1, 9, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 93, 99])
def test_a_zip_packed_by_another_method_is_refused_as_a_whole(method: int, tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("first", b"x")
        archive.writestr("second", b"x")
    raw = bytearray(out.getvalue())
    for signature, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = raw.rfind(signature) + place
        raw[at : at + 2] = method.to_bytes(2, "little")
    assert "Deflate" in refusal(tmp_path, "zip", bytes(raw))
    assert list(tmp_path.iterdir()) == []


def test_a_zip_s_list_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MOST_LIST", 60)
    assert "too long" in refusal(tmp_path, "zip", zipped("name" * 20, b""))
    monkeypatch.undo()
    monkeypatch.setattr(packing, "_MOST_ENTRIES", 0)
    assert "more than 0 entries" in refusal(tmp_path, "zip", zipped("name", b""))


def test_content_that_is_damaged_is_no_file(tmp_path: Path) -> None:
    damaged = bytearray(tarred(named("f", 100_000)))
    damaged[-8:-4] = b"\0\0\0\0"  # the checksum
    assert "CRC" in refusal(tmp_path, "tar.gz", bytes(damaged))


@both
def test_of_names_that_are_left_out_few_are_told_and_all_can_be(form: str, tmp_path: Path) -> None:
    if form == "tar.gz":
        members = [named(f"\udcff{number}" + "é" * 600, kind=b"3") for number in range(200)]
        content = tarred(*members)
    else:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for number in range(200):
                archive.writestr(f"../{number}" + "é" * 600, b"")
        content = out.getvalue()
    made, left_out = unpacked(tmp_path, form, content)
    assert (made, len(left_out), max(map(len, left_out))) == (0, 100, 500)
    "".join(left_out).encode()


def test_of_very_many_names_that_are_in_no_archive_the_rest_is_counted(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(102):
        os.mkfifo(tmp_path / f"source/{number}")
    unpacked(tmp_path / "new", "zip", packed(tmp_path / "source", "zip"))
    *told, last = (tmp_path / "new/LEFT-OUT.txt").read_text().splitlines()
    assert (len(told), last) == (100, "and 2 more")


def test_a_zip_holds_files_as_large_as_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"x" * 5_000)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1_000)
    with zipfile.ZipFile(io.BytesIO(packed(tmp_path, "zip"))) as archive:
        assert archive.read("f") == b"x" * 5_000


@pytest.mark.parametrize("mode", [0o640, 0o6640, 0o40])
def test_a_file_of_an_archive_is_its_owner_s_and_nobody_s_program(
    mode: int, tmp_path: Path
) -> None:
    one = named("f")
    one.mode = mode
    assert unpacked(tmp_path, "tar.gz", tarred(one)) == (1, [])
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_a_full_disk_ends_an_archive_rather_than_leaving_files_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(packing, "write_all", full)
    with pytest.raises(RefusedError) as refused:
        unpacked(tmp_path, "tar.gz", tarred(named("f", 1)))
    assert refused.value.code == "no_space"


def _samples() -> dict[str, bytes]:
    sparse = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n26 GNU.sparse.realsize=99\n"
    link, device = named("link", kind=tarfile.SYMTYPE), named("device", kind=tarfile.CHRTYPE)
    link.linkname = "f"
    members = [named("f", 700), named("d/" * 70 + "é", 3), named("d", kind=b"5"), link, device]
    tar = b"".join(gzip.decompress(tarred(*members, form=form)) for form in (0, 1, 2))
    holes = b"1\n0\n9\n" + bytes(506) + b"x" * 512
    tar = raw_tar(b"x", len(sparse), sparse.ljust(512, b"\0")) + raw_tar(b"0", 1024, holes) + tar
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("d/f", b"x" * 700)
        archive.writestr("é/", b"")
        one = zipfile.ZipInfo("link")
        one.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(one, b"d/f")
        with archive.open("large", "w", force_zip64=True) as large:
            large.write(b"x" * 100)
    return {"tar": tar, "tar.gz": gzip.compress(tar, mtime=0), "zip": out.getvalue()}


SAMPLES = _samples()
EDITS = st.lists(
    st.tuples(
        st.integers(0, max(map(len, SAMPLES.values()))),
        st.binary(max_size=12)
        | st.sampled_from([b"\xff" * 8, b"\x80" + b"\0" * 11, b"PK\x01\x02"]),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=8,
)


# What newer Pythons say of members that lie in each other; none is larger for that.
@pytest.mark.filterwarnings("ignore:Overlapped entries:UserWarning")
@settings(max_examples=80)
@given(kind=st.sampled_from(sorted(SAMPLES)), edits=EDITS, checked=st.booleans())
def test_no_damage_does_more_than_be_refused(
    *, kind: str, edits: list[tuple[int, bytes, int]], checked: bool
) -> None:
    content = bytearray(SAMPLES[kind])
    for place, new, old in edits:
        at = place % len(content)
        content[at : at + (len(new) if checked else old)] = new
        content = content or bytearray(1)
    if kind == "tar":
        whole = _with_sums(bytes(content)) if checked else bytes(content)
        form, content = "tar.gz", bytearray(gzip.compress(whole, 1))
    else:
        form = kind
    with tempfile.TemporaryDirectory() as folder:
        try:
            unpacked(Path(folder, "new"), form, bytes(content))
        except RefusedError as error:
            if error.code != "invalid_archive":
                pytest.fail(f"{error.code}: {error}")
        assert os.listdir(folder) == ["new"]  # noqa: PTH208 - names


def _with_sums(tar: bytes) -> bytes:
    """Make the checksums of headers true again, so that what they say is read."""
    blocks = bytearray(tar)
    for at in range(0, len(blocks) - 511, 512):
        if blocks[at + 257 : at + 262] == b"ustar":
            blocks[at + 148 : at + 156] = b"        "
            blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
    return bytes(blocks)
