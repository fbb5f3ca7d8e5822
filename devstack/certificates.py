"""An authority of the stack's own, and what it has signed for RabbitMQ and for those who log in there."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import run
from .files import ensure_directory, write_file

if TYPE_CHECKING:
    from .service import Context

#: The only name that RabbitMQ's certificate has; not its address.
SERVER_NAME = "localhost"
_VALID = ("-days", "3650")
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")


def ensure(context: Context) -> None:
    """Make what is missing: `ca.pem`, RabbitMQ's certificate and key, those of the job user.

    The authority's own key is forgotten, so whatever is missing, all of it is made anew.
    """
    directory = context.layout.certificates
    ensure_directory(directory, mode=0o755)
    server, client = context.service_user, context.job_user
    files = {
        "ca.pem": ("root", 0o644),
        "server.pem": ("root", 0o644),
        "server-key.pem": (server, 0o600),
        "client.pem": ("root", 0o644),
        "client-key.pem": (client, 0o600),
    }
    if all((directory / name).is_file() for name in files):
        return
    scratch = Path(tempfile.mkdtemp(prefix="certificates.", dir=context.layout.run))
    try:
        authority = ["-x509", *_VALID, "-subj", "/CN=devstack", "-keyout", "ca-key.pem", "-out", "ca.pem"]
        _openssl(scratch, "req", *_NEW_KEY, *authority)
        _sign(
            scratch, "server", SERVER_NAME, f"subjectAltName=DNS:{SERVER_NAME}\nextendedKeyUsage=serverAuth\n"
        )
        _sign(scratch, "client", client, "extendedKeyUsage=clientAuth\n")
        for name, (owner, mode) in files.items():
            write_file(directory / name, (scratch / name).read_bytes(), mode=mode, owner=owner)
    finally:
        shutil.rmtree(scratch)


def _sign(directory: Path, name: str, common_name: str, extensions: str) -> None:
    request, limits = f"{name}-request.pem", f"{name}-extensions"
    (directory / limits).write_text(extensions, encoding="ascii")
    _openssl(
        directory,
        "req",
        *_NEW_KEY,
        "-subj",
        f"/CN={common_name}",
        "-keyout",
        f"{name}-key.pem",
        "-out",
        request,
    )
    authority = ["-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial"]
    signed = ["-in", request, "-extfile", limits, "-out", f"{name}.pem"]
    _openssl(directory, "x509", "-req", *authority, *_VALID, *signed)


def _openssl(directory: Path, *arguments: str) -> None:
    run(["/usr/bin/openssl", *arguments], cwd=directory)
