"""What the informers keep of objects is all that anyone asks of them.

The objects in golden/captured.json were read from a real cluster by capture.py, environment by
environment in the state that names it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from tests.contract.store_adapters import make_project

from greylag.cluster.kubernetes.diagnosis import EnvironmentObjects, is_ready, wants_pod
from greylag.cluster.kubernetes.identity import (
    CLAIM_ANNOTATION,
    FINGERPRINT,
    annotation_of,
    fingerprint,
    is_edited,
    ref_of,
)
from greylag.cluster.kubernetes.informer import trim
from greylag.cluster.kubernetes.isolation import shared_objects
from greylag.cluster.kubernetes.locator import endpoint_of
from greylag.cluster.kubernetes.manifests import project_objects
from greylag.cluster.kubernetes.observation import observed
from greylag.cluster.kubernetes.options import Options
from greylag.cluster.kubernetes.writes import fence_of, is_as_wanted, is_being_removed, stamp

CAPTURED = json.loads(Path(__file__).with_name("golden").joinpath("captured.json").read_text())
OPTIONS = Options(
    image="goose-api-server:1", cluster_cidrs=("10.0.0.0/8",), ingress_base_domain="example.org"
)
PROJECT = make_project()
Path_ = tuple[str | int, ...]
Made = Callable[[str, dict[str, Any]], Any]


class Noted(Mapping[str, Any]):
    """An object that notes each of its fields that is read."""

    def __init__(self, of: Mapping[str, Any], read: set[Path_], at: Path_) -> None:
        self._of, self._read, self._at = of, read, at

    def __getitem__(self, key: str) -> Any:
        found = self._of.get(key)
        if not isinstance(found, dict | list):
            self._read.add((*self._at, key))
        if key not in self._of:
            raise KeyError(key)
        return noted(found, self._read, (*self._at, key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


def noted(found: Any, read: set[Path_], at: Path_) -> Any:
    if isinstance(found, dict):
        return Noted(found, read, at)
    if isinstance(found, list):
        return [noted(one, read, (*at, index)) for index, one in enumerate(found)]
    return found


def at(thing: Any, path: Path_) -> Any:
    for key in path:
        thing = thing[key] if isinstance(key, int) else (thing or {}).get(key)
    return thing


def whole(captured: Mapping[str, Any], make: Made) -> EnvironmentObjects:
    """Return a captured environment, of objects as ``make`` has them."""

    def one(kind: str) -> Any:
        return next((make(kind, found) for found in captured[kind]), None)

    return EnvironmentObjects(
        deployment=one("Deployment"),
        pods=[make("Pod", found) for found in captured["Pod"]],
        claim=one("PersistentVolumeClaim"),
        service=one("Service"),
        endpoint="http://known",
        events=captured["Event"],
        last_words="words",
    )


def looked_at(found: EnvironmentObjects, others: Mapping[str, list[Any]]) -> list[Any]:
    """Return what everything that looks at watched objects makes of these."""
    environment = PROJECT.environment
    things = [found.deployment, *found.pods, found.claim, found.service]
    told: list[Any] = [
        observed(found),
        found.needs_events,
        found.waits,
        found.crashed,
        found.is_idle,
        found.failed_itself,
        fence_of(found.deployment),
        endpoint_of(environment, OPTIONS, found.service),
        [is_ready(one) for one in found.pods],
        [ref_of(one) for one in things if one is not None],
    ]
    if found.deployment is not None:
        told += [wants_pod(found.deployment), annotation_of(found.deployment, CLAIM_ANNOTATION)]
        told += [stamp(environment, found.deployment), is_being_removed(found.deployment)]
    # What applying asks of what it may leave as it is.
    applied = {**others, "Service": [found.service], "PersistentVolumeClaim": [found.claim]}
    manifests = project_objects(environment, OPTIONS, {}, token="t", replicas=1)
    for wanted in (*shared_objects(environment, OPTIONS), *manifests):
        if "spec" in wanted:
            spec = {"kind": wanted["kind"], "spec": wanted["spec"]}
            told += [is_as_wanted(spec, one) for one in applied.get(wanted["kind"], ())]
    # What removing and the cache ask of each.
    for one in (*things, *chain.from_iterable(others.values())):
        meta = {} if one is None else one["metadata"]
        labels = dict(meta.get("labels") or {})
        told.append([meta.get("uid"), meta.get("deletionTimestamp"), labels])
    return told


def others_of(captured: Mapping[str, Any], make: Made) -> dict[str, list[Any]]:
    kinds = ("Namespace", "NetworkPolicy", "Ingress")
    return {kind: [make(kind, one) for one in captured[kind]] for kind in kinds}


def removed(captured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same while all is being removed and something holds that up."""
    going = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a.test/hold"]}
    changed = json.loads(json.dumps(captured))
    for things in changed.values():
        for thing in things:
            thing["metadata"] |= going
    return dict(changed)


def stopped(captured: Mapping[str, Any]) -> dict[str, Any]:
    changed = json.loads(json.dumps(captured))
    for deployment in changed["Deployment"]:
        deployment["spec"]["replicas"] = 0
    return dict(changed)


@pytest.mark.parametrize("turned", [dict, removed, stopped])
@pytest.mark.parametrize("state", CAPTURED)
def test_trimmed_objects_tell_the_same_and_keep_each_field_that_is_read(
    state: str, turned: Callable[[Any], dict[str, Any]]
) -> None:
    captured = turned(CAPTURED[state]["objects"])
    reads: list[tuple[str, dict[str, Any], set[Path_]]] = []

    def note(kind: str, thing: dict[str, Any]) -> Any:
        reads.append((kind, thing, set()))
        return Noted(thing, reads[-1][2], ())

    of_full = looked_at(whole(captured, note), others_of(captured, note))
    of_kept = looked_at(whole(captured, trim), others_of(captured, trim))
    assert of_kept == of_full
    for kind, thing, paths in reads:
        paths.discard((FINGERPRINT,))  # what trimming itself adds
        kept = trim(kind, thing)
        lost = [path for path in paths if at(kept, path) != at(thing, path)]
        assert not lost, f"{kind} lost {lost}"


def test_the_captured_states_are_told_as_what_they_are() -> None:
    for state, captured in CAPTURED.items():
        seen = observed(whole(captured["objects"], trim))
        code = "ready" if seen.error is None else seen.error.code
        assert code == state


@pytest.mark.parametrize("state", CAPTURED)
def test_as_they_were_applied_no_captured_object_counts_as_edited(state: str) -> None:
    for kind, things in CAPTURED[state]["objects"].items():
        for thing in things:
            if fingerprint(kind, thing) is not None:
                assert not is_edited(trim(kind, thing))


def sizes(things: Sequence[tuple[str, dict[str, Any]]]) -> tuple[int, int]:
    full = sum(len(json.dumps(thing)) for _, thing in things)
    return full, sum(len(json.dumps(trim(kind, thing))) for kind, thing in things)


def test_trimming_leaves_the_greater_part_of_pods_and_deployments_out() -> None:
    things = [
        (kind, thing)
        for one in CAPTURED.values()
        for kind in ("Pod", "Deployment")
        for thing in one["objects"][kind]
    ]
    full, kept = sizes(things)
    assert kept < full / 2
