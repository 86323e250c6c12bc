import pytest
from tests.browser.person import chromium


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name != "browser":
            continue
        item.add_marker("browser")
        if chromium() is None:
            reason = "NO BROWSER WAS TESTED: install Chromium or set GREYLAG_TEST_CHROMIUM"
            item.add_marker(pytest.mark.skip(reason=reason))
