"""Imported by the server that the killed processes are forked from: what each of them needs."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries, for developers
    from chgnet.model import CHGNet

    from flows import inputs, stage_generate, stage_relax, stage_screen
    from symmbfn import sample

inputs.load_hull("chgnet")

__all__ = ["CHGNet", "sample", "stage_generate", "stage_relax", "stage_screen"]
