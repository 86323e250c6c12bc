"""docs/kubernetes-errors.md names each of the adapter's codes, with the status of the API."""

import re
from pathlib import Path

import greylag.cluster.kubernetes
from greylag.cluster.kubernetes.failures import CAUSES
from greylag.web.errors import STATUS

ROOT = Path(__file__).parents[2]
CODE = re.compile(r'(?:ErrorInfo\(\s*|\bcode=)"([a-z_]+)"')
ROW = re.compile(r"^\| `([a-z_]+)` \| (\d{3}) \|", re.MULTILINE)
ELSE = 502


def test_the_table_names_every_code_with_its_status() -> None:
    (folder,) = greylag.cluster.kubernetes.__path__
    known = {
        code for file in Path(folder).glob("*.py") for code in CODE.findall(file.read_text("utf-8"))
    }
    known |= CAUSES.keys()
    told = dict(ROW.findall((ROOT / "docs" / "kubernetes-errors.md").read_text("utf-8")))
    assert known <= told.keys()
    wrong = {code for code, status in told.items() if STATUS.get(code, ELSE) != int(status)}
    assert not wrong
