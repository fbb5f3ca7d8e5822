"""`girder-slurm service`: the worker as a systemd service of an ordinary account."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

_FILES_VARIABLE = "GIRDER_WORKER_SLURM_CONFIG"
#: Where the settings of a worker without a checkout are looked for if nothing else is said.
_DEFAULT_SETTINGS = "~/.config/girder-worker-slurm.cfg"
_UNIT = "~/.config/systemd/user/girder-worker-slurm.service"


@click.command("service", short_help="Print a systemd unit that keeps the worker running.")
def service_command() -> None:
    """Print a systemd user service that starts the worker of this installation.

    Its settings are the files that GIRDER_WORKER_SLURM_CONFIG names now, or else ~/.config/girder-worker-slurm.cfg.
    The first lines of what is printed say how to install it.

    \b
    Examples:
      girder-slurm service > ~/.config/systemd/user/girder-worker-slurm.service
      GIRDER_WORKER_SLURM_CONFIG=/etc/girder/site.cfg:/etc/girder/secret.cfg girder-slurm service
    """  # noqa: D301 - click wants the character
    named = os.environ.get(_FILES_VARIABLE) or _DEFAULT_SETTINGS
    files = ":".join(str(Path(name).expanduser().absolute()) for name in named.split(":") if name)
    program = Path(sys.prefix) / "bin" / "girder-slurm"
    click.echo(render_installed_unit(program, files), nl=False)


def render_installed_unit(program: Path, settings_files: str) -> str:
    """The unit of a worker that pip installed: its program, and its settings as absolute names joined by ``:``."""
    head = f"""\
# The worker as a systemd user service of the account that owns it. No root is needed but for enable-linger on some sites.
#
#   mkdir -p {Path(_UNIT).parent}
#   girder-slurm service > {_UNIT}
#   loginctl enable-linger            # lets it run while you are logged out; some sites: sudo loginctl enable-linger USER
#   systemctl --user daemon-reload
#   systemctl --user enable --now girder-worker-slurm
#   journalctl --user -u girder-worker-slurm -f
#
# Settings and passwords belong into the files named below (mode 0600), not here: everyone can read a unit.
"""
    start = f"""\
Environment={_quoted(f"{_FILES_VARIABLE}={settings_files}")}
ExecStart={_quoted(str(program))} worker
"""
    return head + _BODY.format(start=start)


def render_checkout_unit() -> str:
    """The text of worker/girder-worker-slurm.service, for a checkout in the home directory."""
    head = """\
# The worker as a systemd user service of the account that owns it. No root is needed but for the second line.
#
#   install -D -m 644 worker/girder-worker-slurm.service ~/.config/systemd/user/girder-worker-slurm.service
#   loginctl enable-linger            # lets it run while you are logged out; some sites: sudo loginctl enable-linger USER
#   systemctl --user daemon-reload
#   systemctl --user enable --now girder-worker-slurm
#   journalctl --user -u girder-worker-slurm -f
#
# It expects the checkout in ~/girder-worker-slurm (%h is the home directory). If yours is elsewhere, do not edit this
# file but `systemctl --user edit girder-worker-slurm`:
#
#   [Service]
#   ExecStart=
#   ExecStart=/path/to/girder-worker-slurm/worker/run.sh
#
# Settings and passwords belong into worker/worker.local.cfg (mode 0600), not here: everyone can read a unit.
"""
    return head + _BODY.format(start="ExecStart=%h/girder-worker-slurm/worker/run.sh\n")


_BODY = """\
# Stopping or restarting the service touches no Slurm job: jobs go on, and the worker takes them up again.

[Unit]
Description=Girder worker for Slurm
# Keep trying: the file system or the network may be back only after a long while.
StartLimitIntervalSec=0

[Service]
Type=exec
{start}\
# Optional, lines NAME=value. Where sbatch and apptainer are not on the system's PATH, say so there: PATH=/opt/slurm/bin:/usr/bin:/bin
# And where Slurm's commands need it: SLURM_CONF=/opt/slurm/etc/slurm.conf
EnvironmentFile=-%h/.config/girder-worker-slurm.env
Restart=on-failure
RestartSec=15
# SIGTERM goes to the worker alone. What it was running (sbatch, an image conversion) is ended after it.
KillMode=mixed
# Longer than the worker needs: whatever is cut off is taken up again at the next start.
TimeoutStopSec=30
UMask=0077
# One connection to the broker and some files per job at work, whatever the number of jobs.
LimitNOFILE=8192

[Install]
WantedBy=default.target
"""


def _quoted(text: str) -> str:
    """One word of a unit, whatever is in it: systemd.syntax(7) and the specifiers of systemd.unit(5)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if any(character in escaped for character in " \t\\\"';") else escaped
