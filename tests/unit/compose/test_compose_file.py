"""What docker-compose.yaml must never do, whatever is added to it."""

import re
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).parents[3]
TEXT = (CHECKOUT / "docker-compose.yaml").read_text(encoding="utf-8")
SERVICES = yaml.safe_load(TEXT)["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_has_power_over_the_host(name):
    service = SERVICES[name]
    assert "privileged" not in service
    assert service.get("network_mode", "none") in ("none", "service:mongodb")
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))


def test_every_port_is_published_on_loopback_unless_asked_otherwise():
    with_tls = yaml.safe_load((CHECKOUT / "docker" / "rabbitmq-tls.yaml").read_text(encoding="utf-8"))
    services = [*SERVICES.values(), *with_tls["services"].values()]
    ports = [port for service in services for port in service.get("ports", [])]
    assert len(ports) >= 4
    assert [port for port in ports if not re.match(r"\$\{[A-Z_]+_BIND:-127\.0\.0\.1\}:", port)] == []


def test_every_image_has_a_version():
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    defaults = [re.sub(r"\$\{\w+:-(.*)\}$", r"\1", image) for image in images]
    assert [image for image in defaults if not re.search(r":[0-9]", image)] == []


def test_passwords_are_files_in_the_containers():
    used = [
        (name, key)
        for name, service in SERVICES.items()
        for key in ("command", "environment", "entrypoint")
        if "PASSWORD" in str(service.get(key))
    ]
    assert used == []


def test_the_worker_of_slicer_cli_web_is_not_among_them():
    assert "worker" not in SERVICES
    assert "-Q" not in TEXT
