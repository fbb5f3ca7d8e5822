"""Images from real places: files of skopeo and umoci, sandboxes, registries with and without accounts, oras."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from girder_worker_singularity import ConvertOptions, LocalCommandRunner, SifStore, StoreOptions, SystemClock
from girder_worker_singularity import run_on_this_host as run
from girder_worker_singularity.errors import (
    ImageNotFound,
    RegistryRefused,
    RegistryUnreachable,
    SignatureInvalid,
)
from girder_worker_singularity.image.pull_names import PullNames
from girder_worker_singularity.image.rules import ImageRules
from girder_worker_singularity.sif.note import read_note
from girder_worker_singularity.source.credentials import CredentialOptions
from girder_worker_singularity.source.image_sources import SourceOptions
from girder_worker_singularity.source.proxies import Proxies
from tests.integration.apptainer.conftest import running_registry
from tests.support.images import build_and_push_image, build_oci_layout

IMAGE = "team/tool:1"
PASSWORD = "letmein"
ENCODED = base64.b64encode(b"reader:letmein").decode()
SPY = """#!/bin/sh
{ printf '%s\\n' "$@"; env; } >> "$(dirname "$0")/seen"
exec apptainer "$@"
"""


def program(text):
    return {"/run.sh": f"#!/bin/sh\necho {text}\n"}


class Site:
    """A store with its surroundings, below one directory."""

    def __init__(self, path, *registries):
        self.path = path
        self.registries = registries
        self.archives = path / "archives"
        self.root = path / "sifs"
        self.home = path / "home"
        for directory in (self.archives, self.root, self.home):
            directory.mkdir()
        self.lines: list[str] = []

    def store(self, *, credentials=None, apptainer="apptainer", names=None, proxies=None, **options):
        credentials = credentials or CredentialOptions()
        accounts = replace(credentials, environment={"HOME": str(self.home), **credentials.environment})
        convert = ConvertOptions(
            apptainer=str(apptainer),
            plain_http_registries=self.registries,
            tmp_dir=self.path / "build",
            environment={"HOME": str(self.home)},
        )
        sources = SourceOptions(
            places=("sandbox", "archive", "registry"),
            archive_dir=self.archives,
            names=names or PullNames(),
            credentials=accounts,
            proxies=proxies or Proxies(),
        )
        options = StoreOptions(convert, minimum_free_bytes=0, sources=sources, **options)
        return SifStore(self.root, LocalCommandRunner(), SystemClock(), options)

    def ensure(self, image, policy="if-not-present", **options):
        return self.store(**options).ensure(image, policy=policy, on_progress=self.lines.append)

    def says(self, sif):
        return run(sif, [], runner=LocalCommandRunner(), scratch=self.path).stdout

    def apptainer(self, *arguments, **environment):
        outcome = subprocess.run(
            ["apptainer", *map(str, arguments)],
            env={**os.environ, "HOME": str(self.home), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout


@pytest.fixture
def site(tmp_path, registry):
    return Site(tmp_path, registry)


@pytest.fixture
def locked_site(tmp_path, locked_registry):
    return Site(tmp_path, locked_registry)


@pytest.fixture
def locked_image(locked_registry):
    name = f"private/{time.time_ns()}:1"
    return build_and_push_image(
        locked_registry, name, program("open"), ["/run.sh"], credentials="reader:letmein"
    )


def skopeo(*arguments):
    subprocess.run(["skopeo", "copy", "--insecure-policy", "--quiet", *arguments], check=True, timeout=120)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive", "oci"])
def test_an_archive_of_skopeo_becomes_a_sif_that_runs(site, kind):
    layout = build_oci_layout(site.path / "oci", program(kind), entrypoint=["/run.sh"])
    target = site.archives / ("team_tool_1" if kind == "oci" else "team_tool_1.tar")
    skopeo(f"oci:{layout}:latest", f"{kind}:{target}" + (":team/tool:1" if kind == "docker-archive" else ""))
    made = site.ensure(IMAGE)
    assert made.config.entrypoint == ("/run.sh",)
    assert site.says(made) == f"{kind}\n"
    assert read_note(made.path).source == kind
    assert not site.ensure(IMAGE, "always").converted


def test_of_a_layout_with_several_images_of_umoci_the_right_one_is_taken(site):
    layout = build_oci_layout(site.archives / "team_tool_1", program("old"), entrypoint=["/run.sh"])
    if shutil.which("umoci") is None:
        pytest.skip("there is no umoci")
    subprocess.run(["umoci", "tag", "--image", f"{layout}:latest", "0"], check=True, timeout=60)
    newer = build_oci_layout(site.path / "newer", program("right"), entrypoint=["/run.sh"])
    skopeo(f"oci:{newer}:latest", f"oci:{layout}:1")
    assert site.says(site.ensure(IMAGE)) == "right\n"


def test_a_sandbox_directory_in_the_store_becomes_a_sif_that_runs(site):
    layout = build_oci_layout(site.path / "oci", program("sandbox"), entrypoint=["/run.sh"])
    site.apptainer("build", "--sandbox", "--disable-cache", site.root / "team_tool_1", f"oci:{layout}")
    made = site.ensure(IMAGE)
    assert made.path == site.root / "team_tool_1.sif"
    assert site.says(made) == "sandbox\n"


@pytest.mark.parametrize(
    ("policy", "text", "converted"),
    [
        ("always", "two", True),
        ("if-newer", "two", True),
        ("if-not-present", "one", False),
        ("never", "one", False),
    ],
)
def test_a_tag_that_moved_is_followed_as_the_policy_says(site, push, policy, text, converted):
    name = f"apptainer-tests/moving-{time.time_ns()}"
    image = push("1", name=name, files=program("one"), entrypoint=["/run.sh"])
    site.ensure(image)
    assert not site.ensure(image, policy).converted
    push("1", name=name, files=program("two"), entrypoint=["/run.sh"])
    again = site.ensure(image, policy)
    assert (site.says(again), again.converted) == (f"{text}\n", converted)


def test_if_newer_lives_without_its_registry_and_always_does_not(tmp_path):
    with running_registry(tmp_path) as address:
        image = build_and_push_image(address, "team/tool:1", program("kept"), ["/run.sh"])
        (tmp_path / "site").mkdir()
        site = Site(tmp_path / "site", address)
        made = site.ensure(image)
    kept = site.ensure(image, "if-newer")
    assert (kept.path, kept.converted) == (made.path, False)
    assert any("not known now" in line for line in site.lines)
    with pytest.raises(RegistryUnreachable):
        site.ensure(image, "always")
    assert site.says(site.ensure(image, pull_policy="never")) == "kept\n"


def test_a_mirror_stands_for_a_registry_that_cannot_be_reached(site, push, registry):
    name = f"mirrored/{time.time_ns()}"
    push("1", name=f"hub/{name}", files=program("mirrored"), entrypoint=["/run.sh"])
    names = PullNames(registry_map={"registry.invalid:5000": f"{registry}/hub"})
    made = site.ensure(f"registry.invalid:5000/{name}:1", names=names)
    assert made.path.name == f"registry.invalid_5000_{name.replace('/', '_')}_1.sif"
    assert site.says(made) == "mirrored\n"
    assert not site.ensure(f"registry.invalid:5000/{name}:1", "always", names=names).converted


def test_a_bare_name_is_completed_by_the_site(site, push, registry):
    name = f"tool-{time.time_ns()}"
    push("stable", name=f"base/{name}", files=program("completed"), entrypoint=["/run.sh"])
    made = site.ensure(name, names=PullNames(registry, "base", "stable"))
    assert made.path.name == f"{name}.sif"
    assert site.says(made) == "completed\n"


class Proxy(BaseHTTPRequestHandler):
    """Passes everything on to one registry, and remembers what was asked for."""

    seen: tuple[list[str], str] = ([], "")

    def do_GET(self):
        asked, registry = self.seen
        asked.append(self.path)
        url = f"http://{registry}/{self.path.split('/', 3)[3]}"
        accepted = {"Accept": self.headers["Accept"]} if "Accept" in self.headers else {}
        try:
            answer = urllib.request.urlopen(
                urllib.request.Request(url, headers=accepted, method=self.command), timeout=30
            )
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            body = answer.read()
            self.send_response(answer.status)
            for name in ("Content-Type", "Docker-Content-Digest", "Content-Length"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, *_words):
        pass


def test_a_registry_is_reached_through_the_sites_proxy(site, push, registry):
    name = f"proxied/{time.time_ns()}"
    push("1", name=name, files=program("proxied"), entrypoint=["/run.sh"])
    asked: list[str] = []
    handler = type("Handler", (Proxy,), {"seen": (asked, registry)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.registries = ("registry.invalid:5000",)
    try:
        proxies = Proxies(http=f"http://me:ganzgeheim@127.0.0.1:{server.server_port}")
        made = site.ensure(f"registry.invalid:5000/{name}:1", proxies=proxies)
    finally:
        server.shutdown()
        server.server_close()
    assert site.says(made) == "proxied\n"
    assert made.digest is not None  # which was asked for by this process
    assert all(url.startswith("http://registry.invalid:5000/v2/") for url in asked)
    assert any("/blobs/" in url for url in asked)  # which were asked for by Apptainer
    with pytest.raises(RegistryUnreachable) as caught:
        site.ensure(f"registry.invalid:5000/{name}:1", "always", proxies=proxies)
    assert "ganzgeheim" not in f"{caught.value} {site.lines}"


# -- accounts


def of_config(site, registry):
    (site.home / ".docker").mkdir()
    (site.home / ".docker/config.json").write_text(json.dumps({"auths": {registry: {"auth": ENCODED}}}))
    return CredentialOptions()


def of_helper(site, registry):
    tools = site.path / "bin"
    tools.mkdir()
    helper = tools / "docker-credential-site"
    helper.write_text(
        "#!/bin/sh\nread server\n"
        f'[ "$1 $server" = "get {registry}" ] && echo \'{{"Username": "reader", "Secret": "{PASSWORD}"}}\'\n'
    )
    helper.chmod(0o755)
    (site.path / "docker").mkdir()
    (site.path / "docker/config.json").write_text(json.dumps({"credHelpers": {registry: "site"}}))
    where = {"DOCKER_CONFIG": str(site.path / "docker"), "PATH": f"{tools}:{os.environ['PATH']}"}
    return CredentialOptions(environment=where)


def of_map(site, registry):
    path = site.path / "accounts.json"
    path.write_text(json.dumps({registry: {"username": "reader", "password": PASSWORD}}))
    path.chmod(0o600)
    # The map wins over the variables that Apptainer reads.
    wrong = {"APPTAINER_DOCKER_USERNAME": "reader", "APPTAINER_DOCKER_PASSWORD": "wrong"}
    return CredentialOptions(auth_map=path, environment=wrong)


def of_variables_in_base64(_site, registry):
    words = (base64.b64encode(word.encode()).decode() for word in ("reader", PASSWORD))
    return CredentialOptions(None, *words, registry=registry)


@pytest.mark.parametrize("account", [of_config, of_helper, of_map, of_variables_in_base64])
def test_a_locked_registry_opens_to_an_account_that_is_seen_nowhere(
    locked_site, locked_registry, locked_image, account, caplog
):
    caplog.set_level("DEBUG")
    spy = locked_site.path / "spy"
    spy.mkdir()
    (spy / "apptainer").write_text(SPY)
    (spy / "apptainer").chmod(0o755)
    credentials = account(locked_site, locked_registry)
    made = locked_site.ensure(locked_image, credentials=credentials, apptainer=spy / "apptainer")
    assert locked_site.says(made) == "open\n"
    assert made.digest is not None
    seen = (spy / "seen").read_text()
    assert "docker://" in seen
    note = Path(f"{made.path}.json").read_text()
    everything = (seen, note, "\n".join(locked_site.lines), caplog.text)
    assert not [text for text in everything if PASSWORD in text or ENCODED in text]
    assert PASSWORD.encode() not in made.path.read_bytes()
    assert list((locked_site.path / "build").iterdir()) == []


def test_a_wrong_password_is_refused_and_not_quoted(locked_site, locked_registry, locked_image):
    wrong = CredentialOptions(None, "reader", "ganzgeheim", registry=locked_registry)
    with pytest.raises(RegistryRefused) as caught:
        locked_site.ensure(locked_image, credentials=wrong)
    text = f"{caught.value} {caught.value.__cause__} {caught.value.__context__} {locked_site.lines}"
    assert "ganzgeheim" not in text
    assert base64.b64encode(b"reader:ganzgeheim").decode() not in text
    with pytest.raises(RegistryRefused):
        locked_site.ensure(locked_image)


# -- SIFs in registries, signatures


def pushed_sif(site, registry, text, *, login=False):
    layout = build_oci_layout(site.path / f"oci-{text}", program(text), entrypoint=["/run.sh"])
    sif = site.path / f"{text}.sif"
    site.apptainer("build", "--disable-cache", sif, f"oci:{layout}")
    image = f"oras://{registry}/sifs/{text}-{time.time_ns()}:1"
    account = {"APPTAINER_DOCKER_USERNAME": "reader", "APPTAINER_DOCKER_PASSWORD": PASSWORD} if login else {}
    site.apptainer("push", "--no-https", sif, image, **account)
    return sif, image


ORAS = ImageRules(schemes=("oras",))


def test_a_sif_in_a_registry_is_fetched_as_it_is(site, registry):
    sif, image = pushed_sif(site, registry, "oras")
    made = site.ensure(image, rules=ORAS)
    assert made.path.name.startswith("oras+127.0.0.1_")
    assert made.path.read_bytes() == sif.read_bytes()
    assert site.says(made) == "oras\n"
    assert made.digest is not None
    assert not site.ensure(image, "always", rules=ORAS).converted
    with pytest.raises(ImageNotFound):
        site.ensure(f"{image}0", rules=ORAS)


def test_a_sif_in_a_locked_registry_is_fetched_with_the_account(locked_site, locked_registry):
    _, image = pushed_sif(locked_site, locked_registry, "locked", login=True)
    with pytest.raises(RegistryRefused):
        locked_site.ensure(image, rules=ORAS)
    made = locked_site.ensure(image, rules=ORAS, credentials=of_map(locked_site, locked_registry))
    assert locked_site.says(made) == "locked\n"


def test_only_signed_sifs_are_taken_if_the_site_wants_it(site, registry):
    sif, unsigned = pushed_sif(site, registry, "signed")
    strict = {"rules": ORAS, "verify_signatures": True}
    with pytest.raises(SignatureInvalid, match="signature not found"):
        site.ensure(unsigned, **strict)
    by_hand = site.root / "team_tool_1.sif"
    by_hand.write_bytes(sif.read_bytes())
    with pytest.raises(SignatureInvalid):
        site.ensure(IMAGE, "never", **strict)
    words = ("--name", "a", "--email", "a@example.org", "--comment", "c", "--password", "", "--push=false")
    site.apptainer("key", "newpair", *words)
    site.apptainer("sign", sif)
    signed = f"{unsigned[:-2]}:2"
    site.apptainer("push", "--no-https", sif, signed)
    assert site.says(site.ensure(signed, **strict)) == "signed\n"
    by_hand.write_bytes(sif.read_bytes())
    assert site.store(**strict).find(IMAGE) is None
    assert site.ensure(IMAGE, "never", **strict).path == by_hand
    assert site.store(**strict).find(IMAGE) is not None
