"""TLS towards the API server."""

import base64
import binascii
import ssl
import tempfile
from pathlib import Path

import aiohttp


def pem_of(raw: bytes) -> str | None:
    """Return ``raw`` as PEM, ``None`` when it is something else."""
    # Between the blocks there may be remarks in any language, which OpenSSL passes over.
    text = raw.decode("ascii", "ignore")
    return text if "-----BEGIN" in text else None


def pem_of_base64(text: str) -> str | None:
    """Return the PEM that ``text`` holds in base64 (line breaks allowed), ``None`` for none."""
    try:
        return pem_of(base64.b64decode("".join(text.split()), validate=True))
    except (binascii.Error, ValueError):
        return None


def client_context(ca: str | None, *, verify: bool = True) -> ssl.SSLContext:
    """Return a context that trusts ``ca`` (PEM), or the system's authorities when it is ``None``.

    Raises ``ValueError`` or ``ssl.SSLError`` when ``ca`` holds no certificate.
    """
    context = ssl.create_default_context(cadata=ca)
    # Python 3.13 began to demand extensions that the authorities of many clusters lack.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def load_identity(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Make new connections of ``context`` show this client certificate (PEM, as is the key).

    Raises ``ssl.SSLError`` when the two are not a pair, or the key is locked by a password.
    """
    # OpenSSL takes them from files only; these are ours alone and gone at once.
    with tempfile.TemporaryDirectory(prefix="greylag-") as folder:
        certificate_file, key_file = Path(folder, "crt"), Path(folder, "key")
        certificate_file.write_text(certificate)
        key_file.write_text(key)
        # Without `password` OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate_file, key_file, password="")


def why_refused(error: aiohttp.ClientSSLError) -> str:
    """Return OpenSSL's words for what is wrong with the other side."""
    own = error.os_error
    if isinstance(own, ssl.SSLCertVerificationError):
        return own.verify_message.rstrip(".")
    return str(getattr(own, "reason", None) or own.strerror or "no TLS").replace("_", " ").lower()


def is_other_name(error: aiohttp.ClientSSLError) -> bool:
    """Tell whether the certificate is sound, but that of another name or address."""
    return getattr(error.os_error, "verify_code", 0) in _OTHER_NAME


# X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH
_OTHER_NAME = frozenset({62, 64})
