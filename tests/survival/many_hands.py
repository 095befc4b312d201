"""Many hands at one server: changes of the same tenant's timelines at the same time, and kills in between.

A primary is followed under the torture load. Hands, each a thread, ask over HTTP what the seed says, of branches that
all hands share: create, delete, archive, bring back, offload, name, flush, evict, read; one of them also detaches,
attaches and resets the tenant. The server is killed with -9 or stopped, and started again, while they go on.

What an answer says must hold, whatever else happens:

| answer | from then on |
|---|---|
| a branch was created | it is there, unless somebody asked to delete it |
| 404 to a deletion that was accepted | it is gone, and does not come back |
| archived, or brought back | that it stays, unless somebody asked for the other |
| a page at an LSN | always the same bytes, on each branch that inherits it |

Every request ends, within `_PATIENCE_SECONDS`, in an answer that the table `_ALLOWED` has for it. At the end all hands
rest, the model is compared with the server, before and after a restart and on another machine, `verify` is clean, and
the bucket is whole.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from pageserver.lsn import Lsn
from tests.survival.bucket import Bucket, each_seed
from tests.survival.follower import Follower, FollowerPlan, Say

_HANDS: Final = 4
_BRANCHES_MAX: Final = 8
_PATIENCE_SECONDS: Final = 120.0
_SERVER_ERRORS: Final = {
    "getpage": "could not find data for key",
    "create": "Cannot branch off the timeline that's not present",
}
"""What is said with a status of 500, where http-api.md wants that."""
_RETRY: Final = frozenset({408, 503})
_ALLOWED: Final = {
    "create": {201, 404, 406, 409, 412},
    "delete": {202, 404, 409, 412},
    "archive": {200, 404, 409, 412},
    "unarchive": {200, 404, 409, 412},
    "offload": {200, 404, 409, 412},
    "name": {200, 404, 409},
    "checkpoint": {200, 404, 409},
    "evict": {200, 304, 404, 412},
    "read": {200, 404},
    "getpage": {200, 404},
    "list": {200, 404},
    "detach": {200, 409},
    "attach": {200, 409},
    "reset": {200, 404, 409},
}


@dataclass(slots=True)
class _Branch:
    """What is known of a branch by answers alone."""

    lsn: Lsn
    was_created: bool = False
    deletions: int = 0
    """How many were asked for and not refused."""
    is_gone: bool = False
    archived: set[bool] = field(default_factory=lambda: {False})
    """What it may be: one value, if nothing is or was under way without an answer."""
    archival: threading.Lock = field(default_factory=threading.Lock)


class _Hands:
    """Asks, notes the answers, and remembers what they promise."""

    def __init__(self, follower: Follower, keys: list[str], seed: int) -> None:
        self._follower = follower
        self._keys = keys
        self._seed = seed
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self.branches: dict[str, _Branch] = {}
        self._pages: dict[tuple[str, str], bytes] = {}
        self.answers: Counter[str] = Counter()

    def __enter__(self) -> _Hands:
        self._create(random.Random(self._seed), self._follower.timeline)
        for number in range(_HANDS):
            thread = threading.Thread(target=self._run, args=(number,), name=f"hand {number}")
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        """Raise what a hand met."""
        if self._failure is not None:
            raise self._failure

    def _run(self, number: int) -> None:
        rng = random.Random(f"hand {self._seed} {number}")
        things = (
            ["create"] * 3 + ["delete"] * 2 + ["archive", "unarchive", "offload", "name", "checkpoint", "evict", "list"]
        )
        things += ["read"] * 4 + (["tenant"] if number == 0 else [])
        try:
            while not self._stop.is_set():
                self._do(rng, rng.choice(things))
                self._stop.wait(rng.uniform(0, 0.2))
        except BaseException as error:
            self._failure = self._failure or error

    # One request.

    def ask(self, what: str, method: str, path: str, **more: Any) -> httpx.Response | None:
        """Ask once. None if nobody answered. Raises AssertionError for an answer that must not be."""
        began = time.monotonic()
        try:
            answer = httpx.request(method, f"{self._follower.machine.url}{path}", timeout=_PATIENCE_SECONDS, **more)
        except httpx.TransportError as error:
            waited = time.monotonic() - began
            assert waited < _PATIENCE_SECONDS, f"{what} {path}: no answer in {waited:.0f} s: {error!r}"
            self._count(f"{what} unanswered")
            self._stop.wait(0.5)
            return None
        self._count(f"{what} {answer.status_code}")
        is_known = answer.status_code == 500 and _SERVER_ERRORS.get(what, "-") in answer.text
        is_known = is_known or answer.status_code in _ALLOWED[what] | _RETRY
        assert is_known, f"{what} {path}: {answer.status_code} {answer.text}"
        return answer

    def _count(self, what: str) -> None:
        with self._lock:
            self.answers[what] += 1

    @property
    def _tenant(self) -> str:
        return f"/v1/tenant/{self._follower.tenant}"

    def _path(self, timeline: str) -> str:
        return f"{self._tenant}/timeline/{timeline}"

    # What hands do.

    def _do(self, rng: random.Random, what: str) -> None:
        with self._lock:
            known = [timeline for timeline, branch in self.branches.items() if not branch.is_gone]
        branch = rng.choice(known) if known else None
        match what:
            case "create":
                if len(known) < _BRANCHES_MAX:
                    self._create(rng, rng.choice([self._follower.timeline, *known]))
            case "tenant":
                self._tenant_goes_and_comes(rng)
            case "list":
                self._list()
            case "checkpoint":
                self.ask(what, "PUT", f"{self._path(branch or self._follower.timeline)}/checkpoint")
            case "evict":
                self._evict(rng, branch or self._follower.timeline)
            case _ if branch is None:
                pass
            case "delete":
                self._delete(branch)
            case "archive" | "unarchive":
                self._set_archived(branch, what)
            case "offload":
                self.ask(what, "PUT", f"{self._path(branch)}/offload")
            case "name":
                body = {"timeline_id": branch}
                self.ask(what, "PUT", f"{self._tenant}/name/{rng.choice('abcd')}", json=body)
            case "read":
                self._read(rng, branch)

    def _list(self) -> None:
        with self._lock:
            gone = {timeline for timeline, branch in self.branches.items() if branch.is_gone}
        answer = self.ask("list", "GET", f"{self._tenant}/timeline_and_offloaded")
        if answer is not None and answer.status_code == 200:
            listed = answer.json()
            back = gone & {one["timeline_id"] for kind in ("timelines", "offloaded") for one in listed[kind]}
            assert not back, f"deleted, and here again: {back}"

    def _create(self, rng: random.Random, ancestor: str) -> None:
        timeline = rng.randbytes(16).hex()
        detail = self.ask("read", "GET", self._path(ancestor))
        if detail is None or detail.status_code != 200:
            return
        found = detail.json()
        if found["state"] != "Active":
            return  # on its way out
        lsn = Lsn.parse(found["disk_consistent_lsn" if ancestor == self._follower.timeline else "ancestor_lsn"])
        with self._lock:
            self.branches[timeline] = _Branch(lsn)
        body = {"new_timeline_id": timeline, "ancestor_timeline_id": ancestor, "ancestor_start_lsn": str(lsn)}
        answer = self.ask("create", "POST", f"{self._tenant}/timeline", json=body)
        if answer is not None and answer.status_code == 201:
            self.branches[timeline].was_created = True
        elif answer is not None and answer.status_code not in _RETRY | {409}:
            with self._lock:
                del self.branches[timeline]

    def _delete(self, timeline: str) -> None:
        branch = self.branches[timeline]
        with self._lock:
            branch.deletions += 1
            was_created = branch.was_created
        answer = self.ask("delete", "DELETE", self._path(timeline))
        with self._lock:
            if answer is None or answer.status_code in _RETRY | {202}:
                return
            if answer.status_code != 404:
                branch.deletions -= 1
            elif was_created and "timeline" in answer.text.lower():
                branch.is_gone = True

    def _set_archived(self, timeline: str, what: str) -> None:
        branch = self.branches[timeline]
        wanted = what == "archive"
        with branch.archival:
            before = set(branch.archived)
            branch.archived.add(wanted)
            body = {"state": "Archived" if wanted else "Unarchived"}
            answer = self.ask(what, "PUT", f"{self._path(timeline)}/archival_config", json=body)
            if answer is not None and answer.status_code == 200:
                branch.archived = {wanted}
            elif answer is not None and answer.status_code not in _RETRY:
                branch.archived = before

    def _evict(self, rng: random.Random, timeline: str) -> None:
        answer = self.ask("read", "GET", f"{self._path(timeline)}/layer")
        if answer is None or answer.status_code != 200:
            return
        layers = [one["layer_file_name"] for one in answer.json()["historic_layers"]]
        if layers:
            self.ask("evict", "DELETE", f"{self._path(timeline)}/layer/{rng.choice(layers)}")

    def _read(self, rng: random.Random, timeline: str) -> None:
        self._read_key(timeline, rng.choice(self._keys), str(self.branches[timeline].lsn))

    def _read_key(self, timeline: str, key: str, lsn: str) -> bool:
        """Read a key; return whether an answer came. Raises AssertionError if it was another one before."""
        headers = {"accept": "application/octet-stream"}
        parameters = {"key": key, "lsn": lsn}
        answer = self.ask("getpage", "GET", f"{self._path(timeline)}/getpage", params=parameters, headers=headers)
        if answer is None or answer.status_code in _RETRY | {404}:
            return False
        content = b"no value" if answer.status_code == 500 else answer.content
        with self._lock:
            first = self._pages.setdefault((key, lsn), content)
        assert content == first, f"key {key} at {lsn} differs on {timeline}"
        return True

    def _tenant_goes_and_comes(self, rng: random.Random) -> None:
        if rng.random() < 0.5:
            drop = rng.choice(("true", "false"))
            self.ask("reset", "POST", f"{self._tenant}/reset?drop_cache={drop}")
            return
        away = {"mode": "Detached", "tenant_conf": {}}
        self.ask("detach", "PUT", f"{self._tenant}/location_config", json=away)
        self._stop.wait(rng.uniform(0, 1.0))
        self.bring_back()

    def bring_back(self) -> None:
        """Attach the tenant, until that has succeeded."""
        here: dict[str, Any] = {"mode": "AttachedSingle", "generation": None, "tenant_conf": {}}
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            answer = self.ask("attach", "PUT", f"{self._tenant}/location_config", json=here)
            if answer is not None and answer.status_code == 200:
                return
            assert time.monotonic() < deadline, "the tenant cannot be attached"
            time.sleep(0.1)

    # What must hold.

    def check_all(self) -> dict[str, int]:
        """Compare what the server has with what it promised. Everything that was asked must have ended."""
        listed = self._follower.machine.api("GET", f"{self._tenant}/timeline_and_offloaded")
        live = {one["timeline_id"]: one for one in listed["timelines"]}
        offloaded = {one["timeline_id"] for one in listed["offloaded"]}
        wrong = []
        for timeline, branch in self.branches.items():
            is_there = timeline in live or timeline in offloaded
            if branch.is_gone and is_there:
                wrong.append(f"{timeline} was gone and is there")
            if branch.was_created and not branch.deletions and not is_there:
                wrong.append(f"{timeline} was created and is not there")
            if is_there:
                is_archived = timeline in offloaded or live[timeline]["is_archived"]
                if is_archived not in branch.archived:
                    wrong.append(f"{timeline} is archived: {is_archived}, promised: {branch.archived}")
        strangers = live.keys() - self.branches.keys() - {self._follower.timeline}
        if strangers:
            wrong.append(f"nobody asked for {strangers}")
        assert not wrong, wrong
        return {"live": len(live), "offloaded": len(offloaded)}

    def read_all(self) -> int:
        """Read all keys at all branch points, of the branches that are still here and of the root; return how many."""
        places = {(timeline, str(branch.lsn)) for timeline, branch in self.branches.items()}
        places |= {(self._follower.timeline, lsn) for _, lsn in places}
        return sum(self._read_key(timeline, key, lsn) for timeline, lsn in places for key in self._keys)


def _keys(follower: Follower) -> list[str]:
    """Some keys that have values: the first of every range of them."""
    path = f"/v1/tenant/{follower.tenant}/timeline/{follower.timeline}"
    at = follower.detail()["disk_consistent_lsn"]
    ranges = follower.machine.api("GET", f"{path}/keyspace?at_lsn={at}")["keys"]
    found = [str(start) for start, _ in ranges]
    return follower.rng.sample(found, min(len(found), 40))


def run(
    folder: Path, *, seeds: int, kind: str, first_seed: int, major: int | None, say: Say, deep: bool, seconds: float
) -> dict[str, Any]:
    """Run `seeds` loads, each `seconds` long; return figures. Raises AssertionError, and what the servers raise."""

    def run_one(place: Path, bucket: Bucket, seed: int) -> dict[str, Any]:
        return _run_one(place, bucket, seed, seconds, major or 16, say)

    numbers = range(first_seed, first_seed + seeds)
    return {"runs": each_seed(folder, run_one, seeds=numbers, kind=kind, deep=deep, say=say)}


def _run_one(folder: Path, bucket: Bucket, seed: int, seconds: float, major: int, say: Say) -> dict[str, Any]:
    # Archived timelines leave by themselves at the pace of compaction.
    plan = FollowerPlan(major=major, seed=seed, settings={"tenant_config.compaction_period": "'2s'"})
    with Follower(folder, plan, bucket, say) as follower:
        follower.begin()
        follower.wait_for_acknowledgements(2)
        keys = _keys(follower)
        with _Hands(follower, keys, seed) as hands:
            ends = _ends(follower, hands, seconds)
        hands.check()
        hands.bring_back()
        follower.wait_for(lambda: bool(follower.detail()), "the timeline")
        found = {"ends": ends, **hands.check_all(), "pages": hands.read_all()}
        follower.end()
        follower.restart()
        follower.wait_for(lambda: bool(follower.detail()), "the timeline")
        hands.check_all()
        follower.machine.kill()
        follower.attach_new_machine()
        hands.check_all()
        hands.read_all()
        return {**found, "answers": dict(sorted(hands.answers.items())), "verify": follower.verified}


def _ends(follower: Follower, hands: _Hands, seconds: float) -> dict[str, int]:
    """Let the hands work, and end the server now and then; return how often, by kind."""
    ends: Counter[str] = Counter()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        follower.load.run_for(follower.rng.uniform(1.0, 6.0))
        hands.check()
        kind = follower.rng.choice(("kill", "kill", "stop"))
        ends[kind] += 1
        follower.say(f"{kind}")
        if kind == "kill":
            follower.machine.kill()
        else:
            follower.machine.stop()
        follower.machine.start()
    return dict(ends)
