"""Where calculations run: here, through jobflow-remote, or through FireWorks."""

from __future__ import annotations

import fcntl
import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.dft_makers import RunnerName
from flows.errors import ConfigError
from flows.settings import one_line

if TYPE_CHECKING:
    from jobflow import Flow, JobStore

INCOMPLETE = "a job before the last one did not converge or stopped the workflow"


@dataclass(frozen=True)
class Outcome:
    """What a runner knows of a job.

    Attributes:
        state: `unknown`: it has no such job; `running` includes waiting for its turn.
        output: Of a job that is done: atomate2's task document.
        reason: Of a failure.
    """

    state: Literal["unknown", "running", "done", "failed"]
    output: dict[str, Any] | None = None
    reason: str = ""


class Runner(ABC):
    """One way to run jobs, and to ask what became of them.

    Attributes:
        name: See `RunnerName`.
        location: What `open_runner` finds the jobs by later; stored with each calculation.
    """

    name: RunnerName
    location: str | None

    def prepare(self, job_id: str) -> None:
        """Leave a trace of a job before it is noted; one without it is not ours to call lost."""
        del job_id  # queues are asked from everywhere

    @abstractmethod
    def submit(self, flow: Flow) -> None:
        """Start a flow, or run it to its end; its job id is that of its output."""

    @abstractmethod
    def outcome(self, job_id: str) -> Outcome:
        """Tell what became of a job."""


def open_runner(name: str, location: str | None) -> Runner:
    """Return a runner.

    Args:
        name: See `RunnerName`.
        location: The folder of `local`; the project of `jobflow-remote`, None for its default.

    Raises:
        ConfigError: Its package is not installed, or not set up.
    """
    if name == "local":
        return LocalRunner(Path(location or "."))
    if name == "jobflow-remote":
        return RemoteRunner(location)
    return FireworksRunner()


class LocalRunner(Runner):
    """Runs the jobs in this process, one after the other; a folder each, and no server.

    `JOB/outputs.json` is jobflow's store, and `JOB/failed.txt` says why a job failed. The process
    that works on it holds a lock on `JOB/lock`, which ends when it dies, however it dies. `JOB` is
    there before the job is noted, so that where it is not, the job is of another machine.
    """

    name = "local"

    def __init__(self, folder: Path) -> None:
        """Take a folder, which may not exist yet."""
        self.folder = folder.expanduser().absolute()
        self.location = str(self.folder)

    def prepare(self, job_id: str) -> None:
        """Make the job's folder."""
        (self.folder / job_id).mkdir(parents=True)

    def submit(self, flow: Flow) -> None:
        """Run a flow to its end; a failure is noted, not raised."""
        from jobflow import run_locally

        job_id = flow.output.uuid
        place = self.folder / job_id
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place / "lock"):
            store = _file_store(place, read_only=False)
            try:
                run_locally(
                    flow,
                    log=False,
                    store=store,
                    create_folders=True,
                    root_dir=place,
                    raise_immediately=True,
                )
                why = "" if _output(store, job_id) else INCOMPLETE
            except Exception as error:  # whatever a code, its parser or its input raises
                reason = f"{type(error).__name__}: {one_line(error):.500}; see {place}"
                why = f"{reason}\n\n{traceback.format_exc()}"
            if why:
                (place / "failed.txt").write_text(why, encoding="utf-8")

    def outcome(self, job_id: str) -> Outcome:
        """Read the job's folder.

        Raises:
            ConfigError: It is not on this machine.
        """
        place = self.folder / job_id
        if not place.is_dir():
            raise ConfigError(
                f"there is no {place} on this machine; collect on the one that submitted the job, "
                "or make this folder if the job's own is gone for good"
            )
        if not (place / "lock").is_file():
            return Outcome("unknown")
        working = _is_locked(place / "lock")  # asked first: what it left is complete if it is not
        if working:
            return Outcome("running")
        if (place / "failed.txt").is_file():
            why = (place / "failed.txt").read_text(encoding="utf-8")
            return Outcome("failed", reason=why.partition("\n")[0])
        found = _output(_file_store(place), job_id) if (place / "outputs.json").exists() else None
        if found is None:
            return Outcome("failed", reason=f"lost: its process ended without a result in {place}")
        return Outcome("done", found)


class RemoteRunner(Runner):
    """Hands the jobs to jobflow-remote, whose own daemon runs them on clusters."""

    name = "jobflow-remote"

    def __init__(self, project: str | None) -> None:
        """Take the name of a project; None is the user's default, which is kept by its name."""
        _require("jobflow_remote", "jobflow-remote")
        from jobflow_remote import ConfigManager
        from jobflow_remote.config.base import ConfigError as ProjectError

        try:
            self.location: str = ConfigManager().get_project(project).name
        except ProjectError as error:
            raise ConfigError(f"jobflow-remote: {one_line(error)}; see docs/dft.md") from error

    @cached_property
    def _controller(self) -> Any:
        from jobflow_remote.jobs.jobcontroller import JobController

        return JobController.from_project_name(self.location)

    def submit(self, flow: Flow) -> None:
        """Add a flow to the project's queue, for its first worker."""
        from jobflow_remote import submit_flow

        submit_flow(flow, project=self.location)

    def outcome(self, job_id: str) -> Outcome:
        """Ask the project's queue, and its job store where the flow is completed."""
        flows = self._controller.get_flows_info(job_ids=job_id, limit=1)
        if not flows:
            return Outcome("unknown")
        state = flows[0].state.value
        if state in ("FAILED", "STOPPED"):
            ask = f"jf -p {self.location} flow info -j {job_id}"  # any of its jobs may have failed
            return Outcome("failed", reason=f"{state} in jobflow-remote: `{ask}`")
        if state != "COMPLETED":
            return Outcome("running")
        return _finished(self._controller.jobstore, job_id)


class FireworksRunner(Runner):
    """Hands the jobs to the FireWorks launch pad of `my_launchpad.yaml`."""

    name = "fireworks"
    location = None

    def __init__(self) -> None:
        """Check that FireWorks and a job store are there."""
        _require("fireworks", "fireworks")
        self._store = _configured_store()

    @cached_property
    def _launchpad(self) -> Any:
        with redirect_stdout(sys.stderr):  # where it logs from now on; standard output is ours
            from fireworks import LaunchPad

            return LaunchPad.auto_load()

    def submit(self, flow: Flow) -> None:
        """Add a workflow; jobs write to the job store of `~/.jobflow.yaml`."""
        from jobflow.managers.fireworks import flow_to_workflow

        job_id = flow.output.uuid
        self._launchpad.add_wf(flow_to_workflow(flow, metadata={"symmbfn_job": job_id}))

    def outcome(self, job_id: str) -> Outcome:
        """Ask the launch pad, and the job store where the workflow is completed."""
        workflow = self._launchpad.workflows.find_one({"metadata.symmbfn_job": job_id})
        if workflow is None:
            return Outcome("unknown")
        state = workflow["state"]
        if state in ("FIZZLED", "DEFUSED", "ARCHIVED"):
            ids = ",".join(str(node) for node in workflow["nodes"])
            return Outcome("failed", reason=f"{state} in FireWorks: `lpad get_fws -i {ids}`")
        if state != "COMPLETED":
            return Outcome("running")
        return _finished(self._store, job_id)


def _finished(store: JobStore, job_id: str) -> Outcome:
    store.connect()
    found = _output(store, job_id)
    if found is None:
        return Outcome("failed", reason=f"the job store has no output: {INCOMPLETE}")
    return Outcome("done", found)


def _file_store(place: Path, *, read_only: bool = True) -> JobStore:
    """Open the store of a local job; bulky objects (densities of states) stay in the folders."""
    from jobflow import JobStore
    from maggma.stores import JSONStore, MemoryStore

    documents = JSONStore(str(place / "outputs.json"), read_only=read_only)
    store = JobStore(documents, additional_stores={"data": MemoryStore()})
    store.connect()
    return store


def _configured_store() -> JobStore:
    from jobflow import SETTINGS
    from maggma.stores import MemoryStore

    if type(SETTINGS.JOB_STORE.docs_store) is MemoryStore:
        raise ConfigError(
            "FireWorks jobs would lose their output: jobflow has no job store; set JOB_STORE in "
            "~/.jobflow.yaml, see docs/dft.md"
        )
    return SETTINGS.JOB_STORE


def _output(store: JobStore, job_id: str) -> dict[str, Any] | None:
    found = store.query_one({"uuid": job_id}, ["output"], sort={"index": -1})
    output = None if found is None else found.get("output")
    return output if isinstance(output, dict) else None


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock on a new file within the block; the file is never seen without its lock."""
    unnamed = file.with_name(f".{file.name}")
    with unnamed.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.replace(unnamed, file)
        yield


def _is_locked(file: Path) -> bool:
    with file.open() as held:
        try:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _require(module: str, package: str) -> None:
    if find_spec(module) is None:
        raise ConfigError(f"--runner {package} needs {package}: `pip install {package}`")
