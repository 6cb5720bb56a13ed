"""Relaxations in step: what the model computes of them is computed together.

A GPU, and a small model on any machine, takes hardly longer for fifty crystals than for one. Each
relaxation runs in a thread of its own and waits where it needs energies; when all of them wait,
their crystals go through the model as one batch. One that is done makes place for the next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

from relax.batches import halved
from relax.calculator import GradientCalculator
from relax.optimize import Status
from relax.potentials import Potential
from relax.relaxation import never_started, relax_one

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from relax.calculator import Gradients
    from relax.optimize import Job, RelaxConfig, RelaxResult


@dataclass
class _Question:
    """Atoms of which a relaxation wants energy, forces and strain gradient.

    Attributes:
        atoms: As they are.
        answer: Comes with the batch.
        seconds: Their share of the time of the batch.
    """

    atoms: Atoms
    answer: Future[Gradients] = field(default_factory=Future)
    seconds: float = 0.0


_NO_MEMORY = ("out of memory", "allocate memory", "alloc_failed")
_Messages = SimpleQueue["_Question | tuple[int, RelaxResult]"]


def relax_in_step(
    jobs: Iterator[Job], potential: Potential, config: RelaxConfig, at_once: int
) -> Generator[tuple[int, RelaxResult]]:
    """Relax structures, so many at once.

    Args:
        jobs: The next one is drawn when there is place for it, always from the calling thread.
        potential: Loaded; its `gradients` get the batches.
        config: Settings; `workers` has no meaning here. The time of a structure, which `timeout`
            limits, is its own and its share of the batches.
        at_once: Structures in a batch, at most.

    Yields:
        Index and result, as they finish.
    """
    messages: _Messages = SimpleQueue()
    answers = _Answers(potential, at_once)
    asked: list[_Question] = []
    running: dict[int, threading.Thread] = {}
    more = True
    try:
        while True:
            while more and len(running) < at_once:
                job = next(jobs, None)
                more = job is not None
                if job is not None:
                    running[job.index] = _start(job, potential, config, messages)
            if not running:
                return
            if len(asked) == len(running):
                answers.give(asked)
                asked = []
            message = messages.get()
            if isinstance(message, _Question):
                asked.append(message)
            else:
                running.pop(message[0]).join()
                yield message
    finally:  # whoever still waits is let go; its result is not wanted
        while running:
            for question in asked:
                if not question.answer.done():
                    question.answer.set_exception(RuntimeError("stopped"))
            message = messages.get()
            asked = [message] if isinstance(message, _Question) else []
            if not isinstance(message, _Question):
                running.pop(message[0]).join()


def _start(
    job: Job, potential: Potential, config: RelaxConfig, messages: _Messages
) -> threading.Thread:
    def run() -> None:
        asking = _Asking(potential, config, messages)
        result = never_started(potential.info, Status.FAILED, "its thread was ended")
        try:
            result = relax_one(job.structure, asking, config, job.limit)
        finally:  # whatever ends the thread, somebody waits for it
            messages.put((job.index, replace(result, seconds=asking.seconds())))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


class _Asking(Potential):
    """A potential whose calculators ask the thread that collects the batches."""

    def __init__(self, potential: Potential, config: RelaxConfig, messages: _Messages) -> None:
        self.info = potential.info
        self._messages = messages
        self._timeout = config.timeout
        self._began = time.thread_time()
        self._shares = 0.0

    def seconds(self) -> float:
        """Tell the time that the relaxation in this thread has taken so far."""
        return time.thread_time() - self._began + self._shares

    def calculator(self) -> Calculator:
        """Return an ASE calculator; see the base class."""
        return GradientCalculator(self._ask)

    def _ask(self, atoms: Atoms) -> Gradients:
        if self._timeout is not None and self.seconds() > self._timeout:
            raise TimeoutError(f"not done after {self._timeout:g} s")
        question = _Question(atoms)
        self._messages.put(question)
        try:
            return question.answer.result()
        finally:
            self._shares += question.seconds


class _Answers:
    """Computes batches, of a size that fits into memory.

    A lack of memory halves the size, and each full batch without one adds one to it, as there may
    be room again for the crystals that come later.
    """

    def __init__(self, potential: Potential, at_once: int) -> None:
        self._potential = potential
        self._most = at_once
        self._fits = at_once

    def give(self, asked: Sequence[_Question]) -> None:
        """Answer all; a crystal that the model cannot take gets its error."""
        while asked:
            batch, asked = asked[: self._fits], asked[self._fits :]
            self._answer(batch)

    def _answer(self, batch: Sequence[_Question]) -> None:
        before, began = self._fits, time.monotonic()
        answers: list[Gradients | Exception] = halved(
            batch, self._compute, lambda error: error, self._note
        )
        if len(batch) == before == self._fits:
            self._fits = min(self._fits + 1, self._most)
        share = (time.monotonic() - began) / len(batch)
        for question, answer in zip(batch, answers, strict=True):
            question.seconds = share
            if isinstance(answer, Exception):
                question.answer.set_exception(answer)
            else:
                question.answer.set_result(answer)

    def _compute(self, batch: Sequence[_Question]) -> Sequence[Gradients | Exception]:
        return self._potential.gradients([question.atoms for question in batch])

    def _note(self, error: Exception, size: int) -> None:
        told = str(error).lower()  # torch tells a lack of the CPU's memory in words only
        if isinstance(error, MemoryError) or any(words in told for words in _NO_MEMORY):
            self._fits = max(1, min(self._fits, size // 2))
