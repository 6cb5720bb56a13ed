"""Which process holds a lease: its name, a heartbeat while it works, and freeing those of the dead.

A lease runs out by itself, but after a kill nobody wants to wait for that: a process that holds
leases is named so that others on the same machine can see that it is gone.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db.errors import DatabaseError
from db.leases import Claim, renew
from db.models import Candidate
from db.session import Database


def worker_name() -> str:
    """Return this process's name, unlike that of any other on any machine, at any time."""
    return f"{_machine()}/{_boot()}/{os.getpid()}/{_started(os.getpid())}"


def free_dead(session: Session) -> int:
    """End the leases of processes of this machine that are no more; return how many."""
    owners = session.scalars(
        select(Candidate.lease_owner).where(Candidate.lease_owner.is_not(None)).distinct()
    ).all()
    dead = [owner for owner in owners if owner is not None and _is_dead(owner)]
    if not dead:
        return 0
    freed = session.execute(
        update(Candidate)
        .where(Candidate.lease_owner.in_(dead))
        .values(lease_owner=None, lease_until=None)
        .returning(Candidate.id)
        .execution_options(synchronize_session=False)
    )
    return len(freed.all())


@contextmanager
def heartbeat(database: Database, claims: dict[int, Claim], seconds: float) -> Iterator[None]:
    """Keep leases alive within the block.

    Args:
        database: Where the leases are.
        claims: Those still held; the caller takes out what is done.
        seconds: Length of a lease.
    """
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(seconds / 3):
            with suppress(DatabaseError), database.session() as session:  # the next beat may pass
                renew(session, list(claims.values()), seconds)

    thread = threading.Thread(target=beat, name="lease heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _machine() -> str:
    """Return host and process-number space; containers of one host may share a host name."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return f"{socket.gethostname()}/{space}"


def _boot() -> str:
    """Return what names the time since the machine was switched on; '' where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process began, in clock ticks after boot; '' when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *rest = text.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]


def _is_dead(owner: str) -> bool:
    """Tell whether an owner's process was on this machine and is gone."""
    parts = owner.rsplit("/", 3)
    if len(parts) < 4 or parts[0] != _machine():
        return False
    _, boot, process, started = parts
    if boot != _boot():
        return True
    return process.isdigit() and bool(started) and _started(int(process)) != started
