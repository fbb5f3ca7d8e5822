"""What a power cut took of a record: a file that was replaced without a sync may be empty."""

from __future__ import annotations

import pytest

from girder_worker_slurm.job.state import Outcome


@pytest.mark.parametrize("left", [b"", b"\0\0\0\0", b"{}", None])
@pytest.mark.fault("power cut between write and sync", phases=("inputs staging",))
def test_a_task_whose_staged_form_is_gone_is_staged_again(site, left):
    """The job ended as an error: an unexpected one, JSONDecodeError."""
    site.one_step_a_turn = True
    record = site.task()
    site.run_until(lambda: site.entries()[-1] == "staged")
    if left is None:
        (record.path / "task.json").unlink()
    else:
        (record.path / "task.json").write_bytes(left)
    site.one_step_a_turn = False
    site.restart()
    site.run_to_the_end()
    assert site.state().verdict.outcome is Outcome.SUCCESS
    assert len(site.calls("submit")) == 1


@pytest.mark.fault("power cut between write and sync", phases=("status reporting",))
def test_a_result_that_is_gone_is_sent_as_far_as_it_is_known(site):
    """The caller of the task, or the next one of its chain, waited for ever."""
    site.one_step_a_turn = True
    record = site.task()
    site.run_until(lambda: site.entries()[-1] == "delivered")
    (record.path / "result.json").write_bytes(b"")
    site.one_step_a_turn = False
    site.restart()
    site.run_to_the_end()
    assert site.results.sent == [("success", "t1", [])]
