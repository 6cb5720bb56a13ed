"""The commands of `symmbfn`, one small Typer application per file; heavy imports stay inside."""
