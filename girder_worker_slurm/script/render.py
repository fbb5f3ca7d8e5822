"""The text of a job script. Every value passes one quoting filter; nothing of a user is in the text at all."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

_FORBIDDEN_LONG = ("array", "dependency", "hold", "wrap", "test-only", "uid", "gid", "clusters", "wait")
#: MAX_ARG_STRLEN of Linux: 32 pages, the closing NUL included.
_LONGEST_ARGUMENT_BYTES = 128 * 1024
_SHOWN_CHARACTERS = 60
_EXTENDS = re.compile(r'\s*\{%-?\s*extends\s+"singularity\.slurm"\s*-?%\}')
_PLAIN = re.compile(r"[A-Za-z0-9_.,:;=/&|@%+*-]*")
_FORBIDDEN_SHORT = frozenset({"a", "d", "H", "M", "W"})
#: Lines that divide a head into those of several jobs which start together.
_DIVIDERS = ("hetjob", "packjob")


@dataclass(frozen=True)
class JobScript:
    """The values of one job script."""

    token: str
    run: str
    spool: str
    log: str
    scratch: str
    #: What starts the container, up to but without the user's arguments, which the script reads from a file.
    container: tuple[str, ...]
    #: ``#SBATCH`` lines of a site's own script.
    sbatch_head: tuple[str, ...] = ()
    #: Variables of the container that say how many processors there are.
    thread_variables: tuple[str, ...] = ()
    #: Variables of the job that name its GPUs.
    gpu_variables: tuple[str, ...] = ()
    #: Variables of the container, and those of the job that they are taken from: `NAME=OTHER`.
    job_variables: tuple[str, ...] = ()
    #: Paths that have to be on the node when the container starts.
    site_paths: tuple[str, ...] = ()
    #: A file system image to be made before the container starts and removed after it, and the command that makes it.
    overlay: str = ""
    make_overlay: tuple[str, ...] = ()
    #: sbatch options, for whoever reads the script: those of sbatch's command line count.
    options: tuple[tuple[str, str], ...] = ()
    #: Lines of bash of the site, before and after the container.
    prerun: tuple[str, ...] = ()
    postrun: tuple[str, ...] = ()
    #: What stands in front of the container's own command line, quoted, a piece a line.
    launcher: tuple[str, ...] = ()


def render_script(script: JobScript, *, site_template: str = "") -> str:
    """The job script; raises ValueError when a value cannot be quoted, or the site's template does not make sense.

    `site_template` is the text of a template that begins with `{% extends "singularity.slurm" %}` and has blocks of
    its own for some of `head`, `prerun`, `container` and `postrun`.
    """
    for word in script.container:
        if "\0" in word:  # line breaks are quoted as all else: an image's entrypoint may hold a whole script
            msg = f"The value {word!r} cannot stand in a job script."
            raise ValueError(msg)
    values: tuple[str, ...] = (script.token, script.run, script.spool, script.log, script.scratch)
    values += (script.overlay, *script.make_overlay, *script.thread_variables, *script.gpu_variables)
    values += (*script.job_variables, *script.site_paths)
    if site_template and not _EXTENDS.match(site_template):
        msg = 'The site\'s template of the job script must begin with {% extends "singularity.slurm" %}.'
        raise ValueError(msg)
    from jinja2 import TemplateError  # noqa: PLC0415 - the command line has to start fast

    fields = {name: value for name, value in vars(script).items() if name != "options"}
    try:
        template = script_template(__package__, "singularity.slurm", values, site_template=site_template)
        return template.render(
            **fields, options=_readable(script.options), has_own_blocks=bool(site_template)
        )
    except TemplateError as error:
        msg = f"The site's template of the job script cannot be used: {error}."
        raise ValueError(msg) from error


def _readable(options: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Options as a script's head has them, without those that would have to be quoted.

    A blank in a value would let sbatch read what follows as another option.
    """
    plain = ((name, value) for name, value in options if _PLAIN.fullmatch(name) and _PLAIN.fullmatch(value))
    return tuple(
        f"-{name} {value}".rstrip() if len(name) == 1 else f"--{name}={value}" if value else f"--{name}"
        for name, value in plain
    )


def render_command_script(token: str, run: str, scratch_variables: tuple[str, ...]) -> str:
    """The script that runs one program of the worker as a job; ValueError when a value cannot be quoted.

    Program and environment stand in files of `run`; the variables are set to a directory on the node that is removed
    with the job.
    """
    template = script_template(__package__, "command.slurm", (token, run, *scratch_variables))
    return template.render(token=token, run=run, scratch_variables=scratch_variables)


def script_template(package: str, name: str, values: tuple[str, ...], *, site_template: str = "") -> Template:
    """A bash template of a package, with the filter `q` that quotes; ValueError if one of the values cannot be quoted."""
    for value in values:
        if "\0" in value or "\n" in value:
            msg = f"The value {value!r} cannot stand in a job script."
            raise ValueError(msg)
    return _compiled(package, name, site_template)


@lru_cache(maxsize=8)
def _compiled(package: str, name: str, site_template: str) -> Template:
    """A template, compiled once for all jobs: that takes as long as all else that the worker does for a job."""
    # Not at import: the command line has to start fast.
    from jinja2 import DictLoader, Environment, StrictUndefined  # noqa: PLC0415

    ours = files(package).joinpath(name).read_text(encoding="utf-8")
    environment = Environment(
        loader=DictLoader({name: ours}),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - bash, not HTML; every value passes `q`
    )
    environment.filters["q"] = shlex.quote
    return environment.from_string(site_template or ours)


def argument_file(arguments: tuple[str, ...]) -> bytes:
    """The arguments as the script reads them: each ended by NUL. Raises ValueError for one that no program can take."""
    encoded = []
    for argument in arguments:
        shown = repr(argument if len(argument) <= _SHOWN_CHARACTERS else f"{argument[:_SHOWN_CHARACTERS]}...")
        if "\0" in argument:
            msg = f"The argument {shown} has a NUL character; no program can take it."
            raise ValueError(msg)
        try:
            data = argument.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            msg = f"The argument {shown} is no valid text; no program can take it."
            raise ValueError(msg) from error
        if len(data) >= _LONGEST_ARGUMENT_BYTES:
            msg = f"The argument {shown} has {len(data)} bytes; Linux hands programs {_LONGEST_ARGUMENT_BYTES - 1} at most in one."
            raise ValueError(msg)
        encoded.append(data + b"\0")
    return b"".join(encoded)


def sbatch_head(site_script: str) -> tuple[str, ...]:
    """The ``#SBATCH`` lines of a site's own script: those that sbatch would read, before the first command."""
    head = []
    for line in site_script.splitlines():
        if line.startswith("#SBATCH"):
            head.append(line.rstrip())
        elif line.strip() and not line.startswith("#"):
            break
    return tuple(head)


def forbidden_head_option(head: tuple[str, ...]) -> str | None:
    """The first option of a ``#SBATCH`` head that would make other jobs, or no job, of one; None if there is none.

    Names, output and the like do no harm there: the command line wins over them.
    """
    for line in head:
        if (divider := line.removeprefix("#SBATCH").strip()).startswith(_DIVIDERS):
            return divider
        for word in line.removeprefix("#SBATCH").split(" #", 1)[0].split():
            name = word.lstrip("-").split("=", 1)[0]
            if word.startswith("--") and any(long.startswith(name) for long in _FORBIDDEN_LONG if name):
                return word
            if word.startswith("-") and not word.startswith("--") and word[1:2] in _FORBIDDEN_SHORT:
                return word
    return None
