"""Jobs that wait for an image: it is made once for all, and what goes wrong with it ends them all."""

from __future__ import annotations

from girder_worker_singularity.errors import ConversionFailed, RegistryUnreachable
from girder_worker_slurm.errors import GirderUnreachable
from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.records.record import Record
from tests.unit.slurm.fake_girder import GirderJobOfFake
from tests.unit.slurm.site import message_of

SUCCESS, ERROR = JobStatus.SUCCESS, JobStatus.ERROR


def test_one_failing_image_ends_all_jobs_that_wait_for_it_and_is_made_once(site):
    site.images.error = ConversionFailed("layer 3 is damaged")
    site.one_step_a_turn = True
    for number in range(4):
        site.task(f"t{number}", image="broken:1")
    site.task("good")
    site.run_to_the_end()
    assert [site.shown(f"t{number}").status for number in range(4)] == [ERROR] * 4
    assert "layer 3 is damaged" in site.shown("t3").text
    assert site.shown("good").status == SUCCESS


def test_an_image_that_is_not_here_is_made_before_the_job_goes_on(site):
    site.task(image="new:1")
    site.run_to_the_end()
    assert site.images.made == [("new:1", "if-not-present")]
    assert site.shown().status == SUCCESS


def test_a_registry_that_does_not_answer_is_asked_again_and_then_given_up(site):
    site.images.error = RegistryUnreachable("no answer")
    site.task(image="new:1")
    site.run_to_the_end()
    assert site.shown().status == ERROR
    assert 2 <= len(site.images.made) <= 10


def test_a_step_that_is_tried_again_does_not_ask_the_registry_again(site):
    """The SIF was forgotten before the step had ended: with `always` each further try asked the registry."""
    site.girder.jobs["job-t1"] = GirderJobOfFake()
    site.girder.settings = GirderUnreachable("Girder is away")
    message = message_of("t1", image="image:1", container_args=[], pull_image=True)
    record = Record.create(site.root.records, message, worker_id="w1", at=site.clock.now())
    site.supervisor.accept(site._mortal(record.path))
    site.run_for(60)
    site.girder.settings = {}
    site.run_to_the_end()
    assert site.images.made == [("image:1", "always")]
