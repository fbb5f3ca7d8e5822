"""The site's mapping of users: whether it can be read, and which of its keys work with the Girder at hand."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import TYPE_CHECKING

from girder_worker_slurm.cluster.run_as import own_name
from girder_worker_slurm.doctor.finding import fail, ok, warn
from girder_worker_slurm.doctor.girder_server import has_plugin
from girder_worker_slurm.errors import RecordDamaged, SettingsInvalid
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.users.mapping_file import read_mapping

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.job.state import GirderUser, JobState
    from girder_worker_slurm.settings import Settings
    from girder_worker_slurm.users.mapping import UserMapping

CHECK = "users"
MAPPING = "mapping of users"

_RECENT_JOBS = 20
_SCOPE = "GIRDER_WORKER_JOB_GC_SCOPE=core.user_info.read"


def check_mapping(settings: Settings) -> Iterator[Finding]:
    """Whether the mapping file makes sense; as the start needs it."""
    path = settings.users.mapping_file
    if path is None:
        yield ok(MAPPING, "There is no mapping: all users are alike.")
        return
    try:
        mapping = read_mapping(path, settings.users.unmapped)
    except SettingsInvalid as error:
        yield fail(MAPPING, str(error), "Correct that file, or the name of it in [users].")
        return
    keys = Counter(entry.key for entry in mapping.entries)
    counted = ", ".join(f"{count} by {key}" for key, count in keys.items())
    unmapped = "are refused" if mapping.unmapped == "refuse" else "run as if there were no mapping"
    yield ok(MAPPING, f"{path}: {counted or 'nobody'}; jobs of others {unmapped}.")
    others = [user for user in mapping.unix_users if user != own_name()]
    if others and not (settings.users.run_root and settings.users.unix_users):
        yield fail(
            MAPPING,
            f"{path} names Unix users whom jobs are to run as ({', '.join(others[:3])}{' ...' if others[3:] else ''}), but"
            " `run_root` or `unix_users` in [users] is not set.",
            "Set both, see docs/howto/users.md; or take `unix_user` and `mapped_user` out of the file, and all jobs run as"
            f" {own_name()}.",
        )
    if path.stat().st_mode & 0o077 and "ssh_private_key_b64" in path.read_text(encoding="utf-8"):
        yield warn(MAPPING, f"{path} holds private keys and others may read it.", f"Run: chmod 600 {path}")


def check_users(settings: Settings, *, timeout_seconds: float) -> Iterator[Finding]:
    """Whether Girder tells what the mapping asks for: by our plugin there, or else by what it told about the latest jobs."""
    mapping = read_mapping(settings.users.mapping_file, settings.users.unmapped)
    jobs = list(recent_jobs(settings.jobs_root)) if mapping.is_set else []
    addresses = (settings.girder.api_url, *(job.girder.api_url for job in jobs if job.girder is not None))
    api_url = next(filter(None, addresses), "")
    told = bool(api_url) and has_plugin(api_url, timeout_seconds=timeout_seconds) is True
    yield from judge_users(mapping, [job.user for job in jobs if job.user is not None], by_plugin=told)


def judge_users(
    mapping: UserMapping, users: list[GirderUser], *, by_plugin: bool = False
) -> Iterator[Finding]:
    """What our plugin, or the users of the latest jobs, the last one first, say about the Girder at hand."""
    if not mapping.is_set:
        return
    if not mapping.needs_profile:
        yield ok(CHECK, "Logins and ids are told by every Girder 5.")
        return
    if by_plugin:
        yield ok(CHECK, "Girder tells e-mail addresses and groups by its plugin worker_slurm.")
        return
    remedy = (
        f"Start Girder and its local worker with {_SCOPE} in their environment, then run a CLI that has an input or an"
        " output and look again. Or install this package in Girder (docs/howto/server-plugin.md)."
    )
    if not users:
        yield warn(
            CHECK,
            "Whether Girder tells e-mail addresses and groups is not known before a job has run; as delivered it does not.",
            remedy,
        )
        return
    if not users[0].email:
        yield warn(
            CHECK,
            f"Girder told neither the e-mail address nor the groups of {users[0].login or users[0].id} for the last job,"
            " if they were asked for then.",
            remedy,
        )
        return
    yield ok(CHECK, f"Girder tells e-mail addresses and groups; the last job was {users[0].login}'s.")
    nameless = {group for user in users for group, name in user.groups.items() if not name}
    if mapping.needs_group_names and nameless:
        yield warn(
            CHECK,
            f"Girder does not tell the names of groups that are not public ({', '.join(sorted(nameless))}); their members"
            " count as unmapped.",
            "Make them public in Girder, or write `group_id` instead of `group` throughout the mapping.",
        )


def recent_jobs(root: Path) -> Iterator[JobState]:
    """The latest jobs of a jobs root, the last one first."""
    found = []
    for parent in (root / "record", root / "ended"):
        for path in parent.glob("[!.]*/state.jsonl"):
            try:
                found.append((path.stat().st_mtime, path.parent))
            except OSError:
                continue  # it ended meanwhile
    for _, path in heapq.nlargest(_RECENT_JOBS, found):
        try:
            yield Record.load(path, worker_id="").state
        except (OSError, RecordDamaged):
            continue
