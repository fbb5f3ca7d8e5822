"""What a command that could not be started means."""

from __future__ import annotations

import pytest

from girder_worker_singularity.command_runner import CommandError, CommandNotStarted, LocalCommandRunner


def test_a_program_that_cannot_be_started_is_no_program_that_cannot_be_started_now(tmp_path):
    strange = tmp_path / "strange"
    strange.write_bytes(b"\x7fELF nonsense")
    strange.chmod(0o700)
    with pytest.raises(CommandError) as caught:
        LocalCommandRunner().run([str(strange)], timeout_seconds=5)
    assert not isinstance(caught.value, CommandNotStarted)
