"""Names every directory and file of one stack; creates nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import DevstackError

DEFAULT_BASE = "/var/tmp/girder-slurm-devstack"  # noqa: S108  # made by root with its own rights
# munge's socket lies 17 characters below the base; the kernel allows 107 for a socket's path.
LONGEST_BASE = 80


@dataclass(frozen=True)
class Layout:
    """The paths below one base directory."""

    base: Path

    @classmethod
    def from_text(cls, text: str) -> Layout:
        """The layout below the directory that `text` names; raises if no stack can live there."""
        base = Path(text)
        if not base.is_absolute() or base == Path("/"):
            raise DevstackError(f"DEVSTACK_DIR must be an absolute path below /, not {text!r}")
        base = Path(*base.parts)
        if len(str(base)) > LONGEST_BASE:
            raise DevstackError(
                f"DEVSTACK_DIR is longer than {LONGEST_BASE} characters: choose a shorter one"
            )
        if any(character in str(base) for character in " \t\n'\"\\,#%*"):
            raise DevstackError(f"DEVSTACK_DIR has a character that slurm.conf cannot carry: {text!r}")
        return cls(base)

    def below(self, *parts: str) -> Path:
        """A path below the base directory."""
        return self.base.joinpath(*parts)

    @property
    def state_file(self) -> Path:
        """Ports, accounts and findings; no secret."""
        return self.below("state.json")

    @property
    def secrets_file(self) -> Path:
        """Generated passwords, for root only."""
        return self.below("secrets.json")

    @property
    def env_file(self) -> Path:
        """What users of the stack read."""
        return self.below("env")

    @property
    def lock_file(self) -> Path:
        """Held by the devstack command that is at work."""
        return self.below("lock")

    @property
    def bin(self) -> Path:
        """Commands for users of the stack."""
        return self.below("bin")

    @property
    def etc(self) -> Path:
        """Configuration files that we write."""
        return self.below("etc")

    @property
    def log(self) -> Path:
        """One log file per process."""
        return self.below("log")

    @property
    def run(self) -> Path:
        """Who runs: one record per process, and sockets."""
        return self.below("run")

    @property
    def temporary(self) -> Path:
        """TMPDIR of the services."""
        return self.below("tmp")

    @property
    def shared(self) -> Path:
        """The job user's own directory, which all nodes see."""
        return self.below("shared")

    @property
    def assetstore(self) -> Path:
        """Girder's files, readable for the job user."""
        return self.below("assetstore")

    @property
    def slurm_conf(self) -> Path:
        """The private cluster's configuration."""
        return self.below("etc", "slurm", "slurm.conf")

    @property
    def certificates(self) -> Path:
        """The stack's own authority, and what it has signed."""
        return self.below("etc", "certificates")

    @property
    def munge_socket(self) -> Path:
        """The private munge daemon's socket."""
        return self.below("run", "munge", "socket")

    @property
    def girder_venv(self) -> Path:
        """The virtual environment with Girder and its plugins."""
        return self.below("opt", "girder")

    @property
    def apptainer(self) -> Path:
        """The private Apptainer, when the machine has none."""
        return self.below("opt", "apptainer")

    @property
    def mongod(self) -> Path:
        """The private MongoDB server, when the machine has none."""
        return self.below("opt", "mongodb", "mongod")
