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
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING

from relax.calculator import GradientCalculator
from relax.potentials import Potential
from relax.relaxation import relax_one

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from relax.calculator import Gradients
    from relax.optimize import Job, RelaxConfig, RelaxResult


@dataclass
class _Question:
    """Atoms of which a relaxation wants energy, forces and strain gradient."""

    atoms: Atoms
    answer: Future[Gradients] = field(default_factory=Future)


_Messages = SimpleQueue["_Question | tuple[int, RelaxResult]"]


def relax_in_step(
    jobs: Iterator[Job], potential: Potential, config: RelaxConfig, at_once: int
) -> Generator[tuple[int, RelaxResult]]:
    """Relax structures, so many at once.

    Args:
        jobs: The next one is drawn when there is place for it, always from
            the calling thread.
        potential: Loaded; its `gradients` get the batches.
        config: Settings; `workers` has no meaning here, and `timeout` ends a relaxation where it
            next asks for energies.
        at_once: Structures in a batch, at most. A batch that fails, for want of memory or
            otherwise, is halved; after a lack of memory batches stay at that size.

    Yields:
        Index and result, as they finish.
    """
    messages: _Messages = SimpleQueue()
    answers = _Answers(potential, at_once)
    asked: list[_Question] = []
    running, more = 0, True
    try:
        while True:
            while more and running < at_once:
                job = next(jobs, None)
                more = job is not None
                if job is not None:
                    _start(job, potential, config, messages)
                    running += 1
            if not running:
                return
            if len(asked) == running:
                answers.give(asked)
                asked = []
            message = messages.get()
            if isinstance(message, _Question):
                asked.append(message)
            else:
                running -= 1
                yield message
    finally:  # whoever still waits is let go; its result is not wanted
        while running:
            for question in asked:
                question.answer.set_exception(RuntimeError("stopped"))
            message = messages.get()
            asked = [message] if isinstance(message, _Question) else []
            running -= not asked


def _start(job: Job, potential: Potential, config: RelaxConfig, messages: _Messages) -> None:
    asking = _Asking(potential, config, messages)
    threading.Thread(
        target=lambda: messages.put(
            (job.index, relax_one(job.structure, asking, config, job.limit))
        ),
        daemon=True,
    ).start()


class _Asking(Potential):
    """A potential whose calculators ask the thread that collects the batches."""

    def __init__(self, potential: Potential, config: RelaxConfig, messages: _Messages) -> None:
        self.info = potential.info
        self._messages = messages
        self._seconds = config.timeout
        self._began = time.monotonic()

    def calculator(self) -> Calculator:
        """Return an ASE calculator; see the base class."""
        return GradientCalculator(self._ask)

    def _ask(self, atoms: Atoms) -> Gradients:
        if self._seconds is not None and time.monotonic() - self._began > self._seconds:
            raise TimeoutError(f"not done after {self._seconds:g} s")
        question = _Question(atoms)
        self._messages.put(question)
        return question.answer.result()


class _Answers:
    """Computes batches, of a size that fits into memory."""

    def __init__(self, potential: Potential, at_once: int) -> None:
        self._potential = potential
        self._fits = at_once

    def give(self, asked: Sequence[_Question]) -> None:
        """Answer all; a crystal that the model cannot take gets its error."""
        for start in range(0, len(asked), self._fits):
            self._batch(asked[start : start + self._fits])

    def _batch(self, asked: Sequence[_Question]) -> None:
        try:
            gradients = self._potential.gradients([question.atoms for question in asked])
        except Exception as error:
            if len(asked) == 1:
                asked[0].answer.set_exception(error)
                return
            half = len(asked) // 2
            if _lacks_memory(error):
                self._fits = min(self._fits, half)
            self._batch(asked[:half])
            self._batch(asked[half:])
            return
        for question, one in zip(asked, gradients, strict=True):
            question.answer.set_result(one)


def _lacks_memory(error: Exception) -> bool:
    """Whether torch or Python had no memory; torch tells it of the CPU in words only."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()
