"""Whose a job is, as a stock Girder answers it."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.girder_site import SUCCESS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.conftest import Site
    from tests.support.girder_site import GirderSite

pytestmark = [pytest.mark.girder, pytest.mark.timeout(300)]


def _new_user(site: Site) -> GirderSite:
    return site.girder.new_user(f"user{uuid.uuid4().hex[:8]}")


def _run(site: Site, girder: GirderSite, **params: Any) -> str:
    folder = girder.new_folder()
    file = girder.upload(folder, "in.txt", b"hello\n")
    return girder.run(site.toy, inputFile=file, outputFile="o.txt", outputFile_folder=folder, **params)


def _user_of(site: Site, job: str) -> dict[str, str] | None:
    return next(entry for entry in site.worker.entries_of(job) if entry["event"] == "admitted")["user"]


def test_the_record_says_whose_job_it_is(site: Site) -> None:
    people = [site.girder, _new_user(site), _new_user(site)]
    jobs = [_run(site, girder) for girder in people]
    for girder, job in zip(people, jobs, strict=True):
        assert girder.wait_for_end(job)["status"] == SUCCESS
        me = girder.call("GET", "user/me")
        assert _user_of(site, job) == {"id": me["_id"], "login": me["login"]}
        assert f"user:           {me['login']} ({me['_id']})" in site.worker.command("show", job)


@pytest.fixture
def fresh_girder(site: Site) -> Iterator[None]:
    """Girder as it has just started, before and after: the first user of a batch lends the tokens to all later ones."""
    site.stack.service("restart", "girder")
    yield
    site.stack.service("restart", "girder")


def test_tasks_that_girder_gives_the_tokens_of_another_user_are_nobodys(
    site: Site, fresh_girder: None
) -> None:
    outcomes = []
    for girder in (_new_user(site), _new_user(site)):
        slides = girder.new_folder()
        girder.upload(slides, "slide.txt", b"1\n")
        params = {"outputFile": "o.txt", "outputFile_folder": girder.new_folder()}
        batch = girder.wait_for_end(
            girder.run(site.toy, inputFile="slide.*", inputFile_folder=slides, **params)
        )
        (job,) = re.findall(r"Scheduling job (\w+)", "".join(batch["log"]))
        ended = girder.wait_for_end(job)
        me = girder.call("GET", "user/me")
        # With tokens of somebody else Girder lets it read nothing; should Girder mend that, it is the user's.
        own = {"id": me["_id"], "login": me["login"]}
        assert _user_of(site, job) == (own if ended["status"] == SUCCESS else None), ended["log"]
        outcomes.append(ended["status"])
    assert outcomes[0] == SUCCESS
