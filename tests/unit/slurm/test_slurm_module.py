"""Slurm's commands from a module, with a real login shell and a site's `module` in its profile."""

from __future__ import annotations

import pytest

from girder_worker_singularity.command_runner import LocalCommandRunner
from girder_worker_slurm.cluster.slurm_module import slurm_environment
from girder_worker_slurm.errors import StartRefused

_MODULE = """\
echo "a site's banner"
module() {
  echo "on stdout: $*"
  [ "$1 $2" = "load slurm/23 b" ] || { echo "Lmod: no module $2" >&2; return %d; }
  export PATH="/opt/slurm 23/bin:$PATH" SLURM_CONF=/etc/slurm23.conf ODD=$'two\\nlines=x'
}
"""


@pytest.fixture
def home(tmp_path):
    def write(code=1):
        (tmp_path / ".bash_profile").write_text(_MODULE % code)
        return {"HOME": str(tmp_path), "PATH": "/opt/mine/bin:/usr/bin:/bin"}

    return write


def test_without_a_module_the_environment_is_as_it_is():
    given = {"PATH": "/bin"}
    assert slurm_environment("", LocalCommandRunner(), given) is given


def test_what_the_module_sets_is_there_whatever_it_prints(home):
    environment = slurm_environment("slurm/23 b", LocalCommandRunner(), home())
    assert environment["PATH"].startswith("/opt/slurm 23/bin:")
    assert environment["PATH"].count("/opt/mine/bin") == 1
    assert environment["SLURM_CONF"] == "/etc/slurm23.conf"
    assert environment["ODD"] == "two\nlines=x"


def test_a_module_that_cannot_be_loaded_is_a_reason_not_to_start(home):
    with pytest.raises(StartRefused, match=r"nope could not be loaded: .*Lmod: no module nope\. Correct"):
        slurm_environment("nope", LocalCommandRunner(), home())


def test_a_site_without_modules_is_told_so(tmp_path):
    with pytest.raises(StartRefused, match="module: command not found"):
        slurm_environment("slurm", LocalCommandRunner(), {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})


def test_a_name_is_never_read_as_a_command(home, tmp_path):
    with pytest.raises(StartRefused):
        slurm_environment(f"x; touch {tmp_path}/made", LocalCommandRunner(), home())
    assert not (tmp_path / "made").exists()
