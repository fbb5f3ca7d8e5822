"""Writes the file that tells users of the stack where everything is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import girder
from .accounts import group_of
from .apptainer import Apptainer
from .compose import Compose
from .errors import DevstackError
from .files import write_file
from .ports import HOST
from .slurm import node_names

if TYPE_CHECKING:
    from .service import Context


def write(context: Context) -> None:
    """Write `env`: plain KEY='value' lines, for a shell to source and for Python's shlex."""
    layout, state = context.layout, context.state
    path = [*Apptainer(context).path_directories(), layout.bin]
    values = {
        "DEVSTACK_DIR": layout.base,
        "DEVSTACK_USER": state.job_user,
        "DEVSTACK_SERVICE_USER": state.service_user,
        "DEVSTACK_SHARED": layout.shared,
        "DEVSTACK_NODES": " ".join(node_names(state.node_prefix)),
        "DEVSTACK_REGISTRY": f"{HOST}:{context.port('registry')}",
        "DEVSTACK_PATH": ":".join(str(directory) for directory in path),
        "SLURM_CONF": layout.slurm_conf,
        "GIRDER_URL": girder.girder_url(context),
        "GIRDER_API_URL": f"{girder.girder_url(context)}/api/v1",
        "GIRDER_ADMIN_LOGIN": girder.ADMIN_LOGIN,
        "GIRDER_ADMIN_PASSWORD": context.secrets().girder_admin_password,
        "GIRDER_PYTHON": layout.girder_venv / "bin" / "python",
        "GIRDER_WORKER_BROKER": girder.broker_url(context),
        "GIRDER_WORKER_BACKEND": girder.backend_url(context),
        "GIRDER_MONGO_URI": girder.mongo_uri(context),
        "GIRDER_NOTIFICATION_REDIS_URL": girder.redis_url(context),
        "RABBITMQ_TLS_URL": girder.broker_tls_url(context),
        "RABBITMQ_TLS_DIR": layout.certificates,
        "RABBITMQ_CTL": layout.bin / "rabbitmqctl",
        "ASSETSTORE_DIR": layout.assetstore,
        "DEVSTACK_COMPOSE": Compose(context).program() or "",
    }
    lines = []
    for name, value in values.items():
        if "'" in str(value):
            raise DevstackError(f"{name} has a quote in it, which the env file cannot carry: {value}")
        lines.append(f"{name}='{value}'\n")
    write_file(layout.env_file, "".join(lines), mode=0o640, group=group_of(state.job_user))
