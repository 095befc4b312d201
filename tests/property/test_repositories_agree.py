"""The layered repository, the one in RocksDB and a dictionary give the same answers over random histories."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pageserver.errors import MissingKeyError
from pageserver.ids import TimelineId
from pageserver.keyspace.directories import decode_relation_directory, encode_relation_directory, encode_size
from pageserver.keyspace.key import AUX_FILE_RANGE, Key, RelTag
from pageserver.lsn import Lsn
from tests.property.repository_world import DATABASE, ROOT, Dictionary, Item, Server

EXAMPLES, STEPS = 75, 200
STEPS_WANTED = 10_000
TIMELINES_MAX = 6
STEPS_BETWEEN_STARTS = 25
MEMORY_DISK = Path("/dev/shm")
"""What is tested are answers after a process ended, not after the machine lost its power: no disk is needed."""

RELATION = RelTag(*DATABASE, 16384, 0)
FORKS = [(16384, 0), (16384, 2), (16385, 0)]
BLOCKS = [Key.relation_block(RELATION, block) for block in range(6)]
SPARSE = [Key.of(AUX_FILE_RANGE.start[0], 1, 2, 3, 4, number) for number in range(3)]
RELDIR_V2 = [Key.of(0x65, *DATABASE, 16384, 0, number) for number in range(2)]
KEYS = BLOCKS + SPARSE + RELDIR_V2

choices = st.integers(0, 1 << 16)
values = st.binary(min_size=1, max_size=8)
batches = st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=6)
steps_taken = 0


class RepositoryMachine(RuleBasedStateMachine):
    """Timelines are picked by number among those that exist; LSNs by their place between the first and the last."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="repositories-", dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None))
        self.dictionary = Dictionary()
        self.servers = []
        for name, is_layered in (("layered", True), ("rocksdb", False)):
            (self.folder / name).mkdir()
            self.servers.append(Server(self.folder / name, is_layered=is_layered))
            self.servers[-1].create()
        self.next_id = 2
        self.since_start = 0

    def teardown(self) -> None:
        for server in self.servers:
            server.close()
        shutil.rmtree(self.folder)

    # Histories

    @rule(which=choices, batch=batches, step=st.integers(1, 40))
    def put(self, which: int, batch: dict[Key, bytes], step: int) -> None:
        timeline_id = self.pick(which)
        self.put_items(timeline_id, step, list(batch.items()))
        self.check(timeline_id, self.dictionary.timelines[timeline_id].last, which)

    @rule(which=choices, keys=st.sets(st.sampled_from(SPARSE + RELDIR_V2), min_size=1), step=st.integers(1, 40))
    def remove(self, which: int, keys: set[Key], step: int) -> None:
        """An empty value of a sparse key says that it was removed."""
        self.put_items(self.pick(which), step, [(key, b"") for key in sorted(keys)])

    @rule(which=choices, forks=st.dictionaries(st.sampled_from(FORKS), st.integers(0, 9)), step=st.integers(1, 40))
    def resize(self, which: int, forks: dict[tuple[int, int], int], step: int) -> None:
        items: list[Item] = [(Key.relation_directory(*DATABASE), encode_relation_directory(sorted(forks)))]
        items += [(Key.relation_size(RelTag(*DATABASE, *fork)), encode_size(n)) for fork, n in forks.items()]
        self.put_items(self.pick(which), step, items)

    @precondition(lambda self: len(self.dictionary.timelines) < TIMELINES_MAX)
    @rule(which=choices, place=choices)
    def branch(self, which: int, place: int) -> None:
        ancestor = self.pick(which)
        history = self.dictionary.timelines[ancestor]
        lsn = self.place(max(history.cutoff, history.ancestor_lsn), history.last, place)
        new_id = TimelineId(bytes([self.next_id]) * 16)
        self.next_id += 1
        for server in self.servers:
            server.branch(new_id, ancestor, lsn)
        self.dictionary.branch(new_id, ancestor, lsn)
        self.check(new_id, lsn, place)

    @precondition(lambda self: len(self.dictionary.timelines) > 1)
    @rule(which=choices)
    def delete(self, which: int) -> None:
        leaves = [each for each in self.dictionary.timelines if each != ROOT and not self.dictionary.children(each)]
        timeline_id = leaves[which % len(leaves)]
        for server in self.servers:
            server.delete(timeline_id)
        del self.dictionary.timelines[timeline_id]

    # What must not change answers

    @rule(which=choices)
    def flush(self, which: int) -> None:
        for server in self.servers:
            server.flush(self.pick(which))

    @rule(which=choices, place=choices)
    def collect_garbage(self, which: int, place: int) -> None:
        timeline_id = self.pick(which)
        history = self.dictionary.timelines[timeline_id]
        cutoff = self.place(history.cutoff, history.last, place)
        for server in self.servers:
            server.collect_garbage(timeline_id, cutoff)
            assert server.timeline(timeline_id).gc_cutoff_lsn == cutoff
        history.cutoff = cutoff
        self.check_everywhere(place)

    @precondition(lambda self: self.since_start >= STEPS_BETWEEN_STARTS)
    @rule(flush=st.booleans(), place=choices)
    def restart(self, flush: bool, place: int) -> None:
        """In good order, or killed: then what was not durable comes again."""
        for server in self.servers:
            server.restart(flush=flush)
        self.started(place)

    @precondition(lambda self: self.since_start >= STEPS_BETWEEN_STARTS)
    @rule(place=choices)
    def detach_and_attach(self, place: int) -> None:
        for server in self.servers:
            server.detach_and_attach()
        self.started(place)

    # Questions

    @rule(which=choices, place=choices, key=st.sampled_from(KEYS))
    def read(self, which: int, place: int, key: Key) -> None:
        timeline_id = self.pick(which)
        lsn = self.readable(timeline_id, place)
        expected = self.dictionary.find(timeline_id, key, lsn)
        for server in self.servers:
            store = server.timeline(timeline_id).store
            try:
                found: bytes | None = store.get(key, lsn)
            except MissingKeyError:
                found = None
            assert found == expected, (server.is_layered, timeline_id, key, Lsn(lsn))

    @rule(which=choices, place=choices)
    def scan(self, which: int, place: int) -> None:
        timeline_id = self.pick(which)
        lsn = self.readable(timeline_id, place)
        expected = [
            (key, value) for key in sorted(SPARSE + RELDIR_V2) if (value := self.dictionary.find(timeline_id, key, lsn))
        ]
        for server in self.servers:
            found = server.timeline(timeline_id).store.scan(Key.of(0x60), Key.of(0x7F), lsn)
            assert found == expected, (server.is_layered, timeline_id, Lsn(lsn))

    @rule(which=choices, place=choices, fork=st.sampled_from(FORKS))
    def ask_size(self, which: int, place: int, fork: tuple[int, int]) -> None:
        timeline_id = self.pick(which)
        lsn = self.readable(timeline_id, place)
        rel = RelTag(*DATABASE, *fork)
        directory = self.dictionary.find(timeline_id, Key.relation_directory(*DATABASE), lsn)
        size = self.dictionary.find(timeline_id, Key.relation_size(rel), lsn)
        assert directory is not None
        expected: int | None = None if fork[1] == 0 else 0
        if fork in decode_relation_directory(directory):
            assert size is not None
            expected = int.from_bytes(size, "little")
        for server in self.servers:
            timeline = server.timeline(timeline_id)
            if server.is_layered:
                # The engine's own answer comes from a cache that hears of sizes from WAL only.
                found = timeline.snapshot(Lsn(lsn)).relation_size(rel, allow_missing=True)
                found = 0 if found is None and fork[1] else found
            else:
                found = timeline.store.rel_size(*DATABASE, *fork, lsn)
            assert found == expected, (server.is_layered, timeline_id, fork, Lsn(lsn))

    @invariant()
    def count(self) -> None:
        global steps_taken
        steps_taken += 1
        self.since_start += 1

    # Private

    def pick(self, which: int) -> TimelineId:
        return list(self.dictionary.timelines)[which % len(self.dictionary.timelines)]

    def place(self, first: int, last: int, place: int) -> int:
        return first + (last - first) * place // (1 << 16) // 8 * 8

    def readable(self, timeline_id: TimelineId, place: int) -> int:
        history = self.dictionary.timelines[timeline_id]
        return self.place(history.cutoff, history.last, place)

    def put_items(self, timeline_id: TimelineId, step: int, items: list[Item]) -> None:
        lsn = self.dictionary.timelines[timeline_id].last + 8 * step
        for server in self.servers:
            server.put(timeline_id, lsn, items)
        self.dictionary.put(timeline_id, lsn, items)

    def started(self, place: int) -> None:
        self.since_start = 0
        for server in self.servers:
            server.catch_up(self.dictionary)
        self.check_everywhere(place)

    def check_everywhere(self, seed: int) -> None:
        random = Random(seed)
        for timeline_id, history in self.dictionary.timelines.items():
            for lsn in (history.cutoff, self.readable(timeline_id, random.randrange(1 << 16)), history.last):
                self.check(timeline_id, lsn, seed)

    def check(self, timeline_id: TimelineId, lsn: int, _seed: int) -> None:
        expected = [self.dictionary.find(timeline_id, key, lsn) for key in KEYS]
        for server in self.servers:
            found = server.timeline(timeline_id).store.get_many(list(KEYS), lsn)
            assert found == expected, (server.is_layered, timeline_id, Lsn(lsn))


@pytest.mark.slow
def test_both_repositories_agree_with_a_dictionary() -> None:
    """Goal: the acceptance line of the object repository. Method: 10,000 random steps in all; what differs is shrunk
    to a short history.
    """
    global steps_taken
    steps_taken = 0
    run_state_machine_as_test(
        RepositoryMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert steps_taken >= STEPS_WANTED
