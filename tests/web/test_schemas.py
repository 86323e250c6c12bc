"""What the bodies of requests may hold."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from greylag.web.schemas import PreviewIn


@pytest.mark.parametrize(
    ("written", "taken"), [("60", 60), ("60.0", 60), ("1e2", 100), ("null", None)]
)
def test_a_whole_number_is_taken_as_json_schema_has_it(written: str, taken: int | None) -> None:
    body = PreviewIn.model_validate_json(f'{{"share_seconds": {written}}}')
    assert body.share_seconds == taken


@pytest.mark.parametrize("other", [True, "60", 60.5, 59, 2_592_001, [60]])
def test_what_is_no_whole_number_within_the_bounds_is_refused(other: Any) -> None:
    with pytest.raises(ValidationError):
        PreviewIn.model_validate_json(json.dumps({"share_seconds": other}))
