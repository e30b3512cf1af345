"""The store's files: a directory with one SQLite database, and a lock that one process holds.

Nothing is written to a file before it is known to be sound and ours: a torn, foreign or newer
one stays as it is. A new database is made under another name and then renamed, so that a kill
in between leaves no half-made one.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from ...errors import ConfigError
from ...position import new_epoch
from .age import Anchor

SCHEMA = 1
FILE = "queuecast.db"
LOCK = "lock"

# SQLite's database header (sqlite.org/fileformat2.html section 1.3): where it has the
# application's and the schema's number. "QCST" is ours.
_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID = 0x51435354
_VERSION_AT, _APPLICATION_AT, _PAGES_AT = 60, 68, 28

# Up to this size every page is looked at before a start (about a second per GB); damage in a
# larger file is found where it is read.
CHECKED_BYTES = 512 << 20
# What the write-ahead log is cut back to after a checkpoint, and pages between checkpoints.
_WAL_BYTES = 8 << 20
_CHECKPOINT_PAGES = 1000

# Errors that speak of what is in the file; all others are the system's.
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_IOERR_SHORT_READ")

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE exchanges (
    name TEXT PRIMARY KEY, kind TEXT, auto_delete INTEGER, arguments TEXT
) WITHOUT ROWID;
CREATE TABLE queues (
    id INTEGER PRIMARY KEY, name TEXT UNIQUE, auto_delete INTEGER, arguments TEXT, floor INTEGER
);
CREATE TABLE bindings (
    queue INTEGER, exchange TEXT, key TEXT, arguments TEXT,
    PRIMARY KEY (queue, exchange, key, arguments)
) WITHOUT ROWID;
CREATE TABLE entries (
    id INTEGER PRIMARY KEY, deliveries INTEGER, time REAL, exchange TEXT, key TEXT,
    properties TEXT, body BLOB
);
CREATE TABLE rules (
    id INTEGER PRIMARY KEY, exchange TEXT, pattern TEXT, floor INTEGER, count INTEGER,
    bytes INTEGER, UNIQUE (exchange, pattern)
);
"""


def prepare(directory: Path) -> Path:
    """Return the path of a directory's database, which is sound or was made now.

    Raises ConfigError, and leaves the files as they are then.
    """
    path = directory / FILE
    wal = directory / f"{FILE}-wal"
    if path.exists():
        _check(path)
    elif wal.exists():
        raise ConfigError(
            f"broker.data: {wal} is there without {FILE}",
            f"put {FILE} back, or move the rest away to begin anew; it was left untouched",
        )
    else:
        _create(path)
    return path


def open_to_write(path: Path, synchronous: str) -> sqlite3.Connection:
    """Open a database that is sound; synchronous: "full" or "normal". Raises ConfigError."""
    try:
        database = connect(path)
        database.execute("PRAGMA journal_mode = WAL").fetchall()
        database.execute(f"PRAGMA synchronous = {'NORMAL' if synchronous == 'normal' else 'FULL'}")
        database.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}").fetchall()
        database.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}").fetchall()
        # A first write shows whether there is room and permission.
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE meta SET value = value + 1 WHERE name = 'starts'")
        database.execute("COMMIT")
    except sqlite3.Error as error:
        raise unusable(path, error) from None
    return database


# Rows of `meta` that hold the anchor of the clock of ages; a store of an earlier version has none.
_BOOT, _SINCE_BOOT, _SHOWN = "age_boot", "age_since_boot", "age_shown"


def read_anchor(meta: Mapping[str, object]) -> Anchor | None:
    """Return where the clock of ages stood, None if that is not known; raises ValueError."""
    boot, steady, shown = meta.get(_BOOT), meta.get(_SINCE_BOOT), meta.get(_SHOWN)
    if boot is None or steady is None or shown is None:
        return None
    if not isinstance(steady, float | int) or not isinstance(shown, float | int):
        raise ValueError(f"unexpected times: {steady!r}, {shown!r}")
    return Anchor(str(boot), float(steady), float(shown))


def write_anchor(database: sqlite3.Connection, anchor: Anchor) -> None:
    """Keep where the clock of ages stands, in a transaction of its own; raises sqlite3.Error."""
    rows = [(_BOOT, anchor.boot), (_SINCE_BOOT, anchor.since_boot), (_SHOWN, anchor.shown)]
    database.execute("BEGIN IMMEDIATE")
    database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
    database.execute("COMMIT")


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a database without transactions of Python's own; raises sqlite3.Error."""
    return _connect(path, "mode=ro" if read_only else "mode=rw")


def connect_untouched(path: Path) -> sqlite3.Connection:
    """Open a database that nobody else writes to and leave its files as they are.

    With a write-ahead log SQLite makes its scratch file (-shm) if there is none; closing it does
    not write the log into the database, as a writer would. Raises sqlite3.Error.
    """
    return _connect(path, "mode=ro" if _has_wal(path) else "immutable=1")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(path.absolute()))}?{mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def _has_wal(path: Path) -> bool:
    wal = path.with_name(f"{FILE}-wal")
    return wal.exists() and wal.stat().st_size > 0


class Lock:
    """A directory's lock, held until release or the end of the process, whatever ends it.

    It is SQLite's own lock on an empty database, which every system has.
    """

    def __init__(self, directory: Path) -> None:
        """Make the directory if need be; raises ConfigError, also when somebody else holds it."""
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._held = sqlite3.connect(
                directory / LOCK, timeout=0, isolation_level=None, check_same_thread=False
            )
        except (sqlite3.Error, OSError) as error:
            raise unusable(directory, error) from None
        try:
            # Nothing is ever written to it, so it needs no journal beside it.
            self._held.execute("PRAGMA journal_mode = MEMORY").fetchall()
            self._held.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            self._held.close()
            if "locked" in str(error):
                raise ConfigError(
                    f"broker.data: {directory} is in use by another queuecast",
                    "stop it, or give this one a directory of its own",
                ) from None
            raise unusable(directory, error) from None

    def release(self) -> None:
        self._held.close()


def _create(path: Path) -> None:
    made = path.with_name(f"{FILE}.new")
    try:
        # What an earlier attempt may have left.
        for left in (made, made.with_name(f"{made.name}-journal")):
            left.unlink(missing_ok=True)
        database = sqlite3.connect(made, isolation_level=None)
        try:
            # Must come before the first table.
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")
            database.executescript(f"BEGIN;{_TABLES}")
            database.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [("epoch", new_epoch()), ("offset", 0), ("starts", 0)],
            )
            database.execute("COMMIT")
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {SCHEMA}")
        finally:
            database.close()
        made.rename(path)
        _sync_directory(path.parent)
    except (sqlite3.Error, OSError) as error:
        raise unusable(path.parent, error) from None


def _sync_directory(directory: Path) -> None:
    """Make a rename last through a power cut; a system without directory handles needs none."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check(path: Path) -> None:
    """Raise ConfigError unless the file is a sound database of ours; writes nothing to it."""
    try:
        with path.open("rb") as file:
            head = file.read(100)
        size = path.stat().st_size
        has_wal = _has_wal(path)
    except OSError as error:
        raise unusable(path, error) from None
    if len(head) < 100 or not head.startswith(_MAGIC):
        raise _not_ours(path, "is not an SQLite database")
    if int.from_bytes(head[_APPLICATION_AT : _APPLICATION_AT + 4], "big") != _APPLICATION_ID:
        raise _not_ours(path, "is another program's database")
    version = int.from_bytes(head[_VERSION_AT : _VERSION_AT + 4], "big")
    if version > SCHEMA:
        raise ConfigError(
            f"broker.data: {path} was written by a newer queuecast "
            f"(its schema is {version}, this one knows {SCHEMA})",
            "use that version; the file was left untouched",
        )
    page = int.from_bytes(head[16:18], "big")
    pages = int.from_bytes(head[_PAGES_AT : _PAGES_AT + 4], "big")
    if not has_wal and size < pages * (page if page > 1 else 65536):
        raise _damaged(path, f"it has {size} bytes and should have {pages * page}")
    if size > CHECKED_BYTES:
        return
    try:
        database = connect_untouched(path)
        try:
            ((verdict,),) = database.execute("PRAGMA quick_check(1)").fetchall()
        finally:
            database.close()
    except sqlite3.Error as error:
        raise unusable(path, error) from None
    if verdict != "ok":
        raise _damaged(path, str(verdict).splitlines()[-1])


def _not_ours(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"broker.data: {path} {what}",
        "name another directory; the file was left untouched",
    )


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"broker.data: {path} is damaged: {why}",
        f"restore a backup, or move {FILE}* away to begin anew; it was left untouched",
    )


def unusable(path: Path, error: OSError | sqlite3.Error | ValueError) -> ConfigError:
    """Return what to say of a failure to read or write."""
    name = getattr(error, "sqlite_errorname", "")
    if isinstance(error, ValueError) or name.startswith(_DAMAGE):
        return _damaged(path, str(error))
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, FileExistsError):
        why = "it is not a directory"
    return ConfigError(
        f"broker.data: cannot use {path}: {why}",
        "name a directory on a local disk with room, which this user may write to",
    )
