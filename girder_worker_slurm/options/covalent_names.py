"""The section `[executors.slurm]` as Covalent's Slurm executor has it, in our settings' names. Pure.

Values are written as in TOML there: texts in quotes, lists in brackets.
"""

from __future__ import annotations

import json
import re

SECTION = "executors.slurm"
#: Their tables and ours.
TABLES = {
    "options": ("slurm", "options"),
    "srun_options": ("slurm", "srun_options"),
    "variables": ("slurm", "variables"),
}
#: Their keys, and the sections and names of our settings.
SETTINGS = {
    "remote_workdir": ("jobs", "root"),
    "slurm_path": ("slurm", "commands_dir"),
    "poll_freq": ("slurm", "poll_seconds"),
    "conda_env": ("slurm", "conda_env"),
    "bashrc_path": ("slurm", "bashrc_path"),
    "prerun_commands": ("slurm", "prerun_commands"),
    "postrun_commands": ("slurm", "postrun_commands"),
    "use_srun": ("slurm", "use_srun"),
    "srun_append": ("slurm", "srun_append"),
}
#: Keys that say nothing here, and why.
WITHOUT_MEANING = {
    "cache_dir": "nothing is cached beside the jobs root",
    "cleanup": "inputs and outputs always go at the end; `keep_days` in [jobs] is for logs",
    "create_unique_workdir": "each attempt has a directory of its own anyway",
    "ignore_versions": "the container brings its own Python",
    "log_stderr": "the log is in Girder",
    "log_stdout": "the log is in Girder",
    "retries": "an analysis that failed is not repeated by itself",
    "time_limit": "`time` in [slurm.options] limits a job",
}
#: Keys for another way to reach Slurm than this worker has.
BY_SSH = ("username", "address", "ssh_key_file", "cert_file")


def translated(section: str, key: str, value: str) -> tuple[str, str, str] | None:
    """Section, name and value of our own setting; the same again for what is not Covalent's; None if it means nothing here.

    Raises ValueError for a key that the executor does not have, or that cannot be meant here.
    """
    if section != SECTION and not section.startswith(f"{SECTION}."):
        return section, key, value
    table = section.removeprefix(SECTION).removeprefix(".")
    name = key.strip("\"'")
    text = _plain(value)
    if table in TABLES:
        # Its own default, and an option that the worker sets anyway.
        return None if (table, name) == ("options", "parsable") else (".".join(TABLES[table]), name, text)
    if name in WITHOUT_MEANING and not table:
        return None
    if table == "sshproxy" or (name in BY_SSH and not table):
        if text == "":
            return None
        msg = f"`{name}` of [{section}] is for a cluster that is reached by SSH; run the worker where Slurm's commands are and take it out"
        raise ValueError(msg)
    if name in SETTINGS and not table:
        return (*SETTINGS[name], text)
    known = sorted({*SETTINGS, *WITHOUT_MEANING, *BY_SSH, *(f"[{SECTION}.{name}]" for name in TABLES)})
    msg = f"`{name}` is not known in [{section}]; known there: {', '.join(known)}"
    raise ValueError(msg)


def _plain(value: str) -> str:
    """A value of TOML as our files have it: a list has an entry a line."""
    text = value.strip()
    if text.startswith("{"):
        msg = "a table in braces is not understood; write it as a section of its own"
        raise ValueError(msg)
    if text.startswith("["):
        entries = _json(re.sub(r",\s*\]$", "]", " ".join(text.splitlines())))
        return "\n".join(str(entry) for entry in entries)
    if text.startswith('"'):
        return str(_json(_without_comment(text)))
    if text.startswith("'"):
        return text[1:].partition("'")[0]
    return text.partition(" #")[0].strip()


def _without_comment(text: str) -> str:
    found = re.match(r'"(?:[^"\\]|\\.)*"', text)
    return found[0] if found else text


def _json(text: str) -> list[object] | str:
    try:
        value = json.loads(text)
    except ValueError as error:
        msg = f"{text!r} is no value of TOML that is understood here; lists are of texts in double quotes"
        raise ValueError(msg) from error
    if not isinstance(value, (list, str)):
        msg = f"{text!r} is neither text nor a list"
        raise ValueError(msg)  # noqa: TRY004 - it is data, not an argument
    return value
