"""`greylag manifests` prints what kubectl takes, and no secret."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from greylag.cli.environments import manifests
from greylag.cli.errors import CliError, Exit

KEY = "a-key-that-nobody-may-see"


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACR_IMAGE", "goose-api-server:1")
    monkeypatch.setenv("GREYLAG_MODEL_KEY", KEY)
    for name in ("http_proxy", "https_proxy", "all_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://ann:{KEY}@proxy.example:3128")
    monkeypatch.setenv("GREYLAG_MODEL_URL", "https://model.example")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(manifests, arguments)


def test_it_prints_all_objects_without_a_secret_value() -> None:
    result = run("Jürg", "search")

    documents = list(yaml.safe_load_all(result.stdout))
    kinds = [each["kind"] for each in documents]
    assert kinds[0] == "Namespace"
    assert kinds[-5:] == ["Secret", "ConfigMap", "PersistentVolumeClaim", "Service", "Deployment"]
    secret = documents[kinds.index("Secret")]
    assert set(secret["stringData"]) == {
        "GREYLAG_AGENT_TOKEN",
        "GREYLAG_MODEL_KEY",
        "HTTPS_PROXY",
    }
    assert all(value.startswith("REPLACE-WITH") for value in secret["stringData"].values())
    assert KEY not in result.stdout
    assert "&id" not in result.stdout


def test_settings_and_options_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBE_NAMESPACE_PREFIX", "team-")
    monkeypatch.setenv("INGRESS_BASE_DOMAIN", "example.org")
    monkeypatch.setenv("GREYLAG_KUBE_TEMPLATES", '{"large": {"memory_limit": "4Gi"}}')

    result = run("alice", "search", "--template", "large", "--stopped")

    documents = {each["kind"]: each for each in yaml.safe_load_all(result.stdout)}
    deployment = documents["Deployment"]
    assert deployment["metadata"]["namespace"] == "team-alice"
    assert deployment["spec"]["replicas"] == 0
    limits = [
        container["resources"]["limits"]["memory"]
        for container in deployment["spec"]["template"]["spec"]["containers"]
    ]
    assert limits == ["256Mi", "3840Mi"]
    assert documents["Ingress"]["metadata"]["name"] == "search-ingress"


def test_without_an_image_it_says_which_setting_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACR_IMAGE")

    error = run("alice", "search").exception

    assert isinstance(error, CliError)
    assert "ACR_IMAGE is not set" in error.message


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("a/b", "search"), "user id"), (("a", "b", "--template", "x"), "template 'x'")],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], sentence: str) -> None:
    error = run(*arguments).exception

    assert isinstance(error, CliError)
    assert error.exit_code == Exit.USAGE
    assert sentence in error.message
