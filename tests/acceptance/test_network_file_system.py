"""Two hosts with one store on a real network file system, whose mounts see each other's changes late."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.support.images import build_oci_layout
from tests.support.network_mount import LIKE_NFS, STALE_CONTENTS, NetworkMounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.stack import Stack

pytestmark = [pytest.mark.girder, pytest.mark.timeout(180)]

# Whoever is inside has made a file that nobody else could make; it lies on a local disk, which both hosts have.
FIGHT = """
import os, random, sys, time
from pathlib import Path
from girder_worker_singularity import Holder, Lease, SystemClock
path, inside, held = Path(sys.argv[1]), Path(sys.argv[2]), 0
while held < 30:
    with Lease.acquire(path, Holder.this_process(), SystemClock(), wait_seconds=60) as lease:
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        lease.check()
        time.sleep(random.random() * 0.01)
        lease.check()
        inside.unlink()
        held += 1
print(held)
"""
HOLD = """
import sys
from pathlib import Path
from girder_worker_singularity import Holder, Lease, SystemClock
with Lease.acquire(Path(sys.argv[1]), Holder.this_process(), SystemClock()) as lease, lease.kept_alive(0.2):
    print("held", flush=True)
    sys.stdin.readline()
    lease.check()
"""
WATCH = """
import sys, time
from pathlib import Path
from girder_worker_singularity import LeaseWatch, SystemClock
watch, looks, until = LeaseWatch(Path(sys.argv[1]), SystemClock(), stale_after_seconds=3), set(), time.time() + 5
while time.time() < until:
    looks.add(watch.look().value)
    time.sleep(0.2)
print(*looks)
"""
STORE = """
import sys
from pathlib import Path
from girder_worker_singularity import *
from girder_worker_singularity.sif.use import take
from girder_worker_singularity.source.image_sources import SourceOptions
what, root, local = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
places = SourceOptions(places=("archive",), archive_dir=local / "archives")
options = StoreOptions(ConvertOptions(tmp_dir=local / "build"), minimum_free_bytes=0, sources=places)
store = SifStore(root, LocalCommandRunner(), SystemClock(), options)
"""
ENSURE = (
    STORE
    + """
sif = store.ensure("team/tool:1", policy=what)
print("converted" if sif.converted else "found", run_on_this_host(sif, [], runner=LocalCommandRunner(), scratch=local).stdout)
"""
)
# The programs speak to each other through the test, so that each has looked before the other acts.
USER = (
    STORE
    + """
sif = store.find("team/tool:1")
print("looked", flush=True)
sys.stdin.readline()
print(take(sif.path, SystemClock()), flush=True)
"""
)
PRUNER = (
    STORE
    + """
from girder_worker_singularity.sif import prune
rules, day = prune.PruneRules(unused_seconds=86400.0), 86400.0
(one,) = prune.choose(prune.inventory(root), rules, SystemClock().now())
print("looked", flush=True)
sys.stdin.readline()
print(prune._remove(root, one, SystemClock()) or "removed", flush=True)
"""
)


class Hosts:
    """Two hosts, and a local disk that stands for those of both."""

    def __init__(self, mounts: NetworkMounts, local: Path) -> None:
        self.mounts, self.local = mounts, local

    def store(self, number: int, code: str, what: str = "if-not-present"):
        """A program with a store, on one host."""
        root = self.mounts.path(number, "sifs")
        return self.mounts.begin(number, [sys.executable, "-c", code, what, root, self.local])

    def image(self, says: str) -> None:
        """From now on the image says this."""
        layout = self.local / "archives/team_tool_1"
        shutil.rmtree(layout, ignore_errors=True)
        files = {
            "/run.sh": f"#!/bin/sh\necho {says}\n",
            "/wait.sh": "#!/bin/sh\necho begun; read x; exec /run.sh\n",
        }
        build_oci_layout(layout, files, entrypoint=["/run.sh"])

    def age(self) -> None:
        """As if the SIF had been made and last used a month ago, seen from both hosts."""
        month = 30 * 86400.0
        code = (
            "import json, os, sys, time; from pathlib import Path; root = Path(sys.argv[1]); then = time.time() - float(sys.argv[2])\n"
            "note = root / 'team_tool_1.sif.json'; note.write_text(json.dumps({**json.loads(note.read_text()), 'converted_at': then}))\n"
            "(root / '.used').mkdir(exist_ok=True); (root / '.used/team_tool_1.sif').write_text(f'{then:020.6f}\\n')\n"
        )
        self.mounts.run(1, [sys.executable, "-c", code, self.mounts.path(1, "sifs"), str(month)])


@pytest.fixture
def hosts(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Hosts]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    base = stack.shared.parent / f"network-{uuid.uuid4().hex[:8]}"
    local = stack.shared / base.name
    local.mkdir(mode=0o700)
    shutil.chown(local, stack.user, stack.user)
    try:
        with NetworkMounts(stack, base, getattr(request, "param", LIKE_NFS)) as mounts:
            mounts.run(1, ["mkdir", mounts.path(1, "sifs")])
            yield Hosts(mounts, local)
    finally:
        shutil.rmtree(local, ignore_errors=True)


def test_a_lease_never_lets_two_in_whatever_host_they_are_on(hosts: Hosts) -> None:
    fighters = [
        hosts.mounts.begin(
            number,
            [sys.executable, "-c", FIGHT, hosts.mounts.path(number, "lease"), hosts.local / "in"],
        )
        for number in (1, 2, 1, 2)
    ]
    assert [hosts.mounts.outcome(fighter) for fighter in fighters] == ["30\n"] * 4


@pytest.mark.parametrize("hosts", [LIKE_NFS, STALE_CONTENTS], ids=["nfs", "stale"], indirect=True)
def test_a_lease_that_is_kept_alive_is_seen_to_be_by_the_other_host(hosts: Hosts) -> None:
    holder = hosts.mounts.begin(1, [sys.executable, "-c", HOLD, hosts.mounts.path(1, "lease")])
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    looks = hosts.mounts.run(2, [sys.executable, "-c", WATCH, hosts.mounts.path(2, "lease")])
    hosts.mounts.outcome(holder)
    assert looks == "held\n"


def test_two_hosts_make_one_sif_and_run_it_and_follow_a_new_one(hosts: Hosts) -> None:
    hosts.image("first")
    both = [hosts.store(number, ENSURE) for number in (1, 2)]
    said = sorted(hosts.mounts.outcome(each) for each in both)
    assert said == ["converted first\n\n", "found first\n\n"]
    sif = hosts.mounts.path(2, "sifs/team_tool_1.sif")
    runs = hosts.mounts.begin(2, ["apptainer", "--silent", "exec", sif, "/wait.sh"])
    assert runs.stdout is not None
    assert runs.stdout.readline() == "begun\n"
    hosts.image("second")
    assert hosts.mounts.outcome(hosts.store(1, ENSURE, "always")) == "converted second\n\n"
    # The container goes on with its file, whatever has its name now.
    assert hosts.mounts.outcome(runs) == "first\n"
    assert list(hosts.mounts.path(1, "sifs/.leases").iterdir()) == []


def _word(process, *, go: bool = False) -> str:
    if go:
        process.stdin.write("\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def test_who_takes_a_sif_that_the_other_host_removed_a_moment_ago_asks_for_it_again(hosts: Hosts) -> None:
    hosts.image("x")
    hosts.mounts.outcome(hosts.store(1, ENSURE))
    hosts.age()
    user, pruner = hosts.store(2, USER), hosts.store(1, PRUNER)
    assert (_word(user), _word(pruner)) == ("looked", "looked")
    assert _word(pruner, go=True) == "removed"
    assert _word(user, go=True) == "False"
    hosts.mounts.outcome(user)
    hosts.mounts.outcome(pruner)


def test_a_sif_that_the_other_host_took_a_moment_ago_is_not_removed(hosts: Hosts) -> None:
    hosts.image("x")
    hosts.mounts.outcome(hosts.store(1, ENSURE))
    hosts.age()
    user, pruner = hosts.store(2, USER), hosts.store(1, PRUNER)
    assert (_word(user), _word(pruner)) == ("looked", "looked")
    assert _word(user, go=True) == "True"
    assert _word(pruner, go=True) == "it was used or replaced a moment ago"
    hosts.mounts.outcome(user)
    hosts.mounts.outcome(pruner)
