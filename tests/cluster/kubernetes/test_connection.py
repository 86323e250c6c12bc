"""Every way to name an API server, and what is said of each that is wrong."""

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.kubernetes.kubeconfigs import (
    SERVER,
    bearer,
    connected,
    headers,
    kubeconfig,
    written,
)

from greylag.cluster.kubernetes import credentials
from greylag.cluster.kubernetes.connection import ConnectionOptions, connect
from greylag.cluster.kubernetes.credentials import TokenFile
from greylag.domain.errors import ClusterUnavailableError, ConfigError


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
    authority = certificate(tmp_path)
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
    (tmp_path / "ca.pem").write_text(certificate(tmp_path))
    given = kubeconfig({"tokenFile": "tok"}, {"certificate-authority": "ca.pem"})
    assert await headers(connected(kubeconfig=written(tmp_path, given))) == bearer("of-file")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "KUBECONFIG .* is not YAML"),
        ("[]", "is not a kubeconfig: it lists no clusters"),
        ({**kubeconfig(), "current-context": ""}, "has no current-context"),
        ({**kubeconfig(), "current-context": "y"}, 'the context "y" is named and is not there'),
        (kubeconfig(clusters=[]), 'the cluster "c" is named and is not there'),
        (kubeconfig(users=[]), 'the user "u" is named and is not there'),
        (kubeconfig(cluster={"server": ""}), "does not give the API server as https"),
        (kubeconfig(cluster={"server": "http://a.test"}), "must begin with https"),
        (kubeconfig(cluster={"certificate-authority-data": "?"}), "not PEM in base64"),
        (kubeconfig(cluster={"certificate-authority": "no.pem"}), "which cannot be read"),
        (kubeconfig(cluster={"proxy-url": "socks5://p"}), "proxy-url that is not http"),
        (kubeconfig({"tokenFile": "no"}), "tokenFile .*no, which is not there"),
        (kubeconfig({"username": "a", "password": "b"}), "user name and password"),
        (kubeconfig({"client-certificate-data": "YQ=="}), "only one of client-certificate"),
        (
            kubeconfig({"client-certificate-data": "YQ==", "client-key-data": "YQ=="}),
            "that do not fit",
        ),
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
        ({"host": "a.test", "token": "t", "ca": "/no/file"}, "KUBE_CA"),
        ({"kubeconfig": "/no/file"}, "KUBECONFIG names /no/file, which cannot be read"),
    ],
)
def test_a_wrong_setting_is_told_with_its_name(options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        connected(**options)


def test_an_authority_may_be_pem_base64_or_a_file(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    encoded = base64.b64encode(pem.encode()).decode()
    for given in (pem, encoded, written(tmp_path, pem, "ca.pem")):
        found = connected(host="a.test", token="t", ca=given)
        assert found.ssl is not None
        assert len(found.ssl.get_ca_certs()) == 1


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
    assert file.refused()
    assert await file.headers() == bearer("three")
    path.unlink()
    file.refused()
    with pytest.raises(ClusterUnavailableError, match="cannot be read"):
        await file.headers()


def certificate(folder: Path) -> str:
    """Return a certificate, made by openssl."""
    words = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "crt.pem"))
    subprocess.run(  # noqa: S603 - openssl, fixed words
        ["/usr/bin/env", "openssl", *words, *files, "-subj", "/CN=test", "-days", "2"],
        check=True,
        capture_output=True,
    )
    return (folder / "crt.pem").read_text()


def test_nothing_of_a_connection_shows_its_secrets(tmp_path: Path) -> None:
    found = connected(kubeconfig=written(tmp_path, kubeconfig()))
    assert "t0ken" not in repr(found)
    assert "t0ken" not in repr(ConnectionOptions(token="t0ken", kubeconfig_base64="t0ken"))
