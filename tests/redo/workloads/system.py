"""Transactions, databases, tablespaces, checkpoints, and the end of old transactions."""

from __future__ import annotations

from tests.redo.workloads.session import Session, each

XIDS_OF_A_CLOG_SEGMENT = 32 * 32768
MULTIXACTS_OF_A_PAGE = 2048


def transactions(session: Session) -> None:
    """PREPARE and its two ends, ASSIGNMENT of subtransactions, aborts, files that go with the transaction."""
    session.each(
        "create table tx (a int primary key)",
        "begin; insert into tx values (1); create table tp (a int); prepare transaction 'kept'",
        "begin; insert into tx values (2); create table tq (a int); prepare transaction 'thrown away'",
        "commit prepared 'kept'; rollback prepared 'thrown away'",
        "begin; create table tr (a int); insert into tr values (1); rollback",
        "drop table tp",
    )
    savepoints = "; ".join(f"savepoint s{i}; insert into tx values ({1000 + i})" for i in range(100))
    session.each(f"begin; {savepoints}; rollback to s50; commit")


def databases_and_tablespaces(session: Session) -> None:
    """CREATE DATABASE both ways, a tablespace that stays and one that goes, a table that moves between them."""
    if session.server.major >= 15:
        session.each(
            "create database copied strategy file_copy; create database logged strategy wal_log",
            "drop database copied; drop database logged",
        )
    else:
        session.each("create database copied; drop database copied")
    session.each(
        "set allow_in_place_tablespaces = on",
        "create tablespace stays location ''; create tablespace goes location ''",
        f"create table ts tablespace stays as select i from generate_series(1, {session.rows(2000)}) i",
        "create index ts_i on ts (i) tablespace goes",
        "alter table ts set tablespace goes; insert into ts select generate_series(1, 500)",
        "alter table ts set tablespace stays; alter index ts_i set tablespace stays",
        "delete from ts where i % 3 = 0; vacuum ts",
        "drop tablespace goes",
    )


def checkpoints_and_backups(session: Session) -> None:
    """Checkpoints under way, SWITCH, RESTORE_POINT, BACKUP_END, FPW_CHANGE, RUNNING_XACTS."""
    usual = session.server.settings.get("full_page_writes", "on")
    other = "off" if usual == "on" else "on"
    start, stop = ("pg_backup_start", "pg_backup_stop")
    if session.server.major < 15:
        start, stop = ("pg_start_backup", "pg_stop_backup")
    exclusive = ", false" if session.server.major < 15 else ""
    session.each(
        "create table ck (a int)",
        f"select {start}('a backup', true{exclusive})",
        "insert into ck select generate_series(1, 500)",
        f"select {stop}(false)",
        "checkpoint",
        "insert into ck select generate_series(1, 100)",
        "select pg_create_restore_point('a point')",
        "select pg_switch_wal()",
        f"alter system set full_page_writes = {other}; select pg_reload_conf()",
    )
    _wait_for_full_page_writes(session, other)
    session.each("update ck set a = a + 1", "alter system reset full_page_writes; select pg_reload_conf()")
    _wait_for_full_page_writes(session, usual)


def _wait_for_full_page_writes(session: Session, value: str) -> None:
    """Make checkpoints until one was made with this setting: the checkpointer learns of it at its own time."""
    for _ in range(100):
        session.each("checkpoint")
        cursor = session.connection.execute(b"select full_page_writes from pg_control_checkpoint()")
        if cursor.fetchone() == (value == "on",):
            return
    raise AssertionError(f"the checkpointer did not see full_page_writes = {value}")


def many_multixacts(session: Session) -> None:
    """CREATE_ID, and new pages of multixact offsets and members.

    One session locks all rows, the other each row in a subtransaction of its own: so no two rows have the same lockers.
    """
    rows = MULTIXACTS_OF_A_PAGE + 100
    session.each("create table mm (id int primary key)", f"insert into mm select generate_series(1, {rows})")
    with session.connect() as other:
        each(other, "begin; select * from mm for key share")
        session.connection.execute(
            f"do $$ begin for i in 1..{rows} loop begin perform 1 from mm where id = i for share;"
            " exception when division_by_zero then null; end; end loop; end $$".encode()
        )
        other.execute(b"commit")


def old_transactions(session: Session) -> None:
    """CLOG and CommitTs ZEROPAGE; TRUNCATE of CLOG, CommitTs and MultiXact.

    A segment of CLOG must be used up, and all databases frozen, template0 too. The transactions are subtransactions
    that insert into a temporary table, since all that needs no more than a top-level transaction's id gets only that.
    """
    session.each("create temporary table burnt () on commit delete rows")
    session.connection.execute(
        f"do $$ begin for batch in 1..{XIDS_OF_A_CLOG_SEGMENT // 10000 + 2} loop for i in 1..10000 loop"
        " begin insert into burnt default values; exception when division_by_zero then null; end;"
        " end loop; commit; end loop; end $$".encode()
    )
    # The temporary table is as old as what has been used up.
    session.each("drop table burnt; alter database template0 allow_connections true")
    for database in ("template0", "template1", "postgres"):
        with session.connect(database) as connection:
            connection.execute(b"vacuum (freeze)")
    session.each("alter database template0 allow_connections false")
