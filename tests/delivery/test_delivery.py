"""Push services and webhooks over real HTTP: what they get, and where nothing is ever sent."""

import asyncio
import base64
import json
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt
from joserfc.jwk import ECKey
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from tests.delivery.receiver import Receiver

from greylag.common.public_hosts import is_public
from greylag.delivery import http, web_push
from greylag.delivery.http import HttpDelivery
from greylag.domain.errors import InvalidRequestError
from greylag.ports import Delivered, DeliveryResult, PushAddress, PushMessage, WebhookAddress

SECRET = base64.b64encode(b"s" * 24).decode()
POINT = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
NOW = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)
MESSAGE = PushMessage(
    b'{"title": "Notes"}', "a" * 32, urgent=True, contact="https://greylag.example"
)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver().serving() as running:
        yield running


@asynccontextmanager
async def delivery(
    *named: str, proxies: Mapping[str, str] | None = None
) -> AsyncIterator[HttpDelivery]:
    """Open one, whose threads end with it."""
    before = set(threading.enumerate())
    opened = HttpDelivery(named, "", proxies or {})
    try:
        yield opened
    finally:
        await opened.close()
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith("names that users gave"):
                await asyncio.to_thread(thread.join, 5)
                assert not thread.is_alive()


class Browser:
    """The other side of a push: it has the keys, and reads what comes (RFC 8188, 8291)."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._auth = b"a" * 16

    @property
    def point(self) -> bytes:
        return self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def address(self, endpoint: str) -> PushAddress:
        return PushAddress(endpoint, web_push.encoded(self.point), web_push.encoded(self._auth))

    def read(self, body: bytes) -> bytes:
        salt, size, sender = body[:16], int.from_bytes(body[16:20], "big"), body[21:86]
        assert len(body) <= size == 4096
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), sender)
        shared = self._key.exchange(ec.ECDH(), public)
        info = b"WebPush: info\0" + self.point + sender
        secret = HKDF(hashes.SHA256(), 32, self._auth, info).derive(shared)
        key = HKDF(hashes.SHA256(), 16, salt, b"Content-Encoding: aes128gcm\0").derive(secret)
        nonce = HKDF(hashes.SHA256(), 12, salt, b"Content-Encoding: nonce\0").derive(secret)
        plain = AESGCM(key).decrypt(nonce, body[86:], None)
        assert plain.endswith(b"\x02")
        return plain[:-1]


def test_a_message_is_encrypted_as_the_example_of_rfc_8291_is() -> None:
    to = PushAddress("", POINT, "BTBZMqHH6r4Tts7J_aSIgg")
    secret = int.from_bytes(web_push.decoded("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw", 32))
    sent = web_push.encrypted(
        to,
        b"When I grow up, I want to be a watermelon",
        salt=web_push.decoded("DGv6ra1nlYgDCS1FRnbzlw", 16),
        sender=ec.derive_private_key(secret, ec.SECP256R1()),
    )
    assert web_push.encoded(sent) == (
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
    )


async def test_a_browser_reads_what_its_push_service_is_given_with_our_word(
    receiver: Receiver,
) -> None:
    browser = Browser()
    async with delivery(f"http://{receiver.host}") as way:
        key = way.new_key()
        to = browser.address(f"http://{receiver.host}/send/1")
        assert way.check(to) == "127.0.0.1"
        assert (await way.push(to, key, MESSAGE)).result is DeliveryResult.DONE
    (request, body), *more = receiver.got
    assert not more
    assert browser.read(body) == MESSAGE.body
    word, _, given = request.headers["authorization"].removeprefix("vapid t=").partition(", k=")
    assert given == way.public_key(key)
    said = jwt.decode(word, ECKey.import_key(key), algorithms=["ES256"])
    assert said.claims["aud"] == f"http://{receiver.host}"
    assert said.claims["sub"] == MESSAGE.contact
    assert 0 < said.claims["exp"] - datetime.now(UTC).timestamp() < 24 * 3600
    told = {name: request.headers[name] for name in ("Urgency", "Topic", "Content-Encoding")}
    assert told == {"Urgency": "high", "Topic": "a" * 32, "Content-Encoding": "aes128gcm"}
    assert int(request.headers["ttl"]) > 0


async def test_a_webhook_knows_us_by_the_signature_of_standard_webhooks(receiver: Receiver) -> None:
    body = json.dumps({"type": "turn.ended", "data": {"text": "é"}}).encode()
    async with delivery(f"http://{receiver.host}") as way:
        to = WebhookAddress(f"http://{receiver.host}/hook?a=1", SECRET)
        assert way.check(to) == "127.0.0.1"
        done = await way.post(to, "msg_1", datetime.now(UTC), body)
    assert done == Delivered(DeliveryResult.DONE, "delivered")
    ((request, got),) = receiver.got
    headers = dict(request.headers)
    assert Webhook(f"whsec_{SECRET}").verify(got, headers) == json.loads(body)
    with pytest.raises(WebhookVerificationError):
        Webhook(f"whsec_{SECRET}").verify(got + b" ", headers)
    assert headers["webhook-id"] == "msg_1"


@pytest.mark.parametrize(
    ("status", "of_push", "of_hook"),
    [
        (302, DeliveryResult.REFUSED, DeliveryResult.REFUSED),
        (400, DeliveryResult.REFUSED, DeliveryResult.REFUSED),
        (404, DeliveryResult.GONE, DeliveryResult.REFUSED),
        (410, DeliveryResult.GONE, DeliveryResult.GONE),
        (429, DeliveryResult.LATER, DeliveryResult.LATER),
        (500, DeliveryResult.LATER, DeliveryResult.LATER),
    ],
)
async def test_what_is_answered_tells_what_to_do_next_and_no_redirect_is_followed(
    receiver: Receiver, status: int, of_push: DeliveryResult, of_hook: DeliveryResult
) -> None:
    receiver.status = status
    async with delivery(f"http://{receiver.host}") as way:
        to = Browser().address(f"http://{receiver.host}/send")
        pushed = await way.push(to, way.new_key(), MESSAGE)
        hook = WebhookAddress(f"http://{receiver.host}/hook", SECRET)
        posted = await way.post(hook, "msg_1", NOW, b"{}")
    assert (pushed.result, posted.result) == (of_push, of_hook)
    assert posted.words == f"answered {status}"
    assert len(receiver.got) == 2


@pytest.mark.parametrize(
    "address",
    [
        "http://hooks.example/",
        "ftp://hooks.example/",
        "https://user:password@hooks.example/",
        "https://",
        "https://hooks.example:0/",
        "https://hooks.example:99999/",
        "https://[::1/",
        "/",
        "https://127.0.0.1/",
        "https://127.8.9.10:8000/",
        "https://0.0.0.0/",
        "https://10.0.0.1/",
        "https://172.16.0.1/",
        "https://192.168.1.1/",
        "https://100.64.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::]/",
        "https://[fe80::1]/",
        "https://[fd00:ec2::254]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:169.254.169.254]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://[fec0::2]/",
        "https://[64:ff9b:1::7f00:1]/",
        "https://[::127.0.0.1]/",
        "https://[::ffff:0:10.0.0.1]/",
        "https://224.0.0.1/",
        "https://localhost/",
        "https://any.localhost/",
        "https://hooks.example/" + "x" * 2000,
        "https://hooks.example/\n",
    ],
)
async def test_an_address_that_must_not_be_told_is_refused_when_it_is_added(address: str) -> None:
    async with delivery() as way:
        for to in (WebhookAddress(address, SECRET), Browser().address(address)):
            with pytest.raises(InvalidRequestError):
                way.check(to)
        posted = await way.post(WebhookAddress(address, SECRET), "msg_1", NOW, b"{}")
        pushed = await way.push(Browser().address(address), way.new_key(), MESSAGE)
        assert posted.result is pushed.result is DeliveryResult.REFUSED


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f.1", "localhost.", "ip6-localhost"])
async def test_a_name_that_leads_to_this_machine_is_not_followed_there(
    receiver: Receiver, host: str
) -> None:
    port = receiver.host.rpartition(":")[2]
    async with delivery() as way:
        to = WebhookAddress(f"https://{host}:{port}/", SECRET)
        done = await way.post(to, "msg_1", NOW, b"{}")
    assert done.result is not DeliveryResult.DONE
    assert "not public" in done.words or "not found" in done.words
    assert not receiver.got


async def test_only_what_the_operator_has_named_may_be_private(receiver: Receiver) -> None:
    port = receiver.host.rpartition(":")[2]
    async with delivery(f"http://localhost:{port}") as way:
        to = WebhookAddress(f"http://localhost:{port}/", SECRET)
        assert (await way.post(to, "msg_1", NOW, b"{}")).result is DeliveryResult.DONE
        for other in (f"http://127.0.0.1:{port}/", "http://localhost:1/", "https://localhost:1/"):
            done = await way.post(WebhookAddress(other, SECRET), "msg_1", NOW, b"{}")
            assert done.result is DeliveryResult.REFUSED
    assert len(receiver.got) == 1


async def test_a_proxy_is_asked_and_not_for_what_leads_to_this_machine(
    receiver: Receiver,
) -> None:
    proxies = {"HTTPS_PROXY": f"http://{receiver.host}", "HTTP_PROXY": f"http://{receiver.host}"}
    async with delivery("http://plain.example", proxies=proxies) as way:
        to = WebhookAddress("http://plain.example/hook", SECRET)
        assert (await way.post(to, "msg_1", NOW, b"{}")).result is DeliveryResult.DONE
        assert receiver.got[0][0].raw_path == "http://plain.example/hook"
        to = WebhookAddress("https://0x7f.1/hook", SECRET)
        assert (await way.post(to, "msg_1", NOW, b"{}")).words == "its address is not public"
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    ("p256dh", "auth"),
    [("", ""), ("A" * 87, "a" * 22), ("?", "?"), (POINT, "YQ")],
)
async def test_keys_that_no_browser_has_are_refused(p256dh: str, auth: str) -> None:
    async with delivery() as way:
        with pytest.raises(InvalidRequestError, match="keys"):
            way.check(PushAddress("https://push.example/", p256dh, auth))


def test_public_is_what_leads_to_the_internet_alone() -> None:
    assert all(map(is_public, ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"]))
    assert not is_public("2001:0:4136:e378:8000:63bf:3fff:fdd2")  # Teredo: it leads to others


async def test_the_seconds_of_what_waits_for_others_begin_with_its_turn(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_MOST_AT_ONCE", 1)
    monkeypatch.setattr(http, "TOTAL_SECONDS", 0.5)
    never = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        await never.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1")
    dead = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with delivery(f"http://{receiver.host}", f"http://{dead}") as one, server:
        to_dead, to_living = (
            WebhookAddress(f"http://{host}/", SECRET) for host in (dead, receiver.host)
        )
        first, second = await asyncio.gather(
            one.post(to_dead, "m1", NOW, b"{}"), one.post(to_living, "m2", NOW, b"{}")
        )
        never.set()
    assert first.words == "it did not answer in time"
    assert second.result is DeliveryResult.DONE


async def test_names_that_nobody_answers_for_hold_no_other_one_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, real = threading.Event(), socket.getaddrinfo

    def silent(host: str, *asked: Any) -> Any:
        if host.endswith(".dead.example"):
            answers.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real("127.0.0.1", *asked)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    async with delivery() as one, asyncio.timeout(20):
        waiting = [
            asyncio.create_task(
                one.post(WebhookAddress(f"https://h{n}.dead.example/", SECRET), "m", NOW, b"{}"),
                name="dead",
            )
            for n in range(16)
        ]
        await asyncio.sleep(0)
        told = await one.post(WebhookAddress("https://there.example/", SECRET), "m", NOW, b"{}")
        assert told.words == "its address is not public"
        answers.set()
        await asyncio.gather(*waiting)
