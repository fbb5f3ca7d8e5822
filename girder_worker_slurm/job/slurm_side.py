"""A job's way through Slurm: submitted once, looked up after any doubt, cancelled, and judged when it has ended."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from girder_worker_slurm.cluster.interface import SlurmJobId, Submission
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES, WAITING_STATES
from girder_worker_slurm.errors import SubmitRejected, SubmitUnsure, Unreachable
from girder_worker_slurm.job.retries import (
    avoided_nodes,
    is_tried_again,
    options_avoiding,
    with_earlier,
)
from girder_worker_slurm.job.services import DIRECT, Later
from girder_worker_slurm.job.state import Phase
from girder_worker_slurm.job.verdict import (
    cancelled,
    launch_failed,
    lost,
    never_started,
    requeued,
    vanished,
    verdict_of_event,
    verdict_of_last_word,
    verdict_of_slurm,
)
from girder_worker_slurm.options.shapes import plain_options
from girder_worker_slurm.script.render import sbatch_head
from girder_worker_slurm.script.resources import head_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from girder_worker_slurm.cluster.interface import JobDetail
    from girder_worker_slurm.job.girder_side import GirderSide
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.services import Services, StoryRules
    from girder_worker_slurm.job.state import EarlierAttempt, JobState, Verdict

logger = logging.getLogger(__name__)

#: How often a submission that never started is repeated before the job is given up.
_MAX_SUBMITS = 3
#: Verdicts of jobs that Slurm may still have in its queue.
_MAY_STILL_WAIT = ("held", "launch_failed", "requeued")
_KILL_AFTER_SECONDS = 60.0
#: So long the log of a job that has vanished must stand still before the job counts as dead.
_SILENCE_SECONDS = 60.0
_LOOK_FOR_LIFE_SECONDS = 30.0
#: A script that came to its end has left a word, which is seen once the mount of a network file system has forgotten what
#: it remembers: NFS after a minute at most, unless it is told otherwise.
_LATEST_WORD_SECONDS = 120.0
#: The least that Slurm remembers a job which has ended (MinJobAge).
_LEAST_MEMORY_SECONDS = 2.0
_CANCEL_AGAIN_SECONDS = 20.0
_LONGEST_CANCEL_PAUSE_SECONDS = 300.0


def seconds_to_next_cancel(job: LiveJob) -> float:
    """When a cancel that was sent is to be sent again; a node that does not answer may take hours to end a job."""
    asked_for = job.cancel_sent_at - job.cancel_begun_at
    return max(_CANCEL_AGAIN_SECONDS, min(asked_for / 2, _LONGEST_CANCEL_PAUSE_SECONDS))


class SlurmSide:
    """The steps' conversation with Slurm."""

    def __init__(self, services: Services, rules: StoryRules, girder: GirderSide) -> None:
        self._do = services
        self._rules = rules
        self._girder = girder

    def submit(self, job: LiveJob) -> None:
        """Records the intent, submits, records the id."""
        title = self._girder.announce_before_submission(job)
        state = job.record.append("intent", durable=True, title=title)
        if running := self._do.runs_of(state).claimant(state.token):
            # An earlier submission that was given up for lost has surfaced.
            self._submitted(job, SlurmJobId(running))
            return
        try:
            slurm_job_id = self._submit(job)
        except SubmitUnsure:
            raise
        except SubmitRejected as error:
            if not self._do.runs_of(state).claim(state.token, "refused by Slurm"):
                # Meanwhile one that was given up for lost has started: it is looked up.
                msg = f"Slurm refused the job, of which another submission runs: {error}"
                raise SubmitUnsure(msg) from error
            raise SubmitRejected(str(error)) from error
        except Unreachable:
            # Slurm has certainly not taken it (a limit, or the command could not be run): no doubt to resolve.
            job.record.append("lost")
            raise
        self._submitted(job, slurm_job_id)

    def resolve(self, job: LiveJob) -> None:
        """After any doubt whether Slurm has the job: looks it up by its token, and submits again if it has not."""
        state = job.state
        # Whoever has the claim runs, or has run: its id is the one that counts.
        running = state.slurm_job_id or self._do.runs_of(state).claimant(state.token)
        if running:
            self._submitted(job, SlurmJobId(running))
            return
        rows = self._do.cluster_of(job).find(state.token, state.unix_user)
        if state.cancel:
            self._cancel_unsure(job, [row.slurm_job_id for row in rows])
            return
        if rows:
            self._submitted(job, rows[-1].slurm_job_id)
            return
        job.missing += 1
        if job.missing < 2:
            raise Later(self._rules.resolve_seconds)
        # A request in a frozen controller may still surface; the claim then lets only one of the two start.
        job.missing = 0
        job.resubmits += 1
        if job.resubmits >= _MAX_SUBMITS:
            if not self._do.runs_of(state).claim(state.token, "given up"):
                # At the last moment one of them has started.
                raise Later(self._rules.resolve_seconds)
            job.record.decide(never_started(state, job.resubmits))
            return
        job.record.append("lost")

    def cancel(self, job: LiveJob) -> None:
        """Ends the job because it was cancelled or deleted in Girder."""
        state = job.state
        if not state.is_in_slurm:
            if state.phase is Phase.RENDERED and not self._do.runs_of(state).claim(state.token, "cancelled"):
                # A submission that was given up for lost has surfaced and runs: it is cancelled as any other.
                job.record.append("intent")
                self._submitted(job, SlurmJobId(self._do.runs_of(state).claimant(state.token)))
                return
            job.record.decide(cancelled(state))
            return
        self.cancel_in_slurm([job])
        if job.state.phase < Phase.DECIDED:
            raise Later(seconds_to_next_cancel(job))

    def cancel_in_slurm(self, jobs: Sequence[LiveJob]) -> None:
        """Cancels jobs of one Unix user and one cluster that are in Slurm. Those that had not started have ended then."""
        now = self._do.clock.monotonic()
        never_started = {job for job in jobs if self._keeps_from_starting(job)}
        # By name: a controller that crashed may have lost the job and given its id to another one.
        stubborn = {
            job
            for job in jobs
            if job not in never_started
            and job.cancel_begun_at
            and now - job.cancel_begun_at >= _KILL_AFTER_SECONDS
        }
        for kill in (False, True):
            if asked := [job for job in jobs if (job in stubborn) is kill]:
                state = asked[0].state
                tokens = [job.state.token for job in asked]
                self._do.cluster_of(asked[0]).cancel(tokens, kill=kill, unix_user=state.unix_user)
        for job in jobs:
            # Only now: what did not reach Slurm has not given the job its time to end.
            job.cancel_begun_at = job.cancel_begun_at or now
            job.cancel_sent_at = now
            if job in never_started:
                # It cannot start any more, whatever Slurm does from here on.
                job.record.decide(cancelled(job.state))

    def _keeps_from_starting(self, job: LiveJob) -> bool:
        """Takes the claim of a job that is to be cancelled; False if the job has it, or if it cannot be taken now."""
        state = job.state
        if state.started is not None:
            return False
        try:
            return self._do.runs_of(state).claim(state.token, "cancelled")
        except OSError as error:
            # A full disk, a quota: no reason to let it run on.
            logger.warning("Job %s is cancelled, but its claim cannot be taken: %s", job.task_id, error)
            return False

    def judge(self, job: LiveJob) -> None:
        """Decides how the job ended."""
        state = job.state
        if state.cancel and state.ended is not None:
            job.record.decide(cancelled(state))
            return
        # First, because each look at the log comes here again, and Slurm would be asked each time.
        self._await_whole_log(job)
        verdict = verdict_of_event(state) or job.waits_in_vain or self._verdict_with_slurm(job)
        if verdict is None:
            return
        may_still_wait = job.waits_in_vain is not None or verdict.code in _MAY_STILL_WAIT
        if state.cancel:
            verdict = cancelled(state)
        if is_tried_again(state, verdict, self._rules.retries):
            self._begin_again(job, verdict)
        else:
            job.record.decide(with_earlier(state, verdict))
        job.waits_in_vain = None
        if may_still_wait:
            # Only now: a cancelled job whose verdict is not recorded would look like one that somebody else cancelled.
            # If it does not reach Slurm now, the last step does it again.
            with contextlib.suppress(Unreachable):
                self._do.cluster.cancel([state.token], unix_user=state.unix_user)

    def take_out_of_queue(self, state: JobState) -> None:
        """Cancels what an ended job may have left in Slurm's queue, where it would do nothing but wait."""
        left: list[EarlierAttempt | JobState] = list(state.earlier)
        if state.verdict is not None and state.verdict.code in _MAY_STILL_WAIT:
            left.append(state)
        for user in sorted({attempt.unix_user for attempt in left}):
            tokens = [attempt.token for attempt in left if attempt.unix_user == user]
            self._do.cluster.cancel(tokens, unix_user=user)

    def _submit(self, job: LiveJob) -> SlurmJobId:
        """Submits, if possible not to nodes that failed the job before."""
        state = job.state
        run = self._do.runs_of(state).path(state.token)
        # Records of older versions do not repeat what all jobs have.
        options = plain_options(self._rules.slurm_options) if state.options is None else state.options
        submission = Submission(state.token, run / "job.slurm", run / "slurm.out", options, state.unix_user)
        cluster = self._do.cluster_of(job)
        if nodes := avoided_nodes(state):
            script = self._do.runs_of(state).read(state.token, "job.slurm").decode("utf-8", errors="replace")
            head = head_options(sbatch_head(script))
            elsewhere = options_avoiding(options, nodes, head)
            try:
                return cluster.submit(replace(submission, options=elsewhere))
            except SubmitRejected as error:
                if elsewhere == options:
                    raise
                self._girder.feed(job).note(
                    f"Slurm does not take it without {', '.join(nodes)} ({error}): submitted for all nodes."
                )
        return cluster.submit(submission)

    def _submitted(self, job: LiveJob, slurm_job_id: SlurmJobId) -> None:
        job.record.append("submitted", slurm_job_id=slurm_job_id, at=self._do.clock.now())
        job.decoded = None
        job.missing = 0
        job.final_since = 0.0
        job.waiting_message = "Slurm: submitted"
        self._girder.feed(job).note(f"Submitted as Slurm job {slurm_job_id}.")

    def _goes_on_as(self, job: LiveJob, slurm_job_id: str) -> None:
        """The job's other submission is the one that counts."""
        job.record.append("submitted", slurm_job_id=slurm_job_id, at=self._do.clock.now())
        job.missing = 0
        job.final_since = 0.0

    def _cancel_unsure(self, job: LiveJob, slurm_job_ids: list[SlurmJobId]) -> None:
        state = job.state
        won = self._do.runs_of(state).claim(state.token, "cancelled")
        self._do.cluster_of(job).cancel([state.token], unix_user=state.unix_user)
        if won:
            job.record.decide(cancelled(state))
        elif slurm_job_ids:
            self._submitted(job, slurm_job_ids[-1])
        else:
            raise Later(1.0)

    def _verdict_with_slurm(self, job: LiveJob) -> Verdict | None:
        state = job.state
        detail: JobDetail | None = None
        self._await_word(job)
        if state.slurm_job_id:
            detail = self._do.cluster_of(job).describe(SlurmJobId(state.slurm_job_id))
        seen = job.seen_end if job.final_since else None
        if (
            (detail is None or detail.token != state.token)
            and seen
            and seen.slurm_job_id == state.slurm_job_id
        ):
            # It has forgotten the job while its word was waited for; what it said before still holds.
            detail = seen
        if detail is None or detail.token != state.token:
            # Ids are given out again: a job of another name is not ours.
            return self._verdict_of_absence(job, is_id_of_another=detail is not None)
        job.missing = 0
        job.last_sign = None
        if detail.state not in FINAL_STATES:
            if state.ended is not None and detail.state in WAITING_STATES | {"CONFIGURING"}:
                # Slurm would start it once more; its claim is taken, so that would do nothing.
                return requeued(state, detail.slurm_job_id)
            if state.ended is not None or state.cluster == DIRECT:
                job.looks += 1
                raise Later(min(10.0, 0.5 * 1.2**job.looks))
            job.final_since = 0.0
            return None
        if state.ended is None and not self._do.runs_of(state).claim(state.token, f"ended: {detail.state}"):
            # It did start; its word may be on the way.
            claimant = self._do.runs_of(state).claimant(state.token)
            if claimant and claimant != state.slurm_job_id:
                # Another submission of the same token runs; the one looked at was turned away by the claim.
                self._goes_on_as(job, claimant)
                return None
            if not job.final_since:
                job.final_since = self._do.clock.monotonic()
            job.seen_end = detail
            job.waited_for_until = job.final_since + self._seconds_for_word(detail, state.cluster)
            self._await_word(job)
            if self._late_word(job):
                return None
        elif state.ended is None and _is_failed_launch(state, detail):
            return launch_failed(detail)
        return verdict_of_slurm(state, detail)

    def _seconds_for_word(self, detail: JobDetail, cluster: str) -> float:
        """How long the word of a job is waited for that has started and, as Slurm says, ended."""
        usual = 2 * self._rules.event_grace_seconds
        # Of a job that Slurm started again, the second script came to its end, because the first has the claim.
        by_itself = detail.state in ("COMPLETED", "FAILED") and not detail.signal and not detail.restarts
        # What was written on this host is seen here at once.
        return max(usual, _LATEST_WORD_SECONDS) if by_itself and cluster != DIRECT else usual

    def _await_word(self, job: LiveJob) -> None:
        """The word itself ends the wait; asking Slurm meanwhile would tell nothing new."""
        if job.state.ended is not None or not job.final_since:
            return
        until = job.waited_for_until
        if job.state.cancel or job.cancel_seen:
            until = min(until, job.final_since + 2 * self._rules.event_grace_seconds)
        left = until - self._do.clock.monotonic()
        if left > 0:
            raise Later(left)

    def _late_word(self, job: LiveJob) -> bool:
        """Takes a last word that another worker moved out of the spool before it lost the job.

        Without one, that of a container which had ended when its job was killed: in the site's commands after it.
        """
        state = job.state
        heard = [
            event for event in self._do.runs_of(state).kept_events(state.token) if event.nonce == state.nonce
        ]
        for kind in ("ended", "finished"):
            for event in heard:
                if event.kind == kind:
                    job.record.append("ended", **event.entry)
                    return True
        return False

    def _begin_again(self, job: LiveJob, verdict: Verdict) -> None:
        """A new attempt, with a token, a nonce and a run directory of its own: the one before may still be alive."""
        before = job.state.token
        self._girder.feed(job).read(final=True)
        # From here on nothing of it is read any more, and its Slurm job is cancelled wherever it shows.
        job.record.append("again", token=before, code=verdict.code, nodes=verdict.nodes, why=verdict.sentence)
        job.begin_anew()
        self._do.runs_of(job.state).remove_data(before)
        self._girder.tell_retries(job)
        with contextlib.suppress(Unreachable):
            self._girder.flush(job)

    def _verdict_of_absence(self, job: LiveJob, *, is_id_of_another: bool) -> Verdict | None:
        state = job.state
        if state.ended is not None:
            # Slurm forgot it already; the script's own word is all there is. It gives ids out again after a crash, and
            # ends what it finds running under them (seen: 22.05.8).
            is_lost = is_id_of_another or self._has_just_ended(state.ended)
            return verdict_of_last_word(state, is_lost=is_lost and not state.cluster)
        claimant = self._do.runs_of(state).claimant(state.token)
        if claimant and claimant != state.slurm_job_id:
            # Another submission of the same token runs; the one that is gone was turned away by the claim.
            self._goes_on_as(job, claimant)
            return None
        if claimant or state.started is not None:
            age = state.seconds_since_submission(self._do.clock.now())
            if state.cluster == DIRECT and age < self._do.direct.limit_seconds + 10:
                # It was started by the worker before this one, and may still run.
                raise Later(1.0)
            if self._late_word(job):
                return None
            if not state.cancel and not self._is_silent(job):
                raise Later(_LOOK_FOR_LIFE_SECONDS)
            return lost(state) if is_id_of_another and not state.cluster else vanished(state)
        if state.cancel:
            self._do.runs_of(state).claim(state.token, "cancelled")
            return cancelled(state)
        job.resubmits += 1
        if job.resubmits >= _MAX_SUBMITS:
            if not self._do.runs_of(state).claim(state.token, "given up"):
                # At the last moment it has started.
                raise Later(self._rules.resolve_seconds)
            return never_started(state, job.resubmits)
        self._girder.feed(job).note(
            f"Slurm lost job {state.slurm_job_id} before it started; it is submitted again."
        )
        job.missing = 0
        job.record.append("lost")
        return None

    def _is_silent(self, job: LiveJob) -> bool:
        """Whether a job that Slurm does not know any more has shown no sign of life for a while.

        Nodes go on with jobs that a controller has lost in a crash (seen: 22.05.8).
        """
        size, now = self._girder.feed(job).output_bytes, self._do.clock.monotonic()
        if job.last_sign is None or job.last_sign[0] != size:
            job.last_sign = (size, now)
        return now - job.last_sign[1] >= _SILENCE_SECONDS

    def _has_just_ended(self, ended: Mapping[str, object]) -> bool:
        at = ended.get("at")
        return isinstance(at, (int, float)) and 0 <= self._do.clock.now() - at < _LEAST_MEMORY_SECONDS

    def _await_whole_log(self, job: LiveJob) -> None:
        """Waits until the shared file system shows the log as long as the job left it."""
        feed = self._girder.feed(job)
        ended = job.state.ended or {}
        expected = ended.get("log_bytes", 0)
        now = self._do.clock.monotonic()
        if feed.output is None or not isinstance(expected, int):
            return
        if expected > 0 and not feed.reaches(expected):
            if not job.final_since:
                job.final_since = now
            if now - job.final_since < self._rules.event_grace_seconds:
                raise Later(0.25)


def _is_failed_launch(state: JobState, detail: JobDetail) -> bool:
    """Whether Slurm gave a node to a job that never began there, and ended it.

    It cancels jobs whose prolog failed, and jobs whose ids it had given out before and lost with its state. It fails
    jobs whose node could not open their output, say on a file system that is read-only for a while (all seen with
    22.05.8).
    """
    if state.cancel or not detail.nodes:
        return False
    return detail.state == "CANCELLED" or (detail.state == "FAILED" and detail.reason == "JobLaunchFailure")
