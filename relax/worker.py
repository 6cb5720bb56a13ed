"""The worker process: `python -m relax.worker FD` relaxes what comes through the pipe FD."""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection


def main(pipe: Connection) -> None:
    """Load a potential, then relax structures until the pipe is closed.

    Receives (potential, device) and then (structure, RelaxConfig, limit) again and again; sends
    None when it is ready (or the RelaxError that kept it from it) and then one RelaxResult for
    each.
    """
    from relax.errors import RelaxError
    from relax.potentials import load
    from relax.relaxation import relax_one

    name, device = pipe.recv()
    try:
        potential = load(name, device=device)
    except RelaxError as error:
        pipe.send(error)
        return
    pipe.send(None)
    while True:
        structure, config, limit = pipe.recv()
        pipe.send(relax_one(structure, potential, config, limit))


if __name__ == "__main__":
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, signal.SIG_IGN)  # the parent decides when to stop
    try:
        main(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is done, or gone
