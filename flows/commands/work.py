"""`symmbfn work`: help campaigns that run elsewhere with their relaxations."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands import common

app = typer.Typer()


@app.command(epilog="Example: symmbfn work --wait --db postgresql://user@host/symmbfn")
def work(
    campaign: Annotated[
        str | None, typer.Argument(help="A campaign's name. (default all that are unfinished)")
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Stay for crystals still to come; a named campaign's end ends."
        ),
    ] = False,
    workers: common.WorkersOption = None,
    device: common.DeviceOption = None,
    database: common.DatabaseOption = None,
) -> None:
    """Relax crystals of campaigns that run on other machines.

    Start it on as many machines as reach the database; stop or kill it whenever you like.
    """
    from flows.work import Here
    from flows.work import work as relax_what_is_left

    with common.terminal_progress():
        here = Here(workers, device or "cpu")
        relax_what_is_left(database, campaign, here, wait=wait)
