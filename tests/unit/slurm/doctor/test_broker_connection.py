"""A broker over TLS has to prove who it is: its authority and its name."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from girder_worker_slurm.doctor.broker_connection import BrokerUnreachable, broker_connection, tls_options


def test_without_tls_nothing_is_to_be_proved():
    assert tls_options("amqp://u:p@host:5672/", None) is None


@pytest.mark.parametrize(("ca", "certificates"), [(None, None), (Path("/a b/ca.pem"), "/a b/ca.pem")])
def test_with_tls_authority_and_name_are_compared(ca, certificates):
    assert tls_options("amqps://u:p@Girder.example.org/", ca) == {
        "cert_reqs": ssl.CERT_REQUIRED,
        "server_hostname": "girder.example.org",
        "ca_certs": certificates,
    }


def test_an_authority_whose_file_is_missing_is_named(tmp_path, silent_port):
    with (
        pytest.raises(BrokerUnreachable, match=r"no-ca\.pem, the file `broker_ca`"),
        broker_connection(
            f"amqps://u:topsecret@127.0.0.1:{silent_port}/", timeout_seconds=2, ca=tmp_path / "no-ca.pem"
        ),
    ):
        pass


@pytest.fixture
def silent_port():
    """A port at which somebody listens, and says nothing."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
