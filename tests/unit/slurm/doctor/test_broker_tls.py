"""A broker over TLS has to prove who it is, and so has the worker, if the broker asks."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from girder_worker_slurm.doctor.broker import check_broker
from girder_worker_slurm.doctor.broker_tls import certificate_refusal, tls_options
from girder_worker_slurm.doctor.finding import Level
from girder_worker_slurm.errors import SettingsInvalid
from girder_worker_slurm.settings import load_settings

BROKER = "amqps://u:topsecret@Girder.example.org/"


def celery(broker=BROKER, **files):
    return load_settings(
        (),
        {"GIRDER_WORKER_BROKER": broker}
        | {f"GIRDER_WORKER_BROKER_{name.upper()}": str(path) for name, path in files.items()},
    ).celery


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A certificate that has signed itself, its key, and that key with a passphrase."""
    place = tmp_path_factory.mktemp("certificate")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    for name, lock in (("", ["-noenc"]), ("locked-", ["-passout", "pass:x"])):
        files = ["-keyout", f"{name}key.pem", "-out", f"{name}cert.pem"]
        argv = [
            "openssl",
            "req",
            "-x509",
            *key,
            *lock,
            "-subj",
            "/CN=Tests",
            "-addext",
            "subjectAltName=DNS:localhost",
            *files,
        ]
        subprocess.run(argv, cwd=place, check=True, capture_output=True, timeout=60)
    return place


@pytest.fixture
def place(made, tmp_path):
    """The same in a directory of this test's own."""
    return shutil.copytree(made, tmp_path / "tls")


def test_without_tls_nothing_is_to_be_proved():
    assert tls_options(celery("amqp://u:p@host:5672/")) is None


def test_authority_and_name_of_the_broker_are_compared(place):
    expected = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "girder.example.org"}
    assert tls_options(celery()) == expected | {"ca_certs": None}
    ca = place / "cert.pem"
    assert tls_options(celery(ca=ca)) == expected | {"ca_certs": str(ca)}


def test_the_worker_s_certificate_is_shown(place):
    cert, key = place / "cert.pem", place / "key.pem"
    options = tls_options(celery(cert=cert, key=key))
    assert options is not None
    assert (options["certfile"], options["keyfile"]) == (str(cert), str(key))


def test_certificate_and_key_may_be_in_one_file(place):
    both = place / "both.pem"
    both.write_text((place / "cert.pem").read_text() + (place / "key.pem").read_text())
    both.chmod(0o600)
    options = tls_options(celery(cert=both))
    assert options is not None
    assert (options["certfile"], options["keyfile"]) == (str(both), str(both))
    both.chmod(0o644)
    with pytest.raises(SettingsInvalid, match=r"both\.pem, the file `broker_cert`.*can be read by others"):
        tls_options(celery(cert=both))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ca": "none.pem"}, r"none\.pem, the file `broker_ca` of \[celery\], cannot be read: No such file"),
        ({"ca": "key.pem"}, r"key\.pem, the file `broker_ca` of \[celery\], does not hold what it should"),
        ({"cert": "none.pem", "key": "key.pem"}, r"none\.pem, the file `broker_cert`.*cannot be read"),
        ({"cert": "cert.pem", "key": "none.pem"}, r"none\.pem, the file `broker_key`.*cannot be read"),
        ({"cert": "cert.pem", "key": "locked-key.pem"}, r"locked-key\.pem, the file `broker_key`.*passphrase"),
        ({"cert": "locked-cert.pem", "key": "key.pem"}, r"locked-cert\.pem, the file `broker_cert`.*KEY_VALUES_MISMATCH"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_named(place, files, words):
    section = celery(**{name: place / file for name, file in files.items()})
    with pytest.raises(SettingsInvalid, match=words):
        tls_options(section)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(place, mode):
    key = place / "key.pem"
    key.chmod(mode)
    with pytest.raises(SettingsInvalid, match="can be read by others: it must have mode 0600"):
        tls_options(celery(cert=place / "cert.pem", key=key))


def test_doctor_names_the_file(place):
    settings = load_settings((), {"GIRDER_WORKER_BROKER": BROKER, "GIRDER_WORKER_BROKER_CA": "/none.pem"})
    (finding,) = check_broker(settings, running_workers=0, timeout_seconds=1.0)
    assert finding.level is Level.FAIL
    assert "/none.pem, the file `broker_ca`" in finding.found
    assert "topsecret" not in str(finding)


@pytest.mark.parametrize(
    ("broker", "files", "words"),
    [
        (BROKER, {"key": "/key"}, "broker_key needs `broker_cert`"),
        ("amqp://u:topsecret@host/", {"ca": "/ca"}, "need `broker = amqps://...`"),
        ("amqp://u:topsecret@host/", {"cert": "/cert"}, "need `broker = amqps://...`"),
    ],
)
def test_files_that_would_not_be_used_stop_the_start(broker, files, words):
    with pytest.raises(SettingsInvalid, match=words) as caught:
        celery(broker, **files)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "certificate required"),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", "handshake failure"),
        ("TLSV1_ALERT_UNKNOWN_CA", "unknown ca"),
        ("CERTIFICATE_VERIFY_FAILED", ""),
        ("TLSV1_ALERT_PROTOCOL_VERSION", ""),
        ("WRONG_VERSION_NUMBER", ""),
    ],
)
def test_whose_certificate_was_not_taken(reason, told):
    error = ssl.SSLError(1, reason)
    error.reason = reason
    assert certificate_refusal(error, celery(), timeout_seconds=1) == told


@pytest.fixture
def demanding(place):
    """The port of somebody who speaks TLS and wants a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "cert.pem", place / "key.pem")
    context.load_verify_locations(place / "cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with (
                        contextlib.suppress(OSError),
                        context.wrap_socket(connection, server_side=True) as peer,
                    ):
                        peer.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.parametrize(
    "ending", [ssl.SSLEOFError(8, "EOF occurred"), ConnectionResetError(), BrokenPipeError()]
)
def test_why_a_connection_was_closed_is_asked_again(place, demanding, ending):
    broker, ca = f"amqps://u:topsecret@localhost:{demanding}/", place / "cert.pem"
    assert certificate_refusal(ending, celery(broker, ca=ca), timeout_seconds=5) == "certificate required"


def test_a_broker_that_takes_our_certificate_and_goes_has_nothing_against_it(place, demanding):
    section = celery(
        f"amqps://u:topsecret@localhost:{demanding}/",
        ca=place / "cert.pem",
        cert=place / "cert.pem",
        key=place / "key.pem",
    )
    assert certificate_refusal(ConnectionResetError(), section, timeout_seconds=0.3) == ""
