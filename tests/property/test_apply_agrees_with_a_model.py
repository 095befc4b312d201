"""Random sequences of rare records against a dictionary of what exists."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pageserver.keyspace.key import RelTag
from tests.unit.fake_modification import World

databases = st.tuples(st.sampled_from([1663, 16400]), st.sampled_from([5, 6, 7]))
relations = st.sampled_from([16384, 16385, 16386])
forks = st.integers(0, 3)


class KeyspaceMachine(RuleBasedStateMachine):
    """The model: database -> (relation, fork) -> blocks; and the past, which must never change."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.model: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
        self.past: dict[int, dict[tuple[int, int], dict[tuple[int, int], int]]] = {}
        self.prepared: set[int] = set()

    @rule(database=databases, relation=relations, fork=forks, blocks=st.integers(0, 3))
    def create(self, database: tuple[int, int], relation: int, fork: int, blocks: int) -> None:
        self.world.create(*database, relation, fork, implicit=True)
        forks_of = self.model.setdefault(database, {})
        if (relation, fork) not in forks_of:
            forks_of[relation, fork] = blocks
            self.world.fill(RelTag(*database, relation, fork), blocks)

    @rule(database=databases, relation=relations, blocks=st.integers(0, 3))
    def truncate(self, database: tuple[int, int], relation: int, blocks: int) -> None:
        self.world.take("RelationTruncate", spc=database[0], db=database[1], rel=relation, blocks=blocks, flags=1)
        if (relation, 0) in self.model.get(database, {}):
            self.model[database][relation, 0] = blocks

    @precondition(lambda self: self.model)
    @rule(data=st.data(), dropped=st.sets(relations, min_size=1))
    def drop(self, data: st.DataObject, dropped: set[int]) -> None:
        database = data.draw(st.sampled_from(sorted(self.model)))
        self.world.take(
            "TransactionEnd",
            relations=[(*database, relation) for relation in sorted(dropped)],
            origin=0,
            origin_lsn=0,
            prepared=False,
        )
        kept = {rel: size for rel, size in self.model[database].items() if rel[0] not in dropped}
        self.model[database] = kept

    @precondition(lambda self: self.model)
    @rule(data=st.data(), copied_to=databases)
    def copy(self, data: st.DataObject, copied_to: tuple[int, int]) -> None:
        source = data.draw(st.sampled_from(sorted(self.model)))
        if copied_to in self.model:
            return
        for rel, size in self.model[source].items():
            self.world.fill(RelTag(*source, *rel), size)
        self.world.take(
            "DatabaseCreate",
            db=copied_to[1],
            tablespace=copied_to[0],
            source_db=source[1],
            source_tablespace=source[0],
        )
        self.model[copied_to] = dict(self.model[source])

    @rule(database=databases)
    def drop_database(self, database: tuple[int, int]) -> None:
        self.world.take("DatabaseDrop", db=database[1], tablespaces=[database[0]])
        self.model.pop(database, None)

    @rule(xid=st.integers(3, 9), commit=st.booleans())
    def prepare_or_end(self, xid: int, commit: bool) -> None:
        if xid in self.prepared:
            detail = {"relations": [], "origin": 0, "origin_lsn": 0, "prepared": True, "xid": xid, "committed": commit}
            self.world.take("TransactionEnd", **detail)
            self.prepared.discard(xid)
        else:
            self.world.take("TransactionPrepare", xid=xid, data=b"state of %d" % xid)
            self.prepared.add(xid)

    @invariant()
    def what_exists_is_what_the_model_says(self) -> None:
        snapshot = self.world.snapshot()
        assert self.listing(self.world.lsn) == self.model
        assert snapshot.logical_size() == 8192 * sum(sum(forks_of.values()) for forks_of in self.model.values())
        assert set(snapshot.twophase()) == self.prepared
        self.past[self.world.lsn] = {database: dict(forks_of) for database, forks_of in self.model.items()}

    def teardown(self) -> None:
        for lsn, model in self.past.items():
            assert self.listing(lsn) == model

    def listing(self, lsn: int) -> dict[tuple[int, int], dict[tuple[int, int], int]]:
        snapshot = self.world.snapshot(lsn)
        return {
            database: {(rel.relnode, rel.forknum): size for rel, size in snapshot.relation_sizes(*database).items()}
            for database in snapshot.databases()
        }


TestKeyspaceMachine = KeyspaceMachine.TestCase
TestKeyspaceMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
