"""Every way to name an API server, and what is said of each that is wrong."""

import base64
import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cluster.kubernetes.kubeconfigs import (
    SERVER,
    bearer,
    certificate,
    connected,
    headers,
    kubeconfig,
    written,
)

from greylag.cluster.kubernetes import credentials
from greylag.cluster.kubernetes.connection import connect
from greylag.cluster.kubernetes.credentials import TokenFile
from greylag.cluster.kubernetes.options import ConnectionOptions
from greylag.domain.errors import ClusterUnavailableError, ConfigError

PEM = base64.b64encode(b"-----BEGIN").decode()


async def test_a_kubeconfig_in_base64_wins_over_all_else_and_may_have_line_breaks() -> None:
    text = base64.encodebytes(yaml.safe_dump(kubeconfig()).encode()).decode()
    found = connected(kubeconfig_base64=text, host="https://other.test", token="other")
    assert (found.source, found.server) == ("KUBE_CONFIG_BASE64", SERVER)
    assert await headers(found) == bearer("t0ken")


async def test_host_and_token_win_over_a_pod_and_a_kubeconfig(tmp_path: Path) -> None:
    found = connected(
        host="api.test:6443/", token="t\n", kubeconfig=written(tmp_path, kubeconfig())
    )
    assert (found.source, found.server) == ("KUBE_HOST", "https://api.test:6443")
    assert await headers(found) == bearer("t")


async def test_a_pod_uses_its_service_account_and_an_ipv6_address(tmp_path: Path) -> None:
    authority = certificate(tmp_path)[0]
    (tmp_path / "token").write_text("mine\n")
    (tmp_path / "ca.crt").write_text(authority)
    pod = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    found = connect(ConnectionOptions(kubeconfig="/nowhere"), pod, tmp_path)
    assert found is not None
    assert found.server == "https://[fd00::1]:443"
    assert await headers(found) == bearer("mine")
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"no readable .*ca\.crt"):
        connect(ConnectionOptions(), pod, tmp_path)


def test_no_setting_names_no_cluster() -> None:
    assert connect(ConnectionOptions(), {}) is None


async def test_of_several_kubeconfigs_the_first_that_has_a_name_decides(tmp_path: Path) -> None:
    first = kubeconfig(users=[], contexts=[])
    del first["current-context"]
    second = kubeconfig({"token": "second"}, {"server": "https://not.this"})
    paths = f"{written(tmp_path, first, 'a')}:{written(tmp_path, second, 'b')}"
    found = connected(kubeconfig=paths)
    assert found.server == SERVER
    assert await headers(found) == bearer("second")


async def test_relative_files_begin_from_the_folder_of_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "tok").write_text("of-file")
    (tmp_path / "ca.pem").write_text(certificate(tmp_path)[0])
    config = kubeconfig({"tokenFile": "tok"}, {"certificate-authority": "ca.pem"})
    assert await headers(connected(kubeconfig=written(tmp_path, config))) == bearer("of-file")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "KUBECONFIG .* is not YAML"),
        ("[]", "is not a kubeconfig"),
        ("", "is not a kubeconfig: it lists no clusters"),
        ("a: !!timestamp never", "KUBECONFIG .* is not YAML"),
        ({**kubeconfig(), "current-context": ""}, "has no current-context"),
        ({**kubeconfig(), "current-context": "y"}, 'the context "y" is named and is not there'),
        (kubeconfig(clusters=[]), "is not a kubeconfig: it lists no clusters"),
        (
            kubeconfig(clusters=[{"name": "other", "cluster": {}}]),
            'the cluster "c" is named and is not there',
        ),
        (kubeconfig(users=[]), 'the user "u" is named and is not there'),
        (kubeconfig(cluster={"server": ""}), "does not give the API server as https"),
        (kubeconfig(cluster={"server": "http://a.test"}), "must begin with https"),
        (kubeconfig(cluster={"certificate-authority-data": "?"}), "not PEM in base64"),
        (kubeconfig(cluster={"certificate-authority": "no.pem"}), "which cannot be read"),
        (kubeconfig(cluster={"proxy-url": "socks5://p"}), "proxy-url that is not http"),
        (kubeconfig({"tokenFile": "no"}), "tokenFile .*no, which cannot be read"),
        (kubeconfig({"username": "a", "password": "b"}), "user name and password"),
        (kubeconfig({"client-certificate-data": PEM}), "only one of client-certificate"),
        (
            kubeconfig({"client-certificate-data": PEM, "client-key-data": PEM}),
            "that do not fit",
        ),
        (
            kubeconfig({"client-certificate-data": "YQ=="}),
            "client-certificate-data that is not PEM",
        ),
        (kubeconfig({"token": "two words"}), "a token that is none: a token has no blanks"),
        (kubeconfig({"token": 5}), "a token that is not a text"),
        (kubeconfig(cluster={"proxy-url": "http://["}), "proxy-url that is not http"),
        (kubeconfig(cluster={"server": "https://a..b"}), "does not give the API server"),
        (kubeconfig(cluster={"server": "https://a b"}), "does not give the API server"),
        (kubeconfig(cluster={"certificate-authority": "config"}), "which is not PEM"),
        (kubeconfig({"exec": {}}), "an exec without a command"),
        (kubeconfig({"exec": {"command": "x", "apiVersion": "v0"}}), "exec of the apiVersion v0"),
        (
            kubeconfig(
                {
                    "exec": {
                        "command": "no-such-program",
                        "apiVersion": "client.authentication.k8s.io/v1",
                        "installHint": "Get it\nthere.",
                    }
                }
            ),
            "needs the program no-such-program, which is not there. Get it there",
        ),
    ],
)
def test_a_wrong_kubeconfig_is_told_with_the_setting_and_the_reason(
    tmp_path: Path, config: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        connected(kubeconfig=written(tmp_path, config))
    assert "KUBECONFIG" in str(refused.value)
    assert "t0ken" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kubeconfig_base64": "%%%"}, "KUBE_CONFIG_BASE64 is not a text in base64"),
        ({"host": "https://a.test"}, "KUBE_TOKEN is missing"),
        ({"token": "t"}, "KUBE_HOST is missing"),
        ({"host": "http://a.test", "token": "t"}, "KUBE_HOST must begin with https"),
        ({"host": "https://u:p@a.test", "token": "t"}, "KUBE_HOST does not give"),
        ({"host": "a.test", "token": "t", "ca": "/no/file"}, "KUBE_CA is neither PEM"),
        ({"host": "a.test", "token": "t", "ca": "ca.pem"}, "KUBE_CA is neither PEM"),
        ({"host": "a.test", "token": "t", "ca": "-----BEGIN"}, "KUBE_CA has a certificate auth"),
        ({"host": "a.test", "token": "wrapped\ntoken"}, "KUBE_TOKEN is not a token"),
        ({"kubeconfig": "~nobody/config"}, "KUBECONFIG names .*, which cannot be read"),
        ({"kubeconfig": "/no/file"}, "KUBECONFIG names /no/file, which cannot be read"),
    ],
)
def test_a_wrong_setting_is_told_with_its_name(options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        connected(**options)


def test_an_authority_may_be_pem_base64_or_a_file(tmp_path: Path) -> None:
    pem = certificate(tmp_path)[0]
    remark = f"# Autorität\n{pem}"
    # As `base64` prints it, and too long for the name of a file.
    encoded = base64.encodebytes(pem.encode() * 9).decode()
    files = (written(tmp_path, pem, "ca.pem"), written(tmp_path, remark, "de.pem"))
    for config in (pem, remark, encoded, encoded.replace("\n", ""), *files):
        found = connected(host="a.test", token="t", ca=config)
        assert found.ssl is not None
        assert len(found.ssl.get_ca_certs()) == 1


def test_an_empty_authority_is_not_taken_for_the_systems(tmp_path: Path) -> None:
    config = kubeconfig(cluster={"certificate-authority": written(tmp_path, "", "ca.pem")})
    with pytest.raises(ConfigError, match=r"ca\.pem, which is not PEM"):
        connected(kubeconfig=written(tmp_path, config))


def test_embedded_data_may_have_line_breaks_as_kubectl_allows(tmp_path: Path) -> None:
    crt, key = (base64.encodebytes(one.encode()).decode() for one in certificate(tmp_path))
    user = {"client-certificate-data": crt, "client-key-data": key}
    config = kubeconfig(user, {"certificate-authority-data": crt})
    assert connected(kubeconfig=written(tmp_path, config)).ssl is not None


async def test_a_token_file_counts_more_than_a_token(tmp_path: Path) -> None:
    config = kubeconfig({"token": "old", "tokenFile": written(tmp_path, "new", "token")})
    assert await headers(connected(kubeconfig=written(tmp_path, config))) == bearer("new")


async def test_of_several_kubeconfigs_some_may_be_missing_or_name_no_cluster(
    tmp_path: Path,
) -> None:
    users = {"users": kubeconfig()["users"]}
    rest = {**kubeconfig(), "users": []}
    paths = [written(tmp_path, users, "a"), str(tmp_path / "none"), written(tmp_path, rest, "b")]
    assert await headers(connected(kubeconfig=":".join(paths))) == bearer("t0ken")
    with pytest.raises(ConfigError, match="none, which cannot be read"):
        connected(kubeconfig=f"{paths[1]}:{paths[1]}")


def test_a_context_that_is_asked_for_counts_in_base64_too(tmp_path: Path) -> None:
    two = kubeconfig()
    two["clusters"].append({"name": "d", "cluster": {"server": "https://other.test"}})
    two["contexts"].append({"name": "y", "context": {"cluster": "d"}})
    encoded = base64.b64encode(yaml.safe_dump(two).encode()).decode()
    for options in ({"kubeconfig_base64": encoded}, {"kubeconfig": written(tmp_path, two)}):
        assert connected(context="y", **options).server == "https://other.test"
        with pytest.raises(ConfigError, match=r'KUBE_CONTEXT: .* has no context "z"'):
            connected(context="z", **options)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
EVERYTHING = kubeconfig(
    {
        "token": "t",
        "exec": {
            "command": "true",
            "apiVersion": "client.authentication.k8s.io/v1",
            "args": ["a"],
            "env": [{"name": "a", "value": "b"}],
            "provideClusterInfo": True,
        },
    },
    {"proxy-url": "http://p", "tls-server-name": "n", "insecure-skip-tls-verify": True},
)


def places(inside: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(inside, dict | list):
        return [path]
    keys = inside if isinstance(inside, dict) else range(len(inside))
    return [path, *(found for key in keys for found in places(inside[key], (*path, key)))]


@given(place=st.sampled_from([one for one in places(EVERYTHING) if one]), junk=JUNK)
@settings(max_examples=150, deadline=None)
def test_whatever_stands_in_a_kubeconfig_it_is_taken_or_refused_with_a_sentence(
    place: tuple[Any, ...], junk: Any
) -> None:
    config = copy.deepcopy(EVERYTHING)
    inside = config
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = junk
    encoded = base64.b64encode(yaml.safe_dump(config).encode()).decode()
    with contextlib.suppress(ConfigError):
        connected(kubeconfig_base64=encoded)


async def test_a_renewed_token_file_is_read_after_a_minute_or_when_it_was_refused(
    tmp_path: Path,
) -> None:
    now, path = [0.0], tmp_path / "token"
    path.write_text("one")
    file = TokenFile(path, lambda: now[0])
    assert await file.headers() == bearer("one")
    path.write_text("two")
    assert await file.headers() == bearer("one")
    now[0] = credentials.REREAD_SECONDS
    assert await file.headers() == bearer("two")
    path.write_text("three")
    assert file.refused(await file.headers())
    assert await file.headers() == bearer("three")
    file.refused(await file.headers())
    path.write_text("")
    with pytest.raises(ClusterUnavailableError, match="is empty"):
        await file.headers()
    path.unlink()
    with pytest.raises(ClusterUnavailableError, match="cannot be read"):
        await file.headers()


def test_nothing_of_a_connection_shows_its_secrets(tmp_path: Path) -> None:
    found = connected(kubeconfig=written(tmp_path, kubeconfig()))
    assert "t0ken" not in repr(found)
    assert "t0ken" not in repr(ConnectionOptions(token="t0ken", kubeconfig_base64="t0ken"))
