"""Below GREYLAG_ROOT_PATH; the same behind a real proxy: tests/browser/test_behind_nginx.py."""

import re

import pytest
from tests.harness import TOKEN, settings
from tests.web.server import site

from greylag.config import OWN_PATHS, load_settings
from greylag.domain.errors import ConfigError
from greylag.web import oidc
from greylag.web.addresses import STATIC
from greylag.web.audit import AUDIT_PAGE
from greylag.web.auth import COOKIE, SIGN_IN, SIGN_OUT
from greylag.web.dashboard.pages import USER_PAGE

ROOT = "/tools/greylag"


@pytest.mark.parametrize(
    "value", ["greylag", "//x", "/a/../b", "/.", "/a b", "/a%20b", "https://x/y", "/a?b", "/\u00e4"]
)
def test_a_root_path_that_is_no_path_is_refused_in_words(value: str) -> None:
    with pytest.raises(ConfigError, match=r"GREYLAG_ROOT_PATH: must be a path such as /tools"):
        load_settings(root_path=value)


@pytest.mark.parametrize("own", sorted(OWN_PATHS))
def test_a_root_path_that_begins_as_a_path_of_ours_is_refused(own: str) -> None:
    with pytest.raises(ConfigError, match=f"must not begin with /{own}"):
        load_settings(root_path=f"/{own}/more")
    assert load_settings(root_path=f"/x/{own}/").root_path == f"/x/{own}"


async def test_the_first_parts_of_all_our_paths_are_known() -> None:
    async with site() as one, one.http.get("/openapi.json") as answer:
        told = [path.split("/")[1] for path in (await answer.json())["paths"]]
    pages = (USER_PAGE, AUDIT_PAGE, SIGN_IN, SIGN_OUT, *oidc.PATHS, oidc.DEVICE_PAGE, STATIC)
    pages = (*pages, "/openapi.json")
    assert {*told, *(path.split("/")[1] for path in pages)} == OWN_PATHS


@pytest.mark.parametrize("sent_below", [ROOT, ""], ids=["kept", "taken off"])
async def test_every_link_and_cookie_is_below_it(sent_below: str) -> None:
    given = settings(root_path=ROOT, trusted_proxies="127.0.0.1")
    async with site(given, signed_in=False) as running:
        page = {"accept": "text/html"}
        http = running.http
        for asked in ("/", "", "/users/ada") if sent_below else ("/", "/users/ada"):
            async with http.get(sent_below + asked, headers=page, allow_redirects=False) as answer:
                assert answer.status == 303
                assert answer.headers["location"].startswith(f"{ROOT}/sign-in?next=%2F")
        async with http.get(sent_below + "/users/ada", headers={"hx-request": "true"}) as answer:
            assert answer.headers["hx-redirect"] == f"{ROOT}/sign-in"
        value = ""
        for headers, name in (({}, COOKIE), ({"x-forwarded-proto": "https"}, f"__Secure-{COOKIE}")):
            async with http.post(
                sent_below + "/sign-in",
                data={"token": TOKEN, "next": "/users/ada"},
                headers=headers,
                allow_redirects=False,
            ) as answer:
                assert answer.headers["location"] == f"{ROOT}/users/ada"
                cookie = answer.cookies[name]
            value = cookie.value
            assert (cookie["path"], bool(cookie["secure"])) == (ROOT, bool(headers))
        named = {"cookie": f"__Secure-{COOKIE}={value}", "x-forwarded-proto": "https", **page}
        async with http.post(
            sent_below + "/users/ada/new-project",
            data={"name": "N", "project_id": "n"},
            headers=named | {"hx-request": "true"},
        ) as answer:
            assert answer.headers["hx-redirect"] == f"{ROOT}/users/ada/projects/n"
        for asked in ("/users/ada", "/users/ada/projects/n", "/nowhere"):
            async with http.get(sent_below + asked, headers=named) as answer:
                links = re.findall(
                    r'(?:src|href|action|data-\w+|hx-get|hx-post)="(/[^"]*)"', await answer.text()
                )
            assert len(links) >= 5
            assert [one for one in links if not one.startswith(f"{ROOT}/")] == []
