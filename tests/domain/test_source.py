"""What may be the repository that a project starts from, and the host of a secret."""

import re
from dataclasses import replace

import pytest

from greylag.common.git import REF_FORM
from greylag.domain.errors import InvalidRequestError
from greylag.domain.project import HOST_FORM, URL_FORM, GitSource, check_host, check_source

URL = "https://github.com/octocat/hello-world.git"


@pytest.mark.parametrize(
    "source",
    [
        GitSource(URL),
        GitSource("http://git.corp.example:3000/team/sub/app"),
        GitSource("https://GIT.example:65535/~me/a%20b.git/"),
        GitSource(URL, "feature/a-b_c", 1),
        GitSource(URL, "v1.2.3"),
        GitSource(URL, "0" * 40, 1_000_000),
    ],
)
def test_a_repository_that_git_can_clone_is_taken(source: GitSource) -> None:
    assert check_source(source) == replace(source, url=source.url.replace("GIT", "git"))
    assert re.search(URL_FORM, source.url)
    assert source.ref is None or re.search(REF_FORM, source.ref)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "github.com/a.git",
        "ssh://git@github.com/a.git",
        "git@github.com:a.git",
        "file:///etc/passwd",
        "ext::sh -c id",
        "--upload-pack=sh",
        "https://-oProxyCommand=sh/a.git",
        "https://user:secret@github.com/a.git",
        "https://token@github.com/a.git",
        "https:///a.git",
        "https://github.com",
        "https://github.com/",
        "https://github.com/a.git?x=1",
        "https://github.com/a.git#main",
        "https://github.com/../a.git",
        "https://[::1]/a.git",
        "https://github.com//a.git",
        "https://github.com:99999/a.git",
        "https://github.com/a b.git",
        "https://github.com/a\n.git",
        "https://gïthub.com/a.git",
        "https://github.com/" + "a" * 1000,
    ],
)
def test_what_is_no_address_of_a_repository_is_refused_and_no_password_repeated(url: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_source(GitSource(url))
    assert "secret@" not in str(refused.value)


@pytest.mark.parametrize(
    "ref",
    [
        *("", "-b", "--upload-pack=x", "a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b"),
        *(
            "@",
            "a@{1}",
            "/a",
            "a/",
            "a//b",
            "a/.b",
            ".a",
            "a.",
            "a.lock",
            "a.lock/b",
            "ä",
            "a" * 201,
        ),
    ],
)
def test_a_ref_that_git_forbids_or_takes_for_an_option_is_refused(ref: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape("source.git.ref")):
        check_source(GitSource(URL, ref))


@pytest.mark.parametrize("depth", [0, -1, 1_000_001])
def test_a_depth_is_a_number_of_commits(depth: int) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape("source.git.depth")):
        check_source(GitSource(URL, None, depth))


@pytest.mark.parametrize("host", ["github.com", "localhost:3000", "10.0.0.1:8443", "a-b.example"])
def test_a_host_is_taken(host: str) -> None:
    assert check_host(host) == host
    assert re.search(HOST_FORM, host)


@pytest.mark.parametrize(
    "host",
    [
        *("", "GitHub.com", "https://github.com", "github.com/a", "a@b", "-a", "a:0", "a:99999"),
        *("a:", "a b", "*.github.com", "a.", ".a", "a\n"),
    ],
)
def test_what_names_no_host_is_refused(host: str) -> None:
    with pytest.raises(InvalidRequestError, match="host must be"):
        check_host(host)
