"""An OpenID Connect provider over HTTP: where its parts are, its keys, codes and tokens.

The provider is trusted with who people are, and with nothing else: each answer has a deadline and a
size, no redirect is followed, and what is not https is asked on loopback only. Tokens are verified
by joserfc; what they must say is checked here.
"""

import asyncio
import base64
import hashlib
import ssl
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote_plus
from warnings import catch_warnings, simplefilter

import aiohttp
import structlog
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError, SecurityWarning
from joserfc.jwk import KeySet, import_key
from joserfc.jws import JWSRegistry
from joserfc.jwt import ClaimsOption, JWTClaimsRegistry
from yarl import URL

from greylag.common.net import beginning, is_confidential, proxy_for
from greylag.common.typed import parse_json, shaped
from greylag.domain.errors import IdentityProviderUnavailableError, SignInFailedError
from greylag.ports import AuthorizationRequest, Clock, ProviderClaims, ProviderSignOut

T = TypeVar("T")

_log = structlog.get_logger(__name__)

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
ANSWER_LIMIT = 1_048_576
LEEWAY_SECONDS = 60
"""How far the provider's clock and ours may be apart."""
FRESH_SECONDS = 3600.0
"""How long what the provider says of itself, its keys too, is taken for true."""
ROTATION_SECONDS = 60.0
"""Keys are asked for anew, for a token by a key that we do not know, no more often than this."""
LOGOUT_TOKEN_SECONDS = 600
ALGORITHMS = frozenset(f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512))
"""None of them takes a secret of both sides, for which a public key could be mistaken."""

_DISCOVERY = "/.well-known/openid-configuration"
_SIGN_OUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
_LONGEST_WORDS = 300
_REDIRECT, _REFUSAL, _FAULT = 300, 400, 500


@dataclass(frozen=True, slots=True)
class OidcOptions:
    """Which provider, and as whom we are known there.

    Attributes:
        issuer: its identifier, an address, exactly as it says itself.
        client_secret: None: we are a public client, and PKCE alone protects the code.
        authorities: certificates (PEM) that are trusted in place of the system's; "": those.
        proxies: the usual variables that name the way out.
    """

    issuer: str
    name: str
    client_id: str
    client_secret: str | None = field(default=None, repr=False)
    scopes: str = "openid profile email"
    authorities: str = field(default="", repr=False)
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class _Metadata:
    """What the provider says of itself (OpenID Connect Discovery 1.0), as far as we need it."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    end_session_endpoint: str | None = None
    token_endpoint_auth_methods_supported: Sequence[str] = ("client_secret_basic",)
    id_token_signing_alg_values_supported: Sequence[str] = ("RS256",)
    authorization_response_iss_parameter_supported: bool = False

    def addresses(self) -> list[str]:
        """Return every address that it names."""
        named = (
            self.authorization_endpoint,
            self.token_endpoint,
            self.jwks_uri,
            self.userinfo_endpoint,
            self.end_session_endpoint,
        )
        return [one for one in named if one is not None]


class OidcProvider:
    """Implements ``greylag.ports.IdentityProvider``; it is made on the running loop. Nothing is
    asked before somebody signs in.
    """

    def __init__(self, options: OidcOptions, clock: Clock) -> None:
        self.issuer = options.issuer
        self.name = options.name
        self._options = options
        self._clock = clock
        self._metadata = _CachedDocument(clock, self._ask_metadata)
        self._keys = _CachedDocument(clock, self._ask_keys)
        trusted = ssl.create_default_context(cadata=options.authorities or None)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trusted),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            # What is compressed has no size that could be told before it is read.
            auto_decompress=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def authorization_url(self, request: AuthorizationRequest) -> str:
        """Return where the browser is to go to sign in."""
        metadata = await self._known()
        digest = hashlib.sha256(request.verifier.encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": self._options.client_id,
            "redirect_uri": request.redirect_uri,
            "scope": self._options.scopes,
            "state": request.state,
            "nonce": request.nonce,
            "code_challenge": _base64url(digest),
            "code_challenge_method": "S256",
        }
        return str(URL(metadata.authorization_endpoint).update_query(asked))

    async def redeem(
        self,
        answer: Mapping[str, str],
        request: AuthorizationRequest,
        wanted: Collection[str],
    ) -> ProviderClaims:
        """Return who has signed in, by the answer that the browser brought back."""
        metadata = await self._known()
        code = self._code_in(answer, metadata)
        tokens = await self._exchange(code, request, metadata)
        id_token, access_token = tokens.get("id_token"), tokens.get("access_token")
        if not isinstance(id_token, str):
            raise self._unavailable("its answer to a code holds no ID token")
        verified = await self._verified(id_token, metadata)
        claims = verified.claims
        self._check(claims, exp={"essential": True}, nonce=_exactly(request.nonce))
        self._check_party(claims)
        lacking = any(name not in claims for name in wanted)
        if isinstance(access_token, str) and access_token:
            _check_access_token(access_token, claims, str(verified.header["alg"]))
            if lacking and metadata.userinfo_endpoint is not None:
                told = await self._userinfo(metadata.userinfo_endpoint, access_token, claims)
                claims = {**told, **claims}
        return ProviderClaims(claims, id_token)

    async def sign_out_url(self, back_to: str, id_token: str | None) -> str | None:
        """Return where the browser is to go to sign out there too."""
        metadata = await self._known()
        if metadata.end_session_endpoint is None:
            return None
        asked = {"client_id": self._options.client_id, "post_logout_redirect_uri": back_to}
        hint = {"id_token_hint": id_token} if id_token else {}
        return str(URL(metadata.end_session_endpoint).update_query({**asked, **hint}))

    async def read_sign_out(self, logout_token: str) -> ProviderSignOut:
        """Return whose sign-out the provider tells of (Back-Channel Logout 1.0, section 2.6)."""
        claims = (await self._verified(logout_token, await self._known())).claims
        self._check(claims, jti={"essential": True})
        events, session = claims.get("events"), claims.get("sid")
        age = self._clock.now().timestamp() - claims["iat"]
        if not isinstance(events, Mapping) or not isinstance(events.get(_SIGN_OUT_EVENT), Mapping):
            raise SignInFailedError("The token tells of no sign-out.")
        if "nonce" in claims or age > LOGOUT_TOKEN_SECONDS + LEEWAY_SECONDS:
            raise SignInFailedError("The token is of a sign-in, or too old.")
        subject = claims.get("sub")
        if subject is None and not isinstance(session, str):
            raise SignInFailedError("The token does not say who has signed out.")
        return ProviderSignOut(subject, session if isinstance(session, str) else None)

    # What the provider says of itself, and its keys.

    async def _known(self) -> _Metadata:
        return await self._metadata.get(FRESH_SECONDS)

    async def _ask_metadata(self) -> _Metadata:
        said = await self._said(self.issuer.rstrip("/") + _DISCOVERY)
        if said.get("issuer") != self.issuer:
            raise self._unavailable(
                f"it calls itself {str(said.get('issuer'))[:_LONGEST_WORDS]!r}, and not what "
                "GREYLAG_OIDC_ISSUER says"
            )
        try:
            # A member that is null is one that is not there.
            metadata = shaped(_Metadata, {key: one for key, one in said.items() if one is not None})
        except TypeError as error:
            raise self._unavailable(f"what it says of itself is incomplete: {error}") from error
        for address in metadata.addresses():
            if not is_confidential(address):
                raise self._unavailable(f"it names an address that is not https: {address!r:.100}")
        return metadata

    async def _ask_keys(self) -> KeySet:
        said = (await self._said((await self._known()).jwks_uri)).get("keys")
        keys = []
        for one in said if isinstance(said, list) else ():
            # One that is not understood is passed over (RFC 7517, section 5), and so is a weak one.
            with suppress(JoseError, ValueError, TypeError, SecurityWarning), catch_warnings():
                simplefilter("error", SecurityWarning)
                keys.append(import_key(one))
        if not keys:
            raise self._unavailable("none of its keys can be read")
        return KeySet(keys)

    # Codes and tokens.

    def _code_in(self, answer: Mapping[str, str], metadata: _Metadata) -> str:
        """Return the code of an authorization response.

        Raises:
            SignInFailedError: it is another provider's, or tells of an error.
        """
        required = metadata.authorization_response_iss_parameter_supported
        issuer = answer.get("iss", None if required else self.issuer)
        if issuer != self.issuer:
            raise SignInFailedError(f"The answer is not one of {self.name}.")
        if "code" not in answer:
            words = answer.get("error_description") or answer.get("error") or "it gave no code"
            raise SignInFailedError(f"{self.name} says: {words[:_LONGEST_WORDS]}")
        return answer["code"]

    async def _exchange(
        self, code: str, request: AuthorizationRequest, metadata: _Metadata
    ) -> Mapping[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": request.redirect_uri,
            "code_verifier": request.verifier,
        }
        client_id, secret = self._options.client_id, self._options.client_secret
        headers = {}
        methods = metadata.token_endpoint_auth_methods_supported
        if secret is not None and "client_secret_basic" in methods:
            # Encoded as forms are first (RFC 6749, section 2.3.1).
            pair = f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        else:
            form["client_id"] = client_id
            if secret is not None:
                form["client_secret"] = secret
        status, said = await self._ask("POST", metadata.token_endpoint, headers, form)
        if status >= _REFUSAL:
            words = str(said.get("error_description") or said.get("error") or status)
            _log.warning("code_refused", status=status, reason=words[:_LONGEST_WORDS])
            raise SignInFailedError(f"{self.name} has refused the code of this sign-in.")
        return said

    async def _verified(self, token: str, metadata: _Metadata) -> jwt.Token:
        """Return a token whose signature is the provider's.

        Raises:
            SignInFailedError: it is not.
        """
        allowed = ALGORITHMS.intersection(metadata.id_token_signing_alg_values_supported)
        if not allowed:
            raise self._unavailable("it signs by no algorithm that is taken here")
        registry = JWSRegistry(algorithms=allowed, strict_check_header=False)
        try:
            try:
                return jwt.decode(token, await self._keys.get(FRESH_SECONDS), registry=registry)
            except InvalidKeyIdError:
                return jwt.decode(token, await self._keys.get(ROTATION_SECONDS), registry=registry)
        except (JoseError, ValueError, TypeError) as error:
            raise self._disbelieved(error) from error

    def _check(self, claims: Mapping[str, Any], **more: ClaimsOption) -> None:
        """Check what every token must say: by whom it is, for us, and when."""
        options: dict[str, ClaimsOption] = {
            "iss": _exactly(self.issuer),
            "aud": _exactly(self._options.client_id),
            "iat": {"essential": True},
        }
        now = int(self._clock.now().timestamp())
        try:
            JWTClaimsRegistry(now, LEEWAY_SECONDS, **{**options, **more}).validate(dict(claims))
        except JoseError as error:
            raise self._disbelieved(error) from error

    def _check_party(self, claims: Mapping[str, Any]) -> None:
        """Check for whom an ID token was issued, and that it names a person."""
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        party = claims.get("azp", None if several else self._options.client_id)
        subject = claims.get("sub")
        if party != self._options.client_id or not isinstance(subject, str) or not subject:
            raise self._disbelieved(ValueError("azp or sub"))

    async def _userinfo(
        self, address: str, access_token: str, claims: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        told = await self._said(address, {"Authorization": f"Bearer {access_token}"})
        if told.get("sub") != claims["sub"]:
            raise self._disbelieved(ValueError("the userinfo is another person's"))
        return told

    async def _said(
        self, address: str, headers: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        status, said = await self._ask("GET", address, headers or {})
        if status >= _REFUSAL:
            raise self._unavailable(f"{URL(address).path} answers {status}")
        return said

    async def _ask(
        self,
        method: str,
        address: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, Any]]:
        """Return status and JSON object of an answer.

        Raises:
            IdentityProviderUnavailableError: there is none, or it is not of this form.
        """
        proxy = proxy_for(address, self._options.proxies)
        try:
            async with self._session.request(
                method,
                URL(address),
                headers=headers,
                data=form,
                allow_redirects=False,
                proxy=None if proxy is None else proxy.url,
                proxy_headers=None if proxy is None else proxy.auth_header(),
            ) as answer:
                status, body = answer.status, await beginning(answer.content, ANSWER_LIMIT + 1)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            reason = f"{type(error).__name__} {error}".strip()
            raise self._unavailable(reason[:_LONGEST_WORDS]) from error
        if len(body) > ANSWER_LIMIT:
            raise self._unavailable(f"an answer of more than {ANSWER_LIMIT} bytes")
        said = _object(body)
        if said is None or _REDIRECT <= status < _REFUSAL or status >= _FAULT:
            raise self._unavailable(f"{URL(address).path} answers {status}, or no JSON")
        return status, said

    def _unavailable(self, reason: str) -> IdentityProviderUnavailableError:
        return IdentityProviderUnavailableError(
            f"{self.name} does not answer as it must, so nobody can sign in there now.", reason
        )

    def _disbelieved(self, error: Exception) -> SignInFailedError:
        _log.warning("token_refused", reason=str(error)[:_LONGEST_WORDS])
        return SignInFailedError(f"What {self.name} has answered cannot be believed.")


def _exactly(value: str) -> ClaimsOption:
    return {"essential": True, "value": value}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _check_access_token(access_token: str, claims: Mapping[str, Any], algorithm: str) -> None:
    """Check that an access token came with the ID token, where that says so (``at_hash``)."""
    digest = hashlib.new(f"sha{algorithm[-3:]}", access_token.encode()).digest()
    if claims.get("at_hash", half := _base64url(digest[: len(digest) // 2])) != half:
        raise SignInFailedError("The access token is not the one that the ID token names.")


class _CachedDocument(Generic[T]):
    """A document of the provider's. All who need it while it is asked for share one answer."""

    def __init__(self, clock: Clock, ask: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._clock = clock
        self._ask = ask
        self._held: tuple[float, T] | None = None
        self._asking: asyncio.Task[T] | None = None

    async def get(self, older_than: float) -> T:
        """Return the document, asked for anew if it is as old as that, in seconds."""
        if self._held is not None and self._clock.monotonic() - self._held[0] < older_than:
            return self._held[1]
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_anew(), name="identity-provider")
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)

    async def _ask_anew(self) -> T:
        document = await self._ask()
        self._held = self._clock.monotonic(), document
        return document

    def _asked(self, asking: asyncio.Task[T]) -> None:
        self._asking = None
        if not asking.cancelled():
            asking.exception()  # whoever waited has been told; there may be nobody


def _object(body: bytes) -> Mapping[str, Any] | None:
    try:
        said = parse_json(body)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None
