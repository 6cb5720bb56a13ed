"""What holds for every test: one thread a process, no window, no telemetry, no home folder."""

import os
import tempfile

# Before anything imports numpy, matplotlib or prefect; whoever runs the tests may choose otherwise.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(_name, _value)
if "PREFECT_HOME" not in os.environ:
    _HOME = tempfile.TemporaryDirectory(prefix="symmbfn-tests-", ignore_cleanup_errors=True)
    os.environ["PREFECT_HOME"] = _HOME.name
