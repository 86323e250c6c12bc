"""`greylag notifications`, against a server over memory adapters."""

import pytest
from tests.cli.program import Cli
from tests.cli.stack import Stack

from greylag.cli.errors import Exit
from greylag.config import Settings
from greylag.ports import Delivered, DeliveryResult

URL = "https://hooks.example/TOKEN-IN-THE-ADDRESS"


@pytest.fixture
def settings() -> Settings:
    return Settings(users="ann:Ann", secret_key="k" * 32, _env_file=None)


async def test_a_webhook_is_added_listed_tested_and_removed(
    stack: Stack, cli: Cli, program: Cli
) -> None:
    made = await program("notifications", "add-webhook", "chat", stdin=f"{URL}\n".encode())
    assert (made.code, made.out[:6]) == (Exit.OK, "whsec_"), made.err
    assert "TOKEN" not in made.out + made.err
    (one,) = (await cli("notifications", "list", "--json")).document["targets"]
    assert (one["kind"], one["name"], one["host"]) == ("webhook", "chat", "hooks.example")
    assert (await cli("notifications", "test", one["id"])).code == Exit.OK
    stack.delivery.answers.append(Delivered(DeliveryResult.REFUSED, "answered 404"))
    failed = await cli("notifications", "test", one["id"])
    assert (failed.code, "answered 404" in failed.err) == (Exit.REFUSED, True)
    listed = (await cli("notifications", "list")).out
    assert "hooks.example" in listed
    assert "answered 404" in listed
    assert (await cli("notifications", "remove", one["id"], "--yes")).code == Exit.OK
    assert (await cli("notifications", "remove", one["id"], "--yes")).code == Exit.REFUSED
    refused = await program("notifications", "add-webhook", "chat", stdin=b"http://x\n")
    assert refused.code == Exit.REFUSED
