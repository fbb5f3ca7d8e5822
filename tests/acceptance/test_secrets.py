"""No token, password or nonce shows to others while a job runs: not in ps, not in Slurm, not in logs, not in files that they can read."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.support.girder_site import SUCCESS, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.conftest import Site

pytestmark = pytest.mark.girder

#: What Girder's tokens look like, wherever they stand in a message.
_TOKEN = re.compile(r'(?i)token\\*"\s*:\s*\\*"([A-Za-z0-9]{32,})')


#: A process that was looked at so often has become what it is.
_LOOKS = 40


@contextlib.contextmanager
def _command_lines() -> Iterator[set[bytes]]:
    """All command lines of this machine, looked at again and again for as long as the block lasts."""
    seen: set[bytes] = set()
    stop = threading.Event()

    def watch() -> None:
        looks: dict[str, int] = {}
        while not stop.wait(0.002):
            pids = [name for name in os.listdir("/proc") if name.isdigit()]
            looks = {pid: looks.get(pid, 0) for pid in pids}
            for pid in pids:
                if looks[pid] < _LOOKS:
                    looks[pid] += 1
                    with contextlib.suppress(OSError):  # it has ended
                        seen.add(Path("/proc", pid, "cmdline").read_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(30)


def _secrets(site: Site, job: str) -> dict[str, str]:
    """What nobody else may see of a running job: name → value."""
    entries = site.worker.entries_of(job)
    (record,) = [
        path.parent
        for path in site.worker.root.glob("record/[!.]*/state.jsonl")
        if job in path.read_text(encoding="utf-8")
    ]
    tokens = dict.fromkeys(_TOKEN.findall((record / "message.json").read_text(encoding="utf-8")))
    password = urlsplit(site.stack["GIRDER_WORKER_BROKER"]).password
    nonce = next(entry["nonce"] for entry in entries if entry["event"] == "attempt")
    assert tokens
    assert password
    return {
        "broker password": password,
        "nonce": nonce,
        "administrator's session": site.girder.token,
        **{f"token {number}": token for number, token in enumerate(tokens)},
    }


def _files(site: Site) -> Iterator[tuple[Path, int, bytes]]:
    """All files that worker and jobs have made, with their permissions."""
    user = pwd.getpwnam(site.stack.user)
    own = (site.stack.shared, Path(user.pw_dir))
    for top in (*own, Path("/tmp"), Path("/var/tmp")):  # noqa: S108 - looked through, not written to
        for directory, names, files in os.walk(top):
            if top not in own:
                # What other tests have left in pytest's own directories is no worker's and no job's.
                names[:] = [
                    name
                    for name in names
                    if _owner(Path(directory, name)) == user.pw_uid and not name.startswith("pytest-of-")
                ]
            for name in files:
                path = Path(directory, name)
                if path.suffix == ".sif" or not (top in own or _owner(path) == user.pw_uid):
                    continue
                try:
                    about = path.lstat()
                    if stat.S_ISREG(about.st_mode) and about.st_size < 10_000_000:
                        yield path, stat.S_IMODE(about.st_mode), path.read_bytes()
                except OSError:  # it is gone
                    continue


def _owner(path: Path) -> int:
    try:
        return path.lstat().st_uid
    except OSError:
        return -1


def _environments(slurm_job_id: str) -> list[bytes]:
    """The environments of a Slurm job's processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:
            continue
        if f"SLURM_JOB_ID={slurm_job_id}".encode() in environment.split(b"\0"):
            found.append(environment)
    return found


def _shown_in(what: dict[str, str], text: bytes | str) -> list[str]:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    return [name for name, value in what.items() if value.encode() in data]


def test_no_secret_of_a_running_job_shows(site: Site, folder: str) -> None:
    with _command_lines() as lines:
        job = site.run_toy(folder, sleep=4, mode="latin1")
        wait_until("it runs", lambda: "second 1" in site.girder.log(job), seconds=60)
        secret = _secrets(site, job)
        slurm_job_id = site.worker.slurm_job_id(job)

        shown = {
            "scontrol": site.slurm("scontrol", "show", "job", slurm_job_id, as_root=True),
            "squeue": site.slurm("squeue", "--all", "--format=%all", as_root=True),
            "script": site.slurm("scontrol", "write", "batch_script", slurm_job_id, "-", as_root=True),
            "environment": b"".join(_environments(slurm_job_id)),
            "worker's log": site.worker.log.read_bytes(),
            "Girder's log": site.girder.log(job),
            **{
                " ".join(arguments): site.worker.command(*arguments)
                for arguments in (("jobs", "--all"), ("show", job), ("show", job, "--json"), ("explain", job))
            },
        }
        while_it_runs = list(_files(site))
        assert site.girder.wait_for_end(job)["status"] == SUCCESS
        wait_until(
            "its record has ended", lambda: not list(site.worker.root.glob("record/[!.]*")), seconds=30
        )

    shown["log"] = _log_bytes(site, job)
    shown["worker's log, after the end"] = site.worker.log.read_bytes()
    assert f"JobId={slurm_job_id}" in str(shown["scontrol"])
    assert shown["environment"]
    assert "#SBATCH" in str(shown["script"]) or "#!/bin/bash" in str(shown["script"])
    assert {where: _shown_in(secret, text) for where, text in shown.items() if _shown_in(secret, text)} == {}

    # The watcher has seen the job's own processes. It may miss one that lives for some milliseconds, such as sbatch.
    assert any(b"apptainer" in line and b"exec" in line for line in lines)
    assert any(b"slurm_script" in line for line in lines)
    assert [line[:300] for line in lines if _shown_in(secret, line)] == []

    for files in (while_it_runs, list(_files(site))):
        holding = {path: mode for path, mode, data in files if _shown_in(secret, data)}
        assert any(path.name == "message.json" for path in holding)
        assert {str(path): oct(mode) for path, mode in holding.items() if mode & 0o077} == {}
    assert any(path.name == "slurm.out" for path, _, _ in while_it_runs)


def _log_bytes(site: Site, job: str, *, terminal: bool = False) -> bytes:
    """What `girder-slurm log` prints to a pipe or to a terminal."""
    program = Path(sys.executable).with_name("girder-slurm")
    argv = site.stack.as_user([str(program), "log", job])
    env = site.stack.user_environment() | {"GIRDER_WORKER_SLURM_CONFIG": str(site.worker.config)}
    if not terminal:
        return subprocess.run(argv, env=env, cwd="/", check=True, capture_output=True, timeout=60).stdout
    ours, theirs = os.openpty()
    try:
        subprocess.run(argv, env=env, cwd="/", check=True, stdout=theirs, timeout=60)
        return os.read(ours, 65536)
    finally:
        os.close(theirs)
        os.close(ours)


def test_a_terminal_is_not_given_what_is_no_text(site: Site, folder: str) -> None:
    job = site.run_toy(folder, mode="latin1")
    assert site.girder.wait_for_end(job)["status"] == SUCCESS
    assert b"caf\xe9 and \xc3\xa9" in _log_bytes(site, job)
    shown = _log_bytes(site, job, terminal=True)
    assert "caf\ufffd and é".encode() in shown
    assert b"\xe9 " not in shown
    (task_id,) = json.loads(site.worker.command("show", job, "--json"))["task_id"].split()
    assert (site.worker.root / "ended" / task_id).is_dir()
