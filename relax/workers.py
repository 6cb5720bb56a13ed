"""Worker processes for relaxation: one structure at a time each, so a crash costs only that one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from relax.errors import RelaxError
from relax.optimize import Job, RelaxConfig, RelaxResult, Status
from relax.potentials import find, python_of
from relax.relaxation import never_started

# One thread per process: with more, the small matrix functions of the cell filter take four times
# as long. The libraries read these when they are first loaded, so they must be set beforehand.
_ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    )
}


@dataclass
class _Worker:
    """A process, our end of its pipe, and what it is busy with."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    loads: tuple[str, str]  # the potential, and its device
    ready: bool = False  # it has loaded the potential
    index: int | None = None
    since: float = 0.0  # when it got its structure, on the monotonic clock

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.pipe.close()
        self.process.kill()
        self.process.wait()


class _Crew:
    """Processes with one potential on one device, kept while they have nothing to do."""

    def __init__(self, potential: str, config: RelaxConfig) -> None:
        """Start as many as the settings mean, or none: they start again where they are needed."""
        self._for: tuple[str, str] | None = (potential, config.device)
        self._idle: list[_Worker] = []
        with suppress(OSError):
            for _ in range(number_of_workers(config)):
                self._idle.append(_start(potential, config.device))

    def take(self, potential: str, config: RelaxConfig) -> list[_Worker]:
        """Hand over those that can work with these settings, at most as many as these mean."""
        if self._for != (potential, config.device):
            return []
        alive = [worker for worker in self._idle if worker.process.poll() is None]
        taken, self._idle = alive[: number_of_workers(config)], alive[number_of_workers(config) :]
        return taken

    def keep(self, worker: _Worker) -> bool:
        """Take one back, unless it is of another potential or device, or all are stopped."""
        if worker.loads != self._for:
            return False
        self._idle.append(worker)
        return True

    def stop(self) -> None:
        """End those that are idle, and take none back."""
        self._for = None
        for worker in self._idle:
            worker.stop()


_CREW: ContextVar[_Crew | None] = ContextVar("crew", default=None)


@contextmanager
def crew(potential: str, config: RelaxConfig) -> Iterator[None]:
    """Start worker processes now, and keep them from one use to the next within the block.

    They load the potential, which takes seconds, while this process does something else.
    """
    workers = _Crew(potential, config)
    token = _CREW.set(workers)
    try:
        yield
    finally:
        try:
            workers.stop()
        finally:
            _CREW.reset(token)


@dataclass(frozen=True)
class _News:
    """What a worker has come to: a result, or its end and why."""

    result: RelaxResult | None = None
    end: str | None = None


def run_in_workers(
    jobs: Iterator[Job], potential: str, config: RelaxConfig
) -> Iterator[tuple[int, RelaxResult]]:
    """Relax structures in processes of their own.

    Args:
        jobs: The next one is drawn when a process is free for it, none after the first end.
        potential: A name or path as for `relax.potentials.load`.
        config: Settings.

    Yields:
        Index and result, as they finish.

    Raises:
        RelaxError: No worker can start, or one cannot load the potential.
    """
    first = next(jobs, None)  # before any process starts in vain
    if first is None:
        return
    waiting = _Waiting(chain([first], jobs))
    info = find(potential)
    kept = _CREW.get()
    workers = kept.take(potential, config) if kept else []
    end = "it could not be started"
    try:
        for worker in workers:
            if worker.ready:
                _assign(worker, waiting.draw(), config)
        for _ in range(number_of_workers(config) - len(workers)):
            workers.append(_start(potential, config.device))
        while not waiting.ended or any(worker.index is not None for worker in workers):
            if not workers:
                raise RelaxError(f"relaxation: no worker process could start: {end}")
            wait([worker.pipe for worker in workers], timeout=_patience(workers, config))
            for worker in tuple(workers):
                news = _listen(worker, config)
                if news is None:
                    continue
                index, result, end = worker.index, news.result, news.end or end
                if news.end is None:
                    _assign(worker, waiting.draw(), config)
                else:
                    worker.stop()
                    workers.remove(worker)
                    if worker.ready and not waiting.ended:
                        workers.append(_start(potential, config.device))
                    result = never_started(info, Status.FAILED, news.end)
                if index is not None:
                    yield index, result or never_started(info, Status.FAILED, "no result")
    finally:
        for worker in workers:
            if worker.index is not None or not (kept and kept.keep(worker)):
                worker.stop()


def number_of_workers(config: RelaxConfig) -> int:
    """Return how many worker processes the settings mean, at least one."""
    if config.workers is None:
        return cores() if config.on_cpu else 1
    return max(config.workers, 1)


class _Waiting:
    """Structures that no process has begun."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs = jobs
        self.ended = False

    def draw(self) -> Job | None:
        """Return the next one; None for ever after the last."""
        job = None if self.ended else next(self._jobs, None)
        self.ended = job is None
        return job


def _listen(worker: _Worker, config: RelaxConfig) -> _News | None:
    """Take in what a worker has to say, without waiting; None if it is still busy.

    Raises:
        RelaxError: It cannot load the potential.
    """
    if worker.pipe.poll():
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            return _News(end=_death(worker))
        if isinstance(message, RelaxError):
            raise message
        worker.ready = True
        return _News(result=message)  # None when it is ready for its first structure
    if config.timeout is not None and worker.index is not None:
        if time.monotonic() - worker.since > config.timeout:
            return _News(end=f"not done after {config.timeout:g} s")
    return None


def _start(potential: str, device: str) -> _Worker:
    ours, theirs = Pipe()
    python = python_of(potential)
    environment = {**os.environ, **_ONE_THREAD}
    if python is not None:  # of another environment, which knows nothing of us
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        environment.setdefault("PYTHONWARNINGS", "ignore")  # they would be its user's to mend
    process = subprocess.Popen(
        [str(python or sys.executable), "-m", "relax.worker", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    theirs.close()
    ours.send((potential, device))
    return _Worker(process, ours, (potential, device))


def _assign(worker: _Worker, job: Job | None, config: RelaxConfig) -> None:
    """Give the worker its next structure; one without work stays idle until all is done."""
    worker.index = None if job is None else job.index
    worker.since = time.monotonic()
    if job is not None:
        with suppress(OSError):  # has it just died, its closed pipe is noticed next
            worker.pipe.send((job.structure, config, job.limit))


def _patience(workers: list[_Worker], config: RelaxConfig) -> float | None:
    """Return the seconds until the first busy worker is late; None for no limit."""
    busy = [worker.since for worker in workers if worker.index is not None]
    if config.timeout is None or not busy:
        return None
    return max(0.0, min(busy) + config.timeout - time.monotonic()) + 0.01


def _death(worker: _Worker) -> str:
    """Describe why a worker closed its pipe."""
    code = worker.process.wait()
    if code == -9:
        return "its process was killed, most likely for want of memory"
    return f"its process ended with {'signal' if code < 0 else 'exit code'} {abs(code)}"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
