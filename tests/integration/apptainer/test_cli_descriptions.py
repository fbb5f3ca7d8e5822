"""Real images that describe their CLIs well, loudly, or never."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from girder_worker_singularity import LocalCommandRunner
from girder_worker_singularity.errors import CliContractViolated
from girder_worker_singularity.run.cli_contract import list_clis, run_on_this_host
from tests.support.girder_site import wait_until

LOUD = """#!/bin/sh
echo "Starting {memcached} <up> ..."
case "$1" in
  --list_cli) echo '{"X": {}, "J": {"desc-type": "json"}, "Y": {"desc-type": "yaml"}}' ;;
  X) echo '<executable><title>T</title></executable>' ;;
  J) echo '{"title": "T"}' ;;
  Y) printf 'title: T\\nparameter_groups: []\\n' ;;
esac
echo "warning: done" >&2
echo "all done"
"""
HANGS = "#!/bin/sh\necho '{'\nsleep 1000 & sleep 1000\n"
FLOODS = (
    '#!/bin/sh\necho \'{"A": {}}\'\n[ "$1" = --list_cli ] || head -c 40000000 /dev/zero | tr "\\\\0" "<"\n'
)


@pytest.fixture
def describe(push, store, tmp_path):
    """What an image whose only program is this says of its CLIs."""

    def describe(program, **how):
        sif = store.ensure(push(files={"/run.sh": program}, entrypoint=["/run.sh"]))
        runner = LocalCommandRunner()
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        return list_clis(
            sif, lambda arguments: run_on_this_host(sif, arguments, runner=runner, scratch=scratch, **how)
        )

    return describe


def test_descriptions_are_found_in_all_that_an_image_prints(describe):
    assert {cli.name: cli.description for cli in describe(LOUD)} == {
        "X": "<executable><title>T</title></executable>",
        "J": json.dumps({"title": "T"}),
        "Y": "title: T\nparameter_groups: []\n",
    }


def test_an_image_that_hangs_is_ended_with_all_its_processes(describe, tmp_path):
    with pytest.raises(CliContractViolated, match="within 3 s"):
        describe(HANGS, timeout_seconds=3.0)
    mark = str(tmp_path).encode()

    def is_gone() -> bool:
        return not any(mark in command_line(process) for process in Path("/proc").glob("[0-9]*"))

    wait_until("nothing of the container is left", is_gone, seconds=20)


def test_an_image_that_never_stops_talking_is_refused(describe):
    with pytest.raises(CliContractViolated, match="more than can be read"):
        describe(FLOODS)


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
