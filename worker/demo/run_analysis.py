"""Does with Girder's REST API what a scientist does in the browser: uploads, ingests, runs, looks at the results.

Called by `worker/demo.sh` with the stack's addresses in the environment. Prints what happens as it happens, and
writes what the caller needs to know of the end (`--facts`) as lines NAME='value'.
"""

# ruff: noqa: T201, TID251 - a script of its own: it prints, and shares no clock with the worker

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CLI = "PositivePixelCount"
ENLARGE = 8
STATES = {0: "INACTIVE", 1: "QUEUED", 2: "RUNNING", 3: "SUCCESS", 4: "ERROR", 5: "CANCELED", 824: "CANCELING"}
FINAL = frozenset({3, 4, 5})

_INGEST_SECONDS = 600.0
_RUN_SECONDS = 600.0
_POLL_SECONDS = 0.2
_SLURM_JOB = re.compile(r"Slurm job (\d+)")


class DemoFailed(Exception):
    """The demonstration cannot go on; the message is the sentence for the last line."""


class Girder:
    """One Girder, logged in."""

    def __init__(self, api: str, login: str, password: str) -> None:
        self._api = api
        self._session = requests.Session()
        self._session.trust_env = False  # the stack is on this machine: no proxy, no netrc
        answer = self._send("GET", "user/authentication", auth=(login, password))
        self._session.headers["Girder-Token"] = answer.json()["authToken"]["token"]

    def call(self, method: str, path: str, *, data: bytes | None = None, **params: Any) -> Any:
        """Girder's answer as JSON."""
        return self._send(method, path, params=params, data=data).json()

    def download(self, file: str) -> bytes:
        """A file's content."""
        return bytes(self._send("GET", f"file/{file}/download").content)

    def _send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        try:
            answer = self._session.request(method, f"{self._api}/{path}", timeout=60, **arguments)
        except requests.RequestException as error:
            msg = f"Girder does not answer at {self._api} ({type(error).__name__}): see `devstack/devstack status`"
            raise DemoFailed(msg) from error
        if not answer.ok:
            try:
                reason = answer.json()["message"]
            except (ValueError, KeyError):
                reason = answer.text[:200]
            msg = f"Girder refused {method} {path}: {answer.status_code} {reason}"
            raise DemoFailed(msg)
        return answer

    def find_or_make(self, kind: str, name: str, **parent: Any) -> str:
        """The id of a collection or folder of this name."""
        search = {"text": name} if kind == "collection" else {"name": name, **parent}
        for entry in self.call("GET", kind, **search):
            if entry["name"] == name:
                return str(entry["_id"])
        return str(self.call("POST", kind, name=name, **parent)["_id"])

    def files(self, folder: str) -> dict[str, dict[str, Any]]:
        """The files of a folder's items by name."""
        found = {}
        for item in self.call("GET", "item", folderId=folder, limit=0):
            for file in self.call("GET", f"item/{item['_id']}/files", limit=0):
                found[str(file["name"])] = file
        return found


@dataclass
class Follower:
    """Prints what is new about a job each time it is shown the job."""

    say: Callable[[str], None]
    seconds: Callable[[], float]
    _log: str = ""
    _shown: tuple[Any, ...] = ()
    _unfinished: str = field(default="")

    def show(self, job: Mapping[str, Any]) -> None:
        """Prints the job's new lines of log, then its state, if that changed."""
        log = job.get("log") or ""
        text = log if isinstance(log, str) else "".join(log)
        # The worker may replace a long log by its head and tail; then all of it is new.
        new = text.removeprefix(self._log)
        self._log = text
        is_final = job["status"] in FINAL
        *lines, self._unfinished = (self._unfinished + new).split("\n")
        if is_final and self._unfinished:
            lines.append(self._unfinished)
        for line in lines:
            if line.strip():
                self.say(f"           | {line.rstrip()}")
        progress = job.get("progress") or {}
        current, total = progress.get("current") or 0, progress.get("total") or 0
        percent = f"{100 * current / total:3.0f} %" if total else ""
        shown = (STATES.get(job["status"], job["status"]), percent, progress.get("message") or "")
        if shown != self._shown:
            self._shown = shown
            self.say(f"  {self.seconds():6.1f} s  {shown[0]:<9} {percent:>5}  {shown[2]}".rstrip())


def follow(
    girder: Girder, job: str, *, seconds: float, what: str, is_worker_alive: Callable[[], bool]
) -> dict[str, Any]:
    """The job once it has ended well; prints it live. Raises DemoFailed."""
    started = time.monotonic()
    follower = Follower(say, lambda: time.monotonic() - started)
    while True:
        found: dict[str, Any] = girder.call("GET", f"job/{job}")
        follower.show(found)
        if found["status"] in FINAL:
            break
        if not is_worker_alive():
            raise DemoFailed(f"the worker ended during {what}: its log says why")
        if time.monotonic() - started > seconds:
            state = STATES.get(found["status"], found["status"])
            raise DemoFailed(
                f"{what} is still {state} after {seconds:.0f} s: see the worker's log, and squeue"
            )
        time.sleep(_POLL_SECONDS)
    if found["status"] != 3:
        raise DemoFailed(f"{what} ended {STATES[found['status']]}: the lines above say why")
    return found


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def upload_once(girder: Girder, folder: str, picture: Path, done: list[str]) -> str:
    """The id of the picture's file in Girder, which is uploaded unless it is there; an upload is noted in `done`."""
    size = picture.stat().st_size
    there = girder.files(folder).get(picture.name)
    if there is not None and there["size"] == size:
        say(f"picture    {picture.name} is in Girder already")
        return str(there["_id"])
    made = girder.call(
        "POST",
        "file",
        parentType="folder",
        parentId=folder,
        name=picture.name,
        size=size,
        mimeType="image/png",
        data=picture.read_bytes(),
    )
    say(f"picture    {picture.name} uploaded, {size:,} bytes")
    done.append("uploaded")
    return str(made["_id"])


def find_cli(girder: Girder, image: str) -> str | None:
    """The id of the analysis in Girder, if the image was ingested."""
    for cli in girder.call("GET", "slicer_cli_web/cli"):
        if cli["name"] == CLI and cli["image"] == image:
            return str(cli["_id"])
    return None


def ingest_once(girder: Girder, image: str, is_worker_alive: Callable[[], bool], done: list[str]) -> str:
    """The id of the analysis in Girder; its image is ingested unless it was, which is noted in `done`."""
    known = find_cli(girder, image)
    if known is not None:
        say(f"ingest     {image} is known to Girder already")
        return known
    say(f"ingest     {image}")
    folder = girder.call("GET", "system/setting", key="slicer_cli_web.task_folder")
    job = girder.call("PUT", "slicer_cli_web/docker_image", name=json.dumps(image), folder=folder)
    follow(
        girder, job["_id"], seconds=_INGEST_SECONDS, what="the ingest job", is_worker_alive=is_worker_alive
    )
    known = find_cli(girder, image)
    if known is None:
        raise DemoFailed(f"the ingest job ended well, but Girder has no analysis {CLI} of {image}")
    done.append("ingested")
    return known


def check_counts(content: bytes) -> dict[str, Any]:
    """The analysis's numbers. Raises DemoFailed unless they are those of a stained tissue."""
    try:
        counts: dict[str, Any] = json.loads(content)
        total, tissue = counts["pixels"]["total"], counts["pixels"]["tissue"]
        plausible = 0 < counts["stainedPixels"] < tissue <= total
    except (ValueError, KeyError, TypeError) as error:
        raise DemoFailed("the file of counts is not what the analysis writes") from error
    if not plausible:
        raise DemoFailed(f"the counts make no sense: {counts}")
    return counts


def show_results(girder: Girder, folder: str, wanted: tuple[str, ...], destination: Path) -> dict[str, Any]:
    """Downloads and prints the outputs; the answer is the counts. Raises DemoFailed when one is missing."""
    files = girder.files(folder)
    missing = [name for name in wanted if name not in files]
    if missing:
        raise DemoFailed(f"the job ended well, but these outputs are not in Girder: {', '.join(missing)}")
    destination.mkdir(parents=True, exist_ok=True)
    contents = {}
    for name in wanted:
        contents[name] = girder.download(files[name]["_id"])
        (destination / name).write_bytes(contents[name])
        say(f"output     {name:<20} {len(contents[name]):>9,} bytes")
    counts = check_counts(contents[wanted[1]])
    pixels = counts["pixels"]
    say(
        f"           {pixels['total']:,} pixels, {pixels['tissue']:,} tissue: {pixels['weak']:,} weak,"
        f" {pixels['positive']:,} positive, {pixels['strong']:,} strong"
    )
    say(
        f"           stained: {counts['stainedFraction']:.1%} of the tissue, mean density {counts['meanStainedDensity']:.3f}"
    )
    return counts


def write_facts(path: Path, facts: Mapping[str, str]) -> None:
    """Writes lines that a shell can source; none of the values holds a quote."""
    path.write_text("".join(f"{name}='{value}'\n" for name, value in facts.items()), encoding="utf-8")


def slurm_job_of(job: Mapping[str, Any]) -> str:
    """The Slurm job's id from the Girder job's log; empty if it is not there."""
    log = job.get("log") or ""
    found = _SLURM_JOB.search(log if isinstance(log, str) else "".join(log))
    return found[1] if found else ""


def demonstrate(options: argparse.Namespace) -> None:
    """The whole way of one analysis."""

    def is_worker_alive() -> bool:
        return Path(f"/proc/{options.worker_pid}").exists()

    environment = os.environ
    girder = Girder(
        environment["GIRDER_API_URL"], environment["GIRDER_ADMIN_LOGIN"], environment["GIRDER_ADMIN_PASSWORD"]
    )
    collection = girder.find_or_make("collection", "Devstack")
    results = girder.find_or_make("folder", "Results", parentType="collection", parentId=collection)
    demo = girder.find_or_make("folder", "Demo", parentType="folder", parentId=results)
    done: list[str] = []
    picture = upload_once(girder, demo, options.picture, done)
    cli = ingest_once(girder, options.image, is_worker_alive, done)
    run = datetime.now().astimezone().strftime("Run %Y-%m-%d %H-%M-%S")
    output = girder.find_or_make("folder", run, parentType="folder", parentId=demo)
    outputs = ("stained.png", "counts.json", "parameters.txt")
    say(
        f"analysis   {CLI} of {options.picture.name}, enlarged {ENLARGE} times so that there is something to watch"
    )
    job = girder.call(
        "POST",
        f"slicer_cli_web/cli/{cli}/run",
        inputImage=picture,
        enlarge=ENLARGE,
        outputImage=outputs[0],
        outputImage_folder=output,
        outputCounts=outputs[1],
        outputCounts_folder=output,
        returnparameterfile=outputs[2],
        returnparameterfile_folder=output,
    )
    ended = follow(
        girder, job["_id"], seconds=_RUN_SECONDS, what="the analysis", is_worker_alive=is_worker_alive
    )
    counts = show_results(girder, output, outputs, options.results / run.replace(" ", "_"))
    facts = {
        "demo_job": str(job["_id"]),
        "demo_slurm_job": slurm_job_of(ended),
        "demo_folder": output,
        "demo_results": str(options.results / run.replace(" ", "_")),
        "demo_fraction": f"{counts['stainedFraction']:.1%}",
        "demo_steps": ", ".join([*done, "run by Slurm"]),
    }
    write_facts(options.facts, facts)


def main() -> int:
    """The exit code; a failure's sentence is the last line on stderr."""
    parser = argparse.ArgumentParser(description="Runs the demonstration's analysis through Girder.")
    parser.add_argument("--image", required=True, help="reference of the image in the registry")
    parser.add_argument("--picture", required=True, type=Path)
    parser.add_argument("--results", required=True, type=Path, help="directory for the downloaded outputs")
    parser.add_argument("--facts", required=True, type=Path, help="file for what the caller needs to know")
    parser.add_argument("--worker-pid", required=True, type=int)
    options = parser.parse_args()
    try:
        demonstrate(options)
    except DemoFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
