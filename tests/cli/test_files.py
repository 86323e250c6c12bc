"""Names of a workspace's files, which are its agent's word, as they become names here."""

import os
from pathlib import Path

import pytest

from greylag.cli import files
from greylag.cli.errors import CliError


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a/", "/etc/passwd", "../x", "x\0y", "half\\", "a\\x2fb"]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(CliError, match="as no file can be named here"):
        files._below(Path("here"), name)


@pytest.mark.parametrize("name", [b"a b", b"back\\slash", b"caf\xc3\xa9", b"\xff\xfe", b"..."])
def test_every_other_name_comes_and_goes(name: bytes) -> None:
    said = files._said(os.fsdecode(name))
    said.encode()
    assert os.fsencode(files._below(Path("here"), said)) == b"here/" + name
