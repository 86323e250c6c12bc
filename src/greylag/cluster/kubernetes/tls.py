"""TLS towards the API server."""

import ssl
import tempfile
from pathlib import Path


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
