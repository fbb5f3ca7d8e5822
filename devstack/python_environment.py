"""A virtual environment made from the system's Python, which every account can run."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from .commands import run, succeeds
from .errors import CommandFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Not sys.executable: an interpreter below /root is unusable for other accounts.
SYSTEM_PYTHON = "/usr/bin/python3"
_VERSIONS = """
import importlib.metadata, json
print(json.dumps({d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}))
"""


class PythonEnvironment:
    """One virtual environment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = path / "bin" / "python"

    def ensure(self) -> bool:
        """Make it if it is not there or does not work; True when it was made now."""
        if self.python.exists() and succeeds([self.python, "-m", "pip", "--version"]):
            return False
        run(
            [SYSTEM_PYTHON, "-m", "venv", "--clear", self.path],
            timeout_seconds=180,
            environment=_environment(),
        )
        return True

    def pip(self, *arguments: str | Path) -> None:
        """Run pip with the machine's own configuration."""
        argv = [self.python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
        run(argv, timeout_seconds=900, environment=_environment())

    def versions(self) -> Mapping[str, str]:
        """Installed distributions (names in lower case with hyphens) and their versions."""
        try:
            found: dict[str, str] = json.loads(
                run([self.python, "-c", _VERSIONS], environment=_environment())
            )
        except CommandFailedError:
            return {}
        return {name.lower().replace("_", "-"): version for name, version in found.items()}


def _environment() -> dict[str, str]:
    """The caller's environment (pip may be configured there) without what would redirect Python."""
    redirects = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")
    return {name: value for name, value in os.environ.items() if name not in redirects}
