"""The server by docker compose with the optional plugin, which one more file brings in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.compose.server import ComposeServer
    from tests.support.stack import Stack


def test_one_more_file_brings_the_plugin_whose_settings_provisioning_sets(
    server: ComposeServer, cluster: Stack
) -> None:
    (server.checkout / "site.yaml").write_text(
        "settings:\n  worker_slurm.mem: 16000\n  worker_slurm.partition: imaging\n"
    )
    server.set(COMPOSE_FILE="docker-compose.yaml:docker/server-plugin.yaml", PROVISION_YAML="./site.yaml")
    try:
        server.up("girder")
        girder = server.girder(cluster)
        assert "worker_slurm" in girder.call("GET", "system/plugins")["loaded"]
        first, again = (
            server.compose("run", "--rm", "-T", "--no-deps", "provision").stdout for _ in range(2)
        )
        assert "set worker_slurm.mem to 16000" in first
        assert "All is there, nothing was changed." in again
        settings = girder.call("GET", "worker_slurm/options")["settings"]
        assert settings == {"mem": 16000, "partition": "imaging"}
    finally:
        # The next `up` takes it away again; nobody minds it until then.
        server.set(COMPOSE_FILE="", PROVISION_YAML="")
