"""Slurm jobs that start again or die while Girder is slow, and messages that are nonsense: each ends with the truth."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Connection, Producer

from tests.acceptance.test_verdicts import _kill_the_script, _running
from tests.support.girder_site import ERROR, FINAL, SUCCESS, wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site
    from tests.support.slow_link import SlowLink

pytestmark = [pytest.mark.girder, pytest.mark.timeout(400)]

RUN = "girder_worker.docker.tasks.docker_run"


def _running_and_requeueable(site: Site, folder: str, **params: object) -> tuple[str, str]:
    """A job that Slurm may start again, as a site can force it to."""
    site.worker.restart("[slurm]\ninfrastructure_retries = 0\n[slurm.options]\nmem = 150\nbegin = now+4\n")
    job = site.run_toy(folder, sleep=200, **params)
    wait_until("it is submitted", lambda: bool(site.worker.slurm_job_id(job)), seconds=30)
    slurm = site.worker.slurm_job_id(job)
    site.slurm("scontrol", "update", f"jobid={slurm}", "requeue=1", as_root=True)
    wait_until("it runs", lambda: "second 1" in site.girder.log(job), seconds=40)
    return job, slurm


def _start_again_now(site: Site, slurm: str) -> None:
    """Slurm waits two minutes before it starts a requeued job again; not here."""
    wait_until("it waits again", lambda: site.slurm_state(slurm) == "PENDING", seconds=60)
    site.slurm("scontrol", "update", f"jobid={slurm}", "starttime=now", as_root=True, check=False)
    wait_until("the second start is over", lambda: site.slurm_state(slurm) == "COMPLETED", seconds=60)


def _expect_requeued(site: Site, job: str) -> None:
    ended = site.girder.wait_for_end(job)
    log = "".join(ended["log"])
    assert ended["status"] == ERROR, log
    assert "was put back into the queue while it ran" in log
    assert log.count("toy starts") == 1


@pytest.mark.fault("requeued by an administrator", phases=("running",))
def test_a_job_requeued_while_the_worker_was_down_is_no_success(site: Site, folder: str) -> None:
    job, slurm = _running_and_requeueable(site, folder, mode="graceful")
    site.worker.kill()
    site.slurm("scontrol", "requeue", slurm, as_root=True)
    _start_again_now(site, slurm)
    site.worker.start()
    _expect_requeued(site, job)
    assert "out.txt" not in site.girder.files(folder)


@pytest.mark.fault("requeued by an administrator", phases=("running",))
def test_a_job_requeued_while_the_worker_looks_on_is_not_run_again(site: Site, folder: str) -> None:
    job, slurm = _running_and_requeueable(site, folder)
    site.slurm("scontrol", "requeue", slurm, as_root=True)
    _expect_requeued(site, job)
    wait_until("it left the queue", lambda: site.slurm_state(slurm) in ("", "CANCELLED"), seconds=30)


@pytest.mark.fault("node down (slurmd killed)", phases=("running",))
def test_a_job_requeued_after_its_node_died_says_so(site: Site, folder: str) -> None:
    job, slurm = _running_and_requeueable(site, folder)
    node = site.slurm("squeue", "-h", "-j", slurm, "-o", "%N").strip()
    service = f"slurmd-gs{site.stack['DEVSTACK_NODES'].split().index(node) + 1}"
    site.stack.service("stop", "--kill", service)
    try:
        site.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test", as_root=True)
        _expect_requeued(site, job)
        assert "node failed" in site.girder.log(job)
    finally:
        site.stack.service("start", service)
        site.resume(node)


@pytest.mark.fault("job script killed", phases=("running",))
@pytest.mark.fault("Girder slow", phases=("running",))
def test_jobs_that_die_without_a_word_are_judged_although_girder_is_slow(
    site: Site, folder: str, slow: SlowLink
) -> None:
    jobs = [_running(site, folder, lines=200_000, sleep=300) for _ in range(6)]
    slow.bytes_per_second = 330_000
    for _, slurm in jobs:
        _kill_the_script(slurm)
    wait_until(
        "Slurm has ended all",
        lambda: {site.slurm_state(slurm) for _, slurm in jobs} == {"FAILED"},
        seconds=60,
    )
    # Long enough for listings, graces and updates to meet in every order.
    wait_until(
        "some have ended",
        lambda: any(site.girder.status(job) in FINAL for job, _ in jobs),
        seconds=120,
        every=1.0,
    )
    slow.bytes_per_second = 0.0
    assert [site.girder.wait_for_end(job)["status"] for job, _ in jobs] == [ERROR] * 6


def _publish(
    site: Site, headers: dict[str, Any], body: bytes, content_type: str = "application/json"
) -> None:
    with Connection(site.stack["GIRDER_WORKER_BROKER"]) as connection, connection.channel() as channel:
        Producer(channel).publish(
            body, routing_key="celery", content_type=content_type, content_encoding="utf-8", headers=headers
        )


NONSENSE: list[tuple[dict[str, Any], bytes, str]] = [
    ({"id": "n-int", "task": 5}, b"[[], {}, {}]", "application/json"),
    ({"id": "n-none", "task": None}, b"[[], {}, {}]", "application/json"),
    ({"id": "n-dict", "task": {"a": 1}}, b"[[], {}, {}]", "application/json"),
    ({}, b"garbage", "application/json"),
    ({"id": "n-pickle"}, b"\x80\x04K\x01.", "application/x-python-serialize"),
    ({"id": "n-binary", "task": RUN}, b"\xff\xfe\x00", "application/json"),
    ({"id": "n-type", "task": RUN}, b"[[],{},{}]", "x/y"),
    ({"id": "../../n/../x", "task": RUN}, b"[[],{},{}]", "application/json"),
    ({"id": "n" * 5000, "task": RUN}, b"[[],{},{}]", "application/json"),
    ({"id": ["n"], "task": RUN}, b"[[],{},{}]", "application/json"),
    ({"id": "n-scalar", "task": RUN}, b"7", "application/json"),
    ({"id": "n-deep", "task": RUN}, b"[" * 100_000 + b"]" * 100_000, "application/json"),
    ({"id": "n-eta", "task": RUN, "eta": "nonsense", "expires": [1]}, b"[[],{},{}]", "application/json"),
    ({"id": "n-url", "task": RUN, "jobInfoSpec": {"url": 5}}, b"[[],{},{}]", "application/json"),
    (
        {
            "id": "n-unknown",
            "task": "no.such",
            "jobInfoSpec": {"url": "http://127.0.0.1:1/job/x", "headers": ["a"]},
        },
        b"[[],{},{}]",
        "application/json",
    ),
    ({"id": "n-hooks", "task": RUN, "girder_result_hooks": 5}, b"[[],{},{}]", "application/json"),
    ({"id": "n-image", "task": RUN}, b'[[{"a":1}],{"container_args": 7},{}]', "application/json"),
]


@pytest.mark.fault("message is nonsense", phases=("message received",))
def test_messages_that_are_nonsense_end_or_are_kept_and_the_worker_goes_on(site: Site, folder: str) -> None:
    for headers, body, content_type in NONSENSE:
        _publish(site, headers, body, content_type)
    job, spec = site.girder.new_job("No id")
    _publish(site, {"task": RUN, "jobInfoSpec": spec, "girder_api_url": site.girder.api}, b"[[],{},{}]")
    assert site.girder.wait_for_end(site.run_toy(folder))["status"] == SUCCESS
    assert site.girder.wait_for_end(job)["status"] == ERROR
    root = site.worker.root
    wait_until("no record is left", lambda: not list(root.glob("record/[!.]*")), seconds=120, every=0.5)
    ended = {json.loads(path.read_text())["task_id"] for path in root.glob("ended/*/message.json")}
    kept = {json.loads(path.read_text())["task_id"] for path in root.glob("unhandled/*/message.json")}
    for headers, _, _ in NONSENSE:
        if isinstance(headers.get("id"), str):
            assert headers["id"] in ended | kept
    assert site.tasks_in_rabbitmq() == 0
