"""What can go wrong, one class per thing a person would do differently.

::

    SlurmWorkerError
    ├── SettingsInvalid         a setting is wrong: file, line and what to write instead
    ├── StartRefused            the worker must not start here (root in use, wrong broker, missing program)
    ├── RecordDamaged           a record on disk cannot be read
    ├── NothingOwed             Girder has all of this job, or its worker still brings it
    ├── OwnershipLost           another worker has taken this job over: stop, touch nothing
    ├── JobError                ends this Girder job with ERROR; the message is for the scientist
    │   ├── MessageUndecodable  the message's classes are not installed here
    │   ├── NotSupported        the task asks for what a cluster cannot give
    │   ├── UserRefused         this Girder user may not run jobs here
    │   ├── OptionRefused       an sbatch option may not be asked for, or makes no sense
    │   ├── InputUnavailable    an input could not be fetched
    │   ├── SubmitRejected      Slurm refused the job
    │   ├── ContainerFailed     the analysis ended with an error
    │   ├── SlurmEndedJob       Slurm ended the job: time limit, memory, node failure, ...
    │   └── OutputRefused       Girder refused an output; it is kept on disk
    ├── JobCancelled            the job was cancelled in Girder; ends CANCELED
    ├── JobDeleted              the Girder job is gone: there is nobody to report to
    ├── TurnOver                others wait for the thread: the step goes on at its next turn
    └── Unreachable             try again later (``retryable``)
        ├── GirderUnreachable
        ├── ClusterUnreachable
        ├── WorkerStopping      the worker stops; the next one goes on
        ├── SubmitDeferred      Slurm's own submit limits: wait until jobs of ours have ended
        └── SubmitUnsure        it is not known whether Slurm took the job
"""

from __future__ import annotations


class SlurmWorkerError(Exception):
    """Base of all errors of this package."""

    retryable = False


class SettingsInvalid(SlurmWorkerError):
    """A setting is unknown or has a wrong value."""


class StartRefused(SlurmWorkerError):
    """The worker may not start as things are."""


class RecordDamaged(SlurmWorkerError):
    """A record directory does not hold what was written to it."""


class NothingOwed(SlurmWorkerError):
    """There is nothing to bring to Girder for this job, or not by hand."""


class OwnershipLost(SlurmWorkerError):
    """Another worker owns this job now."""


class JobError(SlurmWorkerError):
    """Ends one Girder job with ERROR; the message is shown to the user."""


class MessageUndecodable(JobError):
    """The task message cannot be turned back into Python objects here."""


class NotSupported(JobError):
    """The task asks for something that does not exist on a cluster."""


class UserRefused(JobError):
    """The site's mapping of users has no place for this Girder user."""


class OptionRefused(JobError):
    """An sbatch option does not exist, may not be asked for here, or has a value that cannot be meant."""


class InputUnavailable(JobError):
    """An input of the job could not be fetched from Girder."""


class SubmitRejected(JobError):
    """Slurm refused the job and will refuse it again unless something is changed."""


class ContainerFailed(JobError):
    """The analysis itself ended with an error."""


class SlurmEndedJob(JobError):
    """Slurm, the node or an administrator ended the job."""


class OutputRefused(JobError):
    """Girder refused an output for good."""


class JobCancelled(SlurmWorkerError):
    """The job was cancelled in Girder."""


class JobDeleted(SlurmWorkerError):
    """The Girder job does not exist any more."""


class TurnOver(SlurmWorkerError):
    """The step has had a thread for long, and others wait for one: it goes on at its next turn."""

    seconds = 0.0


class Unreachable(SlurmWorkerError):
    """Something did not answer; trying again later is right."""

    retryable = True


class GirderUnreachable(Unreachable):
    """Girder did not answer, or answered with a server error."""


class ClusterUnreachable(Unreachable):
    """Slurm did not answer."""


class JobsHidden(ClusterUnreachable):
    """Slurm does not show the worker the jobs of other users, so that one which is not listed may be alive."""


class WorkerStopping(Unreachable):
    """The worker stops; the step is taken up at the next start."""


class SubmitDeferred(Unreachable):
    """Slurm accepts no more jobs of this user for now; `is_for_all` says that it accepts nobody's."""

    def __init__(self, message: str, *, is_for_all: bool = False) -> None:
        super().__init__(message)
        self.is_for_all = is_for_all


class SubmitUnsure(Unreachable):
    """Whether Slurm took the job is not known; look it up by its token before doing anything else."""
