"""Credentials from a program that the kubeconfig names: real programs, run."""

import asyncio
import base64
import ssl
import sys
import textwrap
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.cluster.environments import until
from tests.cluster.kubernetes.api_server import says, served, thing
from tests.cluster.kubernetes.kubeconfigs import (
    SERVER,
    bearer,
    certificate,
    connected,
    headers,
    kubeconfig,
    written,
)

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.connection import Connection
from greylag.cluster.kubernetes.credentials import LEAST
from greylag.domain.errors import ClusterUnavailableError


def plugin(
    folder: Path, body: str, cluster: dict[str, Any] | None = None, **exec_: Any
) -> Connection:
    """Return a connection whose credentials are what this Python program prints."""
    program = folder / "plugin.py"
    head = f"#!{sys.executable}\nimport json, os, sys, time, datetime\n"
    helper = """
    def say(**status):
        info = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
        print(json.dumps({"apiVersion": info["apiVersion"], "kind": "ExecCredential",
                          "status": status}))
    """
    program.write_text(head + textwrap.dedent(helper) + textwrap.dedent(body))
    program.chmod(0o755)
    version = "client.authentication.k8s.io/v1"
    asked = {"command": "./plugin.py", "apiVersion": version, "interactiveMode": "Never", **exec_}
    return connected(kubeconfig=written(folder, kubeconfig({"exec": asked}, cluster)))


async def test_an_exec_plugin_is_asked_once_until_what_it_gave_has_expired_or_was_refused(
    tmp_path: Path,
) -> None:
    count = tmp_path / "count"
    body = f"""
    with open({str(count)!r}, "a") as file: file.write("x")
    number = len(open({str(count)!r}).read())
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=number - 1)
    say(token=f"token-{{number}}", expirationTimestamp=soon.strftime("%Y-%m-%dT%H:%M:%SZ"))
    """
    found = plugin(tmp_path, body)
    assert await headers(found) == bearer("token-1")
    # The first had expired at once, by a clock that may be wrong: it is used for a while.
    assert await headers(found) == bearer("token-1")
    later = datetime.now(UTC) + LEAST
    found.credentials._now = lambda: later  # type: ignore[attr-defined]
    assert await headers(found) == bearer("token-2")
    many = await asyncio.gather(*(headers(found) for _ in range(5)))
    assert many == [bearer("token-2")] * 5
    refused = await headers(found)
    for _ in range(5):  # calls that were under way together are refused together
        assert found.credentials.refused(refused)
        assert await headers(found) == bearer("token-3")


async def test_no_connection_with_a_certificate_that_was_refused_is_used_again(
    tmp_path: Path,
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.verify_mode = ssl.CERT_REQUIRED
    pems, ports = [], []
    for name in ("server", "old", "new"):
        (tmp_path / name).mkdir()
        pem, _ = certificate(tmp_path / name, "-addext", "subjectAltName=DNS:api.test")
        context.load_verify_locations(cadata=pem)
        pems.append(ssl.PEM_cert_to_DER_cert(pem))
    context.load_cert_chain(tmp_path / "server" / "crt.pem", tmp_path / "server" / "key.pem")
    refused: list[bytes] = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        ports.append(request.transport.get_extra_info("peername")[1])
        shown = request.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return web.json_response({"code": 401}, status=401 if shown in refused else 200)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    body = f"""
    os.chdir({str(tmp_path)!r})
    folder = "new" if os.path.exists("again") else "old"
    open("again", "w").close()
    read = lambda name: open(f"{{folder}}/{{name}}").read()
    say(clientCertificateData=read("crt.pem"), clientKeyData=read("key.pem"))
    """
    authority = base64.b64encode((tmp_path / "server" / "crt.pem").read_bytes()).decode()
    cluster = {
        "server": f"https://127.0.0.1:{runner.addresses[0][1]}",
        "certificate-authority-data": authority,
        "tls-server-name": "api.test",
    }
    api = Api(plugin(tmp_path, body, cluster))
    try:
        await asyncio.gather(api.get("/version"), api.get("/version"))
        refused.append(pems[1])
        await api.get("/version")
        await api.get("/version")
    finally:
        await api.close()
        await runner.cleanup()
    assert ports[-1] == ports[-2] != ports[-3]
    assert ports[-3] in ports[:2]  # a connection is used as long as its certificate is taken


async def test_an_exec_plugin_gets_its_arguments_its_variables_and_the_cluster(
    tmp_path: Path,
) -> None:
    body = """
    cluster = json.loads(os.environ["KUBERNETES_EXEC_INFO"])["spec"]["cluster"]
    say(token="-".join([*sys.argv[1:], os.environ["REGION"], cluster["server"]]))
    """
    env = [{"name": "REGION", "value": "north"}]
    found = plugin(tmp_path, body, args=["a", "b"], env=env, provideClusterInfo=True)
    assert await headers(found) == bearer(f"a-b-north-{SERVER}")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit(3)", "ended with the exit code 3"),
        ("print('what')", "plugin.py"),
        ("print(json.dumps({'kind': 'Other'}))", "plugin.py"),
        ("say()", "plugin.py"),
        ("say(token='')", "plugin.py"),
        ("say(token='t', expirationTimestamp='2030-01-01T00:00:00')", "plugin.py"),
        ("say(token='two words')", "gave no credentials in the form"),
        ("say(clientCertificateData='x', clientKeyData='y')", "gave no credentials in the form"),
        ("while True: print('x' * 65536)", "said far more than credentials|exit code"),
    ],
)
async def test_a_plugin_that_fails_is_told_with_its_name_and_what_to_do(
    tmp_path: Path, body: str, said: str
) -> None:
    with pytest.raises(ClusterUnavailableError, match=said) as refused:
        await headers(plugin(tmp_path, body))
    assert "Run it by hand" in refused.value.info.hint


async def test_a_plugin_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    odd = plugin(tmp_path, "say(token='t')", args=["a" * 1_000_000])
    with pytest.raises(ClusterUnavailableError, match="cannot be started"):
        await headers(odd)
    gone = plugin(tmp_path, "say(token='t')")
    (tmp_path / "plugin.py").unlink()
    with pytest.raises(ClusterUnavailableError, match="cannot be started"):
        await headers(gone)


async def test_a_plugin_that_hangs_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greylag.cluster.kubernetes.credentials.RUN_SECONDS", 1)
    run = tmp_path / "run"
    run.touch()
    body = f"""
    open({str(run)!r}, "w").write(str(os.getpid()))
    time.sleep(3600)
    """
    with pytest.raises(ClusterUnavailableError, match="did not end in 1 seconds"):
        await headers(plugin(tmp_path, body))
    pid = run.read_text()  # empty when it had not come so far
    await until(lambda: not pid or not lives(int(pid)), "the end of the plugin")


async def test_what_a_plugin_leaves_behind_is_killed_too_when_it_holds_the_answer_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "left"
    left.touch()
    body = f"""
    import subprocess
    child = subprocess.Popen(["sleep", "60"])
    open({str(left)!r}, "w").write(str(child.pid))
    say(token="t")
    """
    for seconds in (1, 10, 60):
        monkeypatch.setattr("greylag.cluster.kubernetes.credentials.RUN_SECONDS", seconds)
        with pytest.raises(ClusterUnavailableError, match="did not end"):
            await headers(plugin(tmp_path, body))
        if pid := left.read_text():  # empty when it had not come so far
            break
    await until(lambda: not lives(int(pid)), "the end of what it started")


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_a_plugin_that_takes_longer_than_a_try_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greylag.cluster.kubernetes.api.TRY_SECONDS", 0.3)
    found = plugin(tmp_path, "time.sleep(0.6)\nsay(token='slow')")
    async with served(says(thing("a", 1))) as (server, _):
        api = Api(replace(found, server=server.url, ssl=None))
        try:
            assert await api.read("Pod", "n", "a")
        finally:
            await api.close()
    assert server.asked[0].headers["Authorization"] == "Bearer slow"


async def test_a_plugin_that_is_too_slow_for_a_call_is_named_and_not_the_api_server(
    tmp_path: Path,
) -> None:
    api = Api(plugin(tmp_path, "time.sleep(60)"))
    try:
        with pytest.raises(ClusterUnavailableError, match=r"The credentials .* did not come in"):
            await api.within(0.3).read("Pod", "n", "a")
    finally:
        await api.close()


async def test_a_plugin_is_told_of_an_authority_that_is_in_a_file(tmp_path: Path) -> None:
    body = """
    cluster = json.loads(os.environ["KUBERNETES_EXEC_INFO"])["spec"]["cluster"]
    say(token=cluster["certificate-authority-data"][:8])
    """
    (tmp_path / "ca.pem").write_text(certificate(tmp_path)[0])
    found = plugin(
        tmp_path, body, provideClusterInfo=True, cluster={"certificate-authority": "ca.pem"}
    )
    assert await headers(found) == bearer("LS0tLS1C")
