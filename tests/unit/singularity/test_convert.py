from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from girder_worker_singularity.errors import (
    ConversionFailed,
    ConversionStopped,
    ConversionTimeout,
    ImageNotFound,
    NotEnoughSpace,
    ProgramMissing,
    RegistryRefused,
    RegistryUnreachable,
    SignatureInvalid,
    StoreNotWritable,
)
from girder_worker_singularity.holder import Holder, read_holder, write_holder
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.sif.conversion_errors import conversion_error
from girder_worker_singularity.sif.convert import (
    Account,
    ConvertOptions,
    build_argv,
    build_environment,
    convert,
    remove_dead_builds,
    supports_zstd,
    verify_signature,
)
from girder_worker_singularity.source.credentials import Credentials
from girder_worker_singularity.source.origin import Origin
from girder_worker_singularity.testing import FakeAnswer, FakeCommandRunner
from tests.support.sif_files import FakeApptainer

RECORDED = Path(__file__).parents[2] / "recorded" / "apptainer-1.4.5"
IMAGE = parse_image_reference("team/tool:1")
DIGEST = "sha256:" + "ab" * 32
REGISTRY = Origin("docker", "docker://docker.io/team/tool:1", "docker.io")
PLAIN = Origin("docker", "docker://127.0.0.1:5000/team/tool:1", "127.0.0.1:5000")
ENGINE = Origin("docker-daemon", "docker-daemon:team/tool:1")
ORAS = Origin("oras", "oras://127.0.0.1:5000/team/tool:1", "127.0.0.1:5000")
LIBRARY = Origin("library", "library://team/tools/tool:1")


@pytest.fixture
def options(tmp_path):
    return ConvertOptions(tmp_dir=tmp_path / "build")


@pytest.mark.parametrize(
    ("recorded", "kind"),
    [
        ("image-unknown-tag", ImageNotFound),
        ("image-unknown-repository", ImageNotFound),
        ("digest-unknown", ImageNotFound),
        ("registry-needs-login", RegistryRefused),
        ("registry-wrong-password", RegistryRefused),
        ("registry-refuses-connection", RegistryUnreachable),
        ("registry-name-unknown", RegistryUnreachable),
        ("docker-hub-unreachable", RegistryUnreachable),
        ("no-space-store", NotEnoughSpace),
        ("no-space-tmp", NotEnoughSpace),
        ("bad-mksquashfs-args", ConversionFailed),
        ("docker-engine-missing", ConversionFailed),
        ("destination-not-writable", ConversionFailed),
    ],
)
def test_what_apptainer_printed_becomes_the_error_it_means(recorded, kind):
    error = conversion_error(IMAGE, (RECORDED / f"{recorded}.txt").read_text())
    assert type(error) is kind
    assert "team/tool:1" in str(error)
    assert "FATAL" in str(error)
    assert error.remedy in str(error)


def test_only_an_unreachable_registry_is_worth_another_try():
    assert RegistryUnreachable.retryable
    assert not ImageNotFound.retryable
    assert not RegistryRefused.retryable


def test_the_command_line_names_destination_and_source_last():
    argv = build_argv(REGISTRY, Path("/s/x.sif"), options=ConvertOptions(), zstd=True)
    assert argv == (
        "apptainer", "build", "--force", "--disable-cache", "--mksquashfs-args", "-comp zstd -Xcompression-level 3",
        "/s/x.sif", "docker://docker.io/team/tool:1",
    )  # fmt: skip


def test_a_registry_without_tls_is_asked_so_only_if_it_is_listed():
    plain = ConvertOptions(
        plain_http_registries=("127.0.0.1:5000",), cache_dir=Path("/c"), authfile=Path("/a.json")
    )
    assert build_argv(PLAIN, Path("/x.sif"), options=plain, zstd=False) == (
        "apptainer", "build", "--force", "--authfile", "/a.json", "--no-https",
        "/x.sif", "docker://127.0.0.1:5000/team/tool:1",
    )  # fmt: skip
    assert "--no-https" not in build_argv(REGISTRY, Path("/x.sif"), options=plain, zstd=False)


def test_a_finished_sif_is_pulled_and_not_built():
    options = ConvertOptions(plain_http_registries=("127.0.0.1:5000",))
    argv = build_argv(ORAS, Path("/x.sif"), options=options, zstd=True, authfile=Path("/b/auth.json"))
    assert argv == (
        "apptainer", "pull", "--force", "--disable-cache", "--authfile", "/b/auth.json", "--no-https",
        "/x.sif", "oras://127.0.0.1:5000/team/tool:1",
    )  # fmt: skip


def test_a_library_of_the_site_is_named_and_one_in_the_reference_needs_no_naming():
    options = ConvertOptions(library="https://library.lab")
    argv = build_argv(LIBRARY, Path("/x.sif"), options=options, zstd=False)
    assert argv[-4:] == ("--library", "https://library.lab", "/x.sif", "library://team/tools/tool:1")
    named = Origin("library", "library://other.lab/team/tools/tool:1", "other.lab")
    assert "--library" not in build_argv(named, Path("/x.sif"), options=options, zstd=False)
    assert "--library" not in build_argv(ORAS, Path("/x.sif"), options=options, zstd=False)


@pytest.mark.parametrize(
    ("origin", "library", "configured"),
    [
        (LIBRARY, "", False),  # as the user's own `apptainer remote` says
        (LIBRARY, "https://library.lab", True),
        (Origin("library", "library://other.lab/t/t/t:1", "other.lab"), "", True),
        (REGISTRY, "https://library.lab", False),
    ],
)
def test_apptainer_is_configured_for_a_library_that_is_known(tmp_path, options, origin, library, configured):
    apptainer, seen = FakeApptainer(), []

    def look() -> None:
        directory = apptainer.builds[-1].env.get("APPTAINER_CONFIGDIR")
        seen.append(Path(directory, "remote.yaml").read_text() if directory else "")

    apptainer.on_build = look
    convert(
        IMAGE,
        tmp_path / "x.sif",
        origin=origin,
        runner=apptainer.runner(),
        options=replace(options, library=library),
    )
    assert [bool(text) for text in seen] == [configured]
    assert not list((tmp_path / "build").iterdir())


def test_no_credentials_are_given_for_what_is_on_this_machine():
    options = ConvertOptions(authfile=Path("/a.json"))
    assert "--authfile" not in build_argv(ENGINE, Path("/x.sif"), options=options, zstd=False)


def test_credentials_are_in_a_private_file_and_nowhere_else(tmp_path, options, monkeypatch):
    monkeypatch.setenv("APPTAINER_DOCKER_PASSWORD", "of the environment")
    monkeypatch.setenv("JARVICE_DOCKER_PASSWORD", "geheim")
    apptainer, seen, lines = FakeApptainer(), {}, []
    apptainer.failure = "INFO: me:geheim\nFATAL: 401 Unauthorized geheim bWU6Z2VoZWlt"

    def look() -> None:
        call = apptainer.builds[-1]
        path = Path(call.argv[call.argv.index("--authfile") + 1])
        seen.update(mode=path.stat().st_mode & 0o777, text=path.read_text(), path=path)

    apptainer.on_build = look
    me = Credentials("me", "geheim")
    with pytest.raises(RegistryRefused) as caught:
        convert(
            IMAGE,
            tmp_path / "x.sif",
            origin=REGISTRY,
            runner=apptainer.runner(),
            options=options,
            account=Account(me, me.secret_words),
            on_progress=lines.append,
        )
    call = apptainer.builds[0]
    assert seen["mode"] == 0o600
    assert json.loads(seen["text"])["auths"]["docker.io"] == {"auth": "bWU6Z2VoZWlt"}
    assert seen["path"].is_relative_to(tmp_path / "build")
    assert not seen["path"].exists()
    everything = (
        f"{call.argv} {call.env} {caught.value} {caught.value.__cause__} {lines} {me!r} {Account(me)!r}"
    )
    assert "geheim" not in everything
    assert "bWU6Z2VoZWlt" not in everything
    assert "of the environment" not in everything
    assert "***" in str(caught.value)


def test_a_signature_that_is_not_accepted_says_why(tmp_path):
    text = "FATAL:   Failed to verify container: integrity: signature not found for object group 1"
    runner = FakeCommandRunner({"apptainer": FakeAnswer(returncode=255, stderr=text)})
    with pytest.raises(SignatureInvalid, match="signature not found"):
        verify_signature(IMAGE, tmp_path / "x.sif", runner=runner, options=ConvertOptions())
    assert runner.calls[0].argv == ("apptainer", "verify", "--local", str(tmp_path / "x.sif"))


def test_apptainer_is_told_where_to_work():
    environment = build_environment(ConvertOptions(cache_dir=Path("/c"), environment={"A": "1"}), Path("/b"))
    assert environment["APPTAINER_TMPDIR"] == "/b"
    assert environment["APPTAINER_CACHEDIR"] == "/c"
    assert environment["A"] == "1"


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("apptainer version 1.4.5\n", True),
        ("apptainer version 1.4.0-1.el9", True),
        ("apptainer version 2.0.0", True),
        ("apptainer version 1.3.6", False),
        ("singularity-ce version 4.1.0", False),
        ("", False),
    ],
)
def test_the_faster_compression_is_asked_for_where_it_is_known(version, supported):
    assert supports_zstd(version) is supported


def test_a_conversion_leaves_the_sif_and_nothing_else(tmp_path, options):
    apptainer, lines = FakeApptainer(), []
    convert(
        IMAGE,
        tmp_path / "x.sif",
        origin=REGISTRY,
        runner=apptainer.runner(),
        options=options,
        on_progress=lines.append,
    )
    assert (tmp_path / "x.sif").exists()
    assert lines == ["INFO:    Build complete"]
    assert list((tmp_path / "build").iterdir()) == []
    assert apptainer.builds[0].env["APPTAINER_TMPDIR"].startswith(str(tmp_path / "build"))


def test_a_failed_conversion_leaves_nothing(tmp_path, options):
    apptainer = FakeApptainer()
    apptainer.failure = "FATAL: something odd"
    with pytest.raises(ConversionFailed, match="something odd"):
        convert(IMAGE, tmp_path / "x.sif", origin=REGISTRY, runner=apptainer.runner(), options=options)
    assert not (tmp_path / "x.sif").exists()
    assert list((tmp_path / "build").iterdir()) == []


def test_an_apptainer_that_made_no_file_has_failed(tmp_path, options):
    runner = FakeCommandRunner({"apptainer": FakeAnswer()})
    with pytest.raises(ConversionFailed, match="said nothing"):
        convert(IMAGE, tmp_path / "x.sif", origin=REGISTRY, runner=runner, options=options)


def test_a_mksquashfs_without_zstd_is_asked_again_without_it(tmp_path, options):
    apptainer = FakeApptainer()
    apptainer.failure = (RECORDED / "bad-mksquashfs-args.txt").read_text()

    def repair() -> None:
        if "--mksquashfs-args" not in apptainer.builds[-1].argv:
            apptainer.failure = None

    apptainer.on_build = repair
    convert(IMAGE, tmp_path / "x.sif", origin=REGISTRY, runner=apptainer.runner(), options=options)
    assert len(apptainer.builds) == 2


def test_a_conversion_that_takes_too_long_says_so(tmp_path, options):
    runner = FakeCommandRunner(
        {"apptainer": lambda call: FakeAnswer(takes_seconds=10**6 if "build" in call.argv else 0)}
    )
    with pytest.raises(ConversionTimeout, match="14400 s"):
        convert(IMAGE, tmp_path / "x.sif", origin=REGISTRY, runner=runner, options=options)


def test_a_conversion_can_be_stopped(tmp_path, options):
    with pytest.raises(ConversionStopped):
        convert(
            IMAGE, tmp_path / "x.sif", origin=REGISTRY, runner=FakeApptainer().runner(), options=options, should_stop=lambda: True
        )  # fmt: skip
    assert not (tmp_path / "x.sif").exists()


def test_a_missing_apptainer_is_named(tmp_path, options):
    with pytest.raises(ProgramMissing, match="apptainer"):
        convert(IMAGE, tmp_path / "x.sif", origin=REGISTRY, runner=FakeCommandRunner(), options=options)


def test_a_build_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    options = ConvertOptions(tmp_dir=tmp_path / "file" / "build")
    with pytest.raises(StoreNotWritable, match="file/build"):
        convert(IMAGE, tmp_path / "x.sif", origin=REGISTRY, runner=FakeApptainer().runner(), options=options)


def test_by_default_images_are_unpacked_in_the_systems_temporary_directory(tmp_path):
    apptainer = FakeApptainer()
    convert(IMAGE, tmp_path / "x.sif", origin=REGISTRY, runner=apptainer.runner(), options=ConvertOptions())
    assert apptainer.builds[0].env["APPTAINER_TMPDIR"].startswith(tempfile.gettempdir())


def test_what_a_dead_converter_left_is_removed_and_a_living_ones_is_not(tmp_path):
    for name, start in (("girder-sif-dead", -1), ("girder-sif-alive", 0)):
        (tmp_path / name / "rootfs").mkdir(parents=True)
        me = Holder.this_process()
        write_holder(tmp_path / name / "owner.json", replace(me, process_start=me.process_start + start))
    (tmp_path / "girder-sif-unknown").mkdir()
    (tmp_path / "girder-sif-dead" / "rootfs").chmod(0o500)
    remove_dead_builds(ConvertOptions(tmp_dir=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["girder-sif-alive", "girder-sif-unknown"]


def test_another_user_s_build_in_a_shared_temporary_directory_is_left_alone(tmp_path, monkeypatch):
    """Its owner note cannot be read; that used to fail every conversion on the host."""
    for name in ("girder-sif-closed", "girder-sif-dead"):
        (tmp_path / name).mkdir()
        write_holder(tmp_path / name / "owner.json", replace(Holder.this_process(), process_start=1))

    def read(path):
        if path.parent.name == "girder-sif-closed":
            raise PermissionError(13, "Permission denied", str(path))
        return read_holder(path)

    monkeypatch.setattr("girder_worker_singularity.sif.convert.read_holder", read)
    remove_dead_builds(ConvertOptions(tmp_dir=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["girder-sif-closed"]
