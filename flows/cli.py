"""The `symmbfn` command: puts the commands together and turns errors into one line."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise

import typer
from typer.exceptions import TyperException

from db.errors import DatabaseError
from flows.commands import dft, discover, learn, query, reference, retrain, structures, work
from flows.errors import ConfigError
from relax.errors import RelaxError
from symmbfn.errors import SymmBFNError

BAD_INPUT = 2
INTERRUPTED = 130
TERMINATED = 143

app = typer.Typer(
    name="symmbfn",
    help="Discover crystals: generate, relax, screen, store, query.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (discover, work, structures, query, learn, retrain, reference, dft):
    app.add_typer(part.app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and leave the process with its exit code: 0, 2 on bad input."""
    if not sys.warnoptions:  # the libraries' warnings are for developers
        warnings.simplefilter("ignore")
        os.environ["PYTHONWARNINGS"] = "ignore"
    signal.signal(signal.SIGTERM, _end)
    code = run(arguments)
    if "triton" not in sys.modules:  # which would then tell of leaks
        gc.freeze()  # else Python looks through all of torch once more before it ends: a second
    sys.exit(code)


def _end(*_: object) -> None:
    """End as after Ctrl-C: leases are given back, worker processes closed."""
    _interrupted()
    sys.exit(TERMINATED)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    Args:
        arguments: Without the program's name; None: those of the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    for before, one in pairwise(["symmbfn", *given]):  # a path would be the working folder
        if not one or re.fullmatch(r"--[\w-]+=", one):
            where = one or f"after {before!r}"
            return _complain(f"{where}: an empty argument; leave it out, or say what is meant")
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="symmbfn", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:
            return _interrupted()
        return code if isinstance(code, int) else 0
    except TyperException as error:  # without a message it has shown the help instead
        return _complain(_usage(error)) if error.format_message() else BAD_INPUT
    except (ConfigError, DatabaseError, RelaxError, SymmBFNError) as error:
        return _complain(str(error))
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = error.filename or "a file"
        return _complain(f"{where}: {error.strerror or error}; check the path and its permissions")


def _usage(error: TyperException) -> str:
    """Say a usage error and where to read on."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "symmbfn"
    message = error.format_message().rstrip(".").replace(": Value error, ", ": ")
    return f"{message}; see `{where} --help`"


def _interrupted() -> int:
    print("interrupted; what is finished is kept", file=sys.stderr)
    return INTERRUPTED


def _complain(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    main()
