"""What push services and browsers want of a message: that it is encrypted for the browser alone
(RFC 8291), and comes with the word of the server that the browser has let in (VAPID, RFC 8292).
"""

import base64
import os
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from greylag.ports import PushAddress

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

# What is imported inside functions takes a fifth of a second, and few ever need it.

_AUTH_BYTES = 16
_POINT_BYTES = 65
_RECORD_SIZE = 4096
_WORD_LASTS = timedelta(hours=12)
_LAST_RECORD = b"\x02"


def new_key() -> str:
    """Return a new private key of P-256, as PEM."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


def public_key(key: str) -> str:
    """Return what browsers are told of a private key: its point, base64url."""
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    loaded = load_pem_private_key(key.encode(), None)
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise TypeError("a key for pushes is one of P-256")
    return encoded(_point(loaded))


def check(address: PushAddress) -> None:
    """Raise ``ValueError`` unless something can be encrypted for the keys of an address."""
    encrypted(address, b"")


def encrypted(
    to: PushAddress,
    message: bytes,
    *,
    salt: bytes | None = None,
    sender: "EllipticCurvePrivateKey | None" = None,
) -> bytes:
    """Return a message as only the browser can read it (aes128gcm, one record).

    Args:
        to: the browser's keys.
        message: at most as long as one record takes.
        salt: 16 bytes; None: new ones.
        sender: a key for this message alone; None: a new one.

    Raises:
        ValueError: the keys are none.
    """
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    def derived(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
        return HKDF(hashes.SHA256(), length, salt, info).derive(secret)

    point, auth = decoded(to.p256dh, _POINT_BYTES), decoded(to.auth, _AUTH_BYTES)
    browser = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    sender = sender or ec.generate_private_key(ec.SECP256R1())
    salt = salt or os.urandom(_AUTH_BYTES)
    ours = _point(sender)
    shared = sender.exchange(ec.ECDH(), browser)
    secret = derived(shared, auth, b"WebPush: info\0" + point + ours, 32)
    key = derived(secret, salt, b"Content-Encoding: aes128gcm\0", 16)
    nonce = derived(secret, salt, b"Content-Encoding: nonce\0", 12)
    header = salt + _RECORD_SIZE.to_bytes(4, "big") + bytes([len(ours)]) + ours
    return header + AESGCM(key).encrypt(nonce, message + _LAST_RECORD, None)


def authorization(key: str, origin: str, contact: str, now: datetime) -> str:
    """Return the header by which the push service at ``origin`` knows us."""
    from joserfc import jwt  # noqa: PLC0415
    from joserfc.jwk import ECKey  # noqa: PLC0415

    claims = {"aud": origin, "exp": int((now + _WORD_LASTS).timestamp()), "sub": contact}
    word = jwt.encode({"typ": "JWT", "alg": "ES256"}, claims, ECKey.import_key(key))
    return f"vapid t={word}, k={public_key(key)}"


def encoded(value: bytes) -> str:
    """Return bytes as base64url without padding."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def decoded(text: str, length: int) -> bytes:
    """Return what base64url, padded or not, says.

    Raises:
        ValueError: it says nothing, or not so many bytes.
    """
    try:
        plain = text.rstrip("=").translate(str.maketrans("-_", "+/"))
        value = base64.b64decode(f"{plain}{'=' * (-len(plain) % 4)}", validate=True)
    except ValueError as error:
        raise ValueError("it is not base64url") from error
    if len(value) != length:
        raise ValueError(f"it has {len(value)} bytes, not {length}")
    return value


def _point(key: "EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    return key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
