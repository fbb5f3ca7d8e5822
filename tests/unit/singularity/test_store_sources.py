"""Where a store takes images from, when it makes them anew, and what it refuses."""

from __future__ import annotations

import json
import shutil
import tarfile

import pytest

from girder_worker_singularity.errors import (
    ConversionFailed,
    ImageNotAllowed,
    ImageNotFound,
    ImageNotInStore,
    ImageReferenceInvalid,
    RegistryUnreachable,
    SignatureInvalid,
)
from girder_worker_singularity.image.pull_names import PullNames
from girder_worker_singularity.image.rules import ImageRules
from girder_worker_singularity.sif.note import read_note
from girder_worker_singularity.source.docker_engine import EngineImage
from girder_worker_singularity.source.image_sources import SourceOptions
from girder_worker_singularity.testing import FakeAnswer
from tests.support.sif_files import sif_bytes
from tests.unit.singularity.store_world import DIGEST, IMAGE, OTHER_DIGEST, World

STEM = "team_tool_1"
UNREACHABLE = "FATAL: dial tcp: connect: connection refused"


class Site(World):
    """A store with sources of a site, and the signatures that its Apptainer accepts."""

    def __init__(self, root, tmp_dir, archives):
        super().__init__(root, tmp_dir)
        self.archives = archives
        self.signed = False
        self.verified: list[str] = []

    def site_store(self, *, places=None, names=None, **options):
        sources = SourceOptions(archive_dir=self.archives, names=names or PullNames())
        if places is not None:
            sources = SourceOptions(places=places, archive_dir=self.archives)
        store = self.store(sources=sources, **options)
        runner = store._maker._runner
        runner.programs["apptainer"] = self.apptainer_or_verify
        return store

    def apptainer_or_verify(self, call):
        if call.argv[1] == "verify":
            self.verified.append(call.argv[-1])
            return FakeAnswer(0 if self.signed else 255, stderr="" if self.signed else "FATAL: not signed")
        return self.apptainer(call)

    def sources_used(self):
        return [call.argv[-1] for call in self.apptainer.builds]

    def put_layout(self, name=STEM, manifests=None):
        layout = self.archives / name
        layout.mkdir(parents=True)
        (layout / "oci-layout").write_text("{}")
        manifests = manifests if manifests is not None else [{"digest": DIGEST}]
        (layout / "index.json").write_text(json.dumps({"manifests": manifests}))
        return layout

    def put_archive(self, *members, name=STEM, mode="w"):
        self.archives.mkdir(exist_ok=True)
        path = self.archives / f"{name}.tar"
        with tarfile.open(path, mode) as tar:
            for member, content in members:
                file = self.archives / "member"
                file.write_text(content)
                tar.add(file, member)
                file.unlink()
        return path


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "store", tmp_path / "build", tmp_path / "archives")


INDEX = ("index.json", json.dumps({"manifests": [{"digest": DIGEST}]}))
MANIFEST = ("manifest.json", "[]")


@pytest.mark.parametrize(
    ("members", "scheme", "mode"),
    [
        ([MANIFEST], "docker-archive", "w"),
        ([INDEX, ("oci-layout", "{}")], "oci-archive", "w"),
        ([("./index.json", INDEX[1])], "oci-archive", "w:gz"),
        ([INDEX, MANIFEST], "docker-archive", "w"),
    ],
)
def test_an_archive_is_known_by_what_is_in_it(site, members, scheme, mode):
    path = site.put_archive(*members, mode=mode)
    made = site.site_store().ensure(IMAGE)
    assert site.sources_used() == [f"{scheme}:{path}"]
    assert read_note(made.path).source == scheme
    assert site.asked == []


def test_a_layout_is_taken_by_the_name_of_the_image(site):
    layout = site.put_layout()
    made = site.site_store().ensure(IMAGE)
    assert site.sources_used() == [f"oci:{layout}"]
    assert made.digest == DIGEST


def test_of_several_images_in_a_layout_the_tag_is_taken(site):
    key = "org.opencontainers.image.ref.name"
    entries = [
        {"digest": OTHER_DIGEST, "annotations": {key: "2"}},
        {"digest": DIGEST, "annotations": {key: "1"}},
    ]
    layout = site.put_layout(manifests=entries)
    assert site.site_store().ensure(IMAGE).digest == DIGEST
    assert site.sources_used() == [f"oci:{layout}@{DIGEST}"]


@pytest.mark.parametrize("manifests", [[], [{}, {}], "x", [1]])
def test_a_layout_without_the_image_is_named(site, manifests):
    site.put_layout(manifests=manifests)
    with pytest.raises(ConversionFailed, match=STEM):
        site.site_store().ensure(IMAGE)


def test_a_broken_archive_is_named_and_nothing_else_is_taken(site):
    site.put_archive(MANIFEST).write_bytes(b"no tar")
    with pytest.raises(ConversionFailed, match=r"team_tool_1\.tar"):
        site.site_store().ensure(IMAGE)
    site.put_archive(("x", "y"))
    with pytest.raises(ConversionFailed, match="neither of Docker nor of OCI"):
        site.site_store().ensure(IMAGE)
    assert site.sources_used() == []


def test_a_layout_of_another_digest_is_not_taken_for_the_one_asked_for(site):
    image = f"team/tool@{OTHER_DIGEST}"
    site.put_layout(f"team_tool_{OTHER_DIGEST.replace(':', '_')}")
    with pytest.raises(ConversionFailed, match=DIGEST):
        site.site_store().ensure(image)


def test_an_image_may_be_made_of_a_sandbox_directory_in_the_store(site):
    (site.root / STEM / "bin").mkdir(parents=True)
    made = site.site_store().ensure(IMAGE)
    assert site.sources_used() == [str(site.root / STEM)]
    assert made.path == site.root / f"{STEM}.sif"
    assert read_note(made.path).source == "sandbox"


def test_places_are_asked_in_their_order(site):
    (site.root / STEM / "usr").mkdir(parents=True)
    site.put_archive(MANIFEST)
    site.engine[IMAGE] = EngineImage("sha256:1", None)
    site.site_store(places=("registry", "docker-daemon", "archive", "sandbox")).ensure(IMAGE)
    site.site_store(places=("docker-daemon", "registry")).ensure(IMAGE, policy="always")
    assert site.sources_used() == ["docker://docker.io/team/tool:1", "docker-daemon:team/tool:1"]


def test_what_an_administrator_placed_and_cannot_be_converted_is_an_error(site):
    site.put_archive(MANIFEST)
    site.registry[IMAGE] = DIGEST
    site.apptainer.failure = "FATAL: no such thing"
    with pytest.raises(ConversionFailed, match="no such thing"):
        site.site_store().ensure(IMAGE)
    assert len(site.sources_used()) == 1


def test_an_archive_of_several_images_says_what_to_do(site):
    manifests = [{"digest": DIGEST}, {"digest": OTHER_DIGEST}]
    site.put_archive(("index.json", json.dumps({"manifests": manifests})))
    with pytest.raises(ConversionFailed, match="OCI layout"):
        site.site_store().ensure(IMAGE)


def test_without_any_place_that_has_it_the_image_is_not_found(site):
    with pytest.raises(ImageNotFound, match="No place"):
        site.site_store(places=("archive", "sandbox")).ensure(IMAGE)


def test_always_makes_an_archive_again_only_when_it_was_replaced(site):
    site.put_archive(MANIFEST)
    store = site.site_store()
    store.ensure(IMAGE)
    assert not store.ensure(IMAGE, policy="always").converted
    site.put_archive(MANIFEST, ("more", "x" * 20000))
    assert store.ensure(IMAGE, policy="always").converted


def test_a_user_cannot_name_a_file_of_this_machine(site):
    outside = site.archives.parent / "outside"
    shutil.copytree(site.put_layout(), outside)
    (site.root / "x").mkdir(parents=True)
    for text in (f"oci:{outside}", "../outside", f"docker-archive:{outside}.tar", str(outside), "file:///x"):
        with pytest.raises(ImageReferenceInvalid):
            site.site_store().ensure(text)
    assert site.sources_used() == []


# -- policies


def test_if_newer_follows_a_tag_that_moved_and_keeps_one_that_did_not(site):
    site.registry[IMAGE] = DIGEST
    store = site.site_store()
    store.ensure(IMAGE, policy="if-newer")
    assert not store.ensure(IMAGE, policy="if-newer").converted
    site.registry[IMAGE] = OTHER_DIGEST
    assert store.ensure(IMAGE, policy="if-newer").digest == OTHER_DIGEST
    assert len(site.sources_used()) == 2


def test_if_newer_uses_what_is_there_when_the_registry_is_silent_and_says_so(site):
    site.registry[IMAGE] = DIGEST
    store = site.site_store()
    store.ensure(IMAGE)
    site.registry.clear()
    lines = []
    assert not store.ensure(IMAGE, policy="if-newer", on_progress=lines.append).converted
    assert any("not known now" in line for line in lines)


def test_if_newer_uses_what_is_there_when_the_pull_breaks_down(site):
    site.registry[IMAGE] = DIGEST
    store = site.site_store()
    store.ensure(IMAGE)
    site.registry[IMAGE] = OTHER_DIGEST
    site.apptainer.failure = UNREACHABLE
    lines = []
    assert store.ensure(IMAGE, policy="if-newer", on_progress=lines.append).digest == DIGEST
    assert any("SIF that is there is used" in line for line in lines)
    with pytest.raises(RegistryUnreachable):
        store.ensure(IMAGE, policy="always")


def test_if_newer_keeps_what_was_put_there_by_hand(site):
    site.put(f"{STEM}.sif")
    site.registry[IMAGE] = DIGEST
    assert not site.site_store().ensure(IMAGE, policy="if-newer").converted


def test_the_sites_policy_counts_instead_of_the_tasks(site):
    site.registry[IMAGE] = DIGEST
    with pytest.raises(ImageNotInStore):
        site.site_store(pull_policy="never").ensure(IMAGE, policy="always")
    made = site.site_store(pull_policy="if-not-present").ensure(IMAGE, policy="always")
    site.registry[IMAGE] = OTHER_DIGEST
    assert not site.site_store(pull_policy="if-not-present").ensure(IMAGE, policy="always").converted
    assert site.site_store(pull_policy="if-not-present").find_for(IMAGE, "always").path == made.path
    assert site.site_store(pull_policy="if-newer").find_for(IMAGE, "if-not-present") is None
    assert site.site_store(pull_policy="if-newer").ensure(IMAGE).converted


# -- names


def test_a_mirror_is_asked_and_the_sif_keeps_its_name(site):
    names = PullNames(registry_map={"docker.io": "mirror.lab:5000/hub"})
    site.registry["mirror.lab:5000/hub/team/tool:1"] = DIGEST
    store = site.site_store(names=names)
    made = store.ensure(IMAGE)
    assert site.sources_used() == [f"docker://mirror.lab:5000/hub/team/tool@{DIGEST}"]
    assert made.path.name == f"{STEM}.sif"
    assert made.digest == DIGEST
    assert read_note(made.path).canonical == "docker.io/team/tool:1"
    assert store.find(IMAGE) is not None


# -- SIFs in registries, rules, signatures


def test_an_oras_reference_is_fetched_and_has_a_name_of_its_own(site):
    image = "oras://host.lab/team/tool:1"
    site.registry[image] = DIGEST
    store = site.site_store(rules=ImageRules(schemes=("oras",)))
    made = store.ensure(image)
    assert made.path.name == "oras+host.lab_team_tool_1.sif"
    assert site.apptainer.builds[0].argv[1] == "pull"
    assert site.sources_used() == [f"oras://host.lab/team/tool@{DIGEST}"]
    assert store.find("host.lab/team/tool:1") is None


def test_an_image_that_is_not_allowed_is_refused_before_anything_else(site):
    site.put(f"{STEM}.sif")
    store = site.site_store(rules=ImageRules(deny=("docker.io/team/*",)))
    for act in (store.find, store.ensure, lambda image: store.ensure(image, policy="never")):
        with pytest.raises(ImageNotAllowed, match="deny_images"):
            act(IMAGE)
    with pytest.raises(ImageNotAllowed, match="oras"):
        store.ensure("oras://host.lab/a:1")
    assert site.asked == site.sources_used() == []


def test_a_rule_is_about_the_name_that_the_site_completes(site):
    sources = SourceOptions(names=PullNames("registry.lab"))
    store = site.store(sources=sources, rules=ImageRules(allow=("registry.lab/*",)))
    assert store.ensure(IMAGE).converted
    with pytest.raises(ImageNotAllowed):
        store.ensure("docker.io/team/tool:1")


def test_a_sif_put_there_by_hand_must_be_signed_if_the_site_wants_it(site):
    site.put(f"{STEM}.sif")
    store = site.site_store(verify_signatures=True)
    assert store.find(IMAGE) is None
    for policy in ("never", "if-not-present", "if-newer"):
        with pytest.raises(SignatureInvalid, match="not signed"):
            store.ensure(IMAGE, policy=policy)
    site.signed = True
    assert store.ensure(IMAGE).path == site.root / f"{STEM}.sif"
    checks = len(site.verified)
    assert store.ensure(IMAGE, policy="never") is not None
    assert store.find(IMAGE) is not None
    assert len(site.verified) == checks
    site.put(f"{STEM}.sif", sif_bytes(definition=""))
    assert store.find(IMAGE) is None


def test_a_sif_of_a_registry_must_be_signed_if_the_site_wants_it(site):
    store = site.site_store(verify_signatures=True, rules=ImageRules(schemes=("oras",)))
    with pytest.raises(SignatureInvalid):
        store.ensure("oras://host.lab/a:1")
    assert site.names() == []
    site.signed = True
    store.ensure("oras://host.lab/a:1")
    checks = len(site.verified)
    assert store.find("oras://host.lab/a:1") is not None
    assert len(site.verified) == checks


def test_what_was_converted_here_needs_no_signature(site):
    store = site.site_store(verify_signatures=True)
    store.ensure(IMAGE)
    assert store.find(IMAGE) is not None
    assert site.verified == []
