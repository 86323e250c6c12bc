"""Fair claims in SQLite: each question goes by an index, however many projects are due."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.contract.store_adapters import at, make_project

from greylag.domain.project import Lease
from greylag.store.sqlite import queries, schema


@pytest.fixture
def sql() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        opened.row_factory = sqlite3.Row
        schema.migrate(opened)
        yield opened


def explained(sql: sqlite3.Connection) -> list[str]:
    asked: list[str] = []
    sql.set_trace_callback(asked.append)
    queries.next_claimable(sql, at(1))
    sql.set_trace_callback(None)
    selects = [one for one in asked if one.startswith("SELECT")]
    return [row["detail"] for one in selects for row in sql.execute(f"EXPLAIN QUERY PLAN {one}")]


def index_of(step: str) -> str:
    found = re.fullmatch(r"SEARCH projects USING (?:COVERING )?INDEX (\w+) \(.*\)", step)
    return found[1] if found else step


def test_each_step_of_a_claim_goes_by_an_index_and_sorts_nothing(sql: sqlite3.Connection) -> None:
    queries.insert(sql, make_project("at-work", lease=Lease("w", 1, at(9))), None)
    queries.insert(sql, make_project("due", due_at=at(0)), None)
    # What newer SQLites put before the list of those at work reads that list alone.
    aside = ("LIST SUBQUERY", "CREATE BLOOM FILTER")
    steps = [step for step in explained(sql) if not step.startswith(aside)]
    assert [index_of(step) for step in steps] == [
        "projects_claimable",
        "projects_leased",
        "projects_claimable",
        "projects_leased",
        "projects_claimable_by_user",
        "sqlite_autoindex_projects_1",
    ]


def test_the_first_of_the_idle_is_found_without_reading_the_rows_before_it(
    sql: sqlite3.Connection,
) -> None:
    queries.insert(sql, make_project("at-work", lease=Lease("w", 1, at(9))), None)
    with sql:
        for n in range(3000):
            queries.insert(sql, make_project(f"p{n}", due_at=at(0)), None)
    queries.insert(sql, make_project("one", "bob", due_at=at(0.5)), None)
    sql.execute("ANALYZE")
    assert explained(sql)[0].startswith("SEARCH projects USING INDEX projects_claimable (")
    found = queries.next_claimable(sql, at(1))
    assert found is not None
    assert found["user_id"] == "bob"
