from __future__ import annotations

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
    StoreNotWritable,
)
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.lease import Holder, read_holder, write_holder
from girder_worker_singularity.sif.convert import (
    ConvertOptions,
    build_argv,
    build_environment,
    conversion_error,
    convert,
    remove_dead_builds,
    supports_zstd,
)
from girder_worker_singularity.testing import FakeAnswer, FakeCommandRunner
from tests.support.sif_files import FakeApptainer

RECORDED = Path(__file__).parents[2] / "recorded" / "apptainer-1.4.5"
IMAGE = parse_image_reference("team/tool:1")
LOCAL = parse_image_reference("127.0.0.1:5000/team/tool:1")
DIGEST = "sha256:" + "ab" * 32


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
    argv = build_argv(IMAGE, Path("/s/x.sif"), source="docker", options=ConvertOptions(), zstd=True)
    assert argv == (
        "apptainer", "build", "--force", "--disable-cache", "--mksquashfs-args", "-comp zstd -Xcompression-level 3",
        "/s/x.sif", "docker://docker.io/team/tool:1",
    )  # fmt: skip


def test_a_registry_without_tls_is_asked_so_only_if_it_is_listed():
    plain = ConvertOptions(
        plain_http_registries=("127.0.0.1:5000",), cache_dir=Path("/c"), authfile=Path("/a.json")
    )
    assert build_argv(LOCAL, Path("/x.sif"), source="docker", options=plain, zstd=False) == (
        "apptainer", "build", "--force", "--authfile", "/a.json", "--no-https",
        "/x.sif", "docker://127.0.0.1:5000/team/tool:1",
    )  # fmt: skip
    assert "--no-https" not in build_argv(IMAGE, Path("/x.sif"), source="docker", options=plain, zstd=False)


def test_a_digest_pins_what_is_pulled():
    argv = build_argv(IMAGE, Path("/x"), source="docker", options=ConvertOptions(), zstd=False, digest=DIGEST)
    assert argv[-1] == f"docker://docker.io/team/tool@{DIGEST}"


@pytest.mark.parametrize(
    ("image", "source"),
    [
        ("a/b", "docker-daemon:a/b:latest"),
        ("a/b:1", "docker-daemon:a/b:1"),
        (f"a@{DIGEST}", f"docker-daemon:a@{DIGEST}"),
    ],
)
def test_the_docker_engine_is_asked_by_the_name_it_knows(image, source):
    reference = parse_image_reference(image)
    argv = build_argv(reference, Path("/x"), source="docker-daemon", options=ConvertOptions(), zstd=False)
    assert argv[-1] == source


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
        source="docker",
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
        convert(IMAGE, tmp_path / "x.sif", source="docker", runner=apptainer.runner(), options=options)
    assert not (tmp_path / "x.sif").exists()
    assert list((tmp_path / "build").iterdir()) == []


def test_an_apptainer_that_made_no_file_has_failed(tmp_path, options):
    runner = FakeCommandRunner({"apptainer": FakeAnswer()})
    with pytest.raises(ConversionFailed, match="said nothing"):
        convert(IMAGE, tmp_path / "x.sif", source="docker", runner=runner, options=options)


def test_a_mksquashfs_without_zstd_is_asked_again_without_it(tmp_path, options):
    apptainer = FakeApptainer()
    apptainer.failure = (RECORDED / "bad-mksquashfs-args.txt").read_text()

    def repair() -> None:
        if "--mksquashfs-args" not in apptainer.builds[-1].argv:
            apptainer.failure = None

    apptainer.on_build = repair
    convert(IMAGE, tmp_path / "x.sif", source="docker", runner=apptainer.runner(), options=options)
    assert len(apptainer.builds) == 2


def test_a_conversion_that_takes_too_long_says_so(tmp_path, options):
    runner = FakeCommandRunner(
        {"apptainer": lambda call: FakeAnswer(takes_seconds=10**6 if "build" in call.argv else 0)}
    )
    with pytest.raises(ConversionTimeout, match="14400 s"):
        convert(IMAGE, tmp_path / "x.sif", source="docker", runner=runner, options=options)


def test_a_conversion_can_be_stopped(tmp_path, options):
    with pytest.raises(ConversionStopped):
        convert(
            IMAGE, tmp_path / "x.sif", source="docker", runner=FakeApptainer().runner(), options=options, should_stop=lambda: True
        )  # fmt: skip
    assert not (tmp_path / "x.sif").exists()


def test_a_missing_apptainer_is_named(tmp_path, options):
    with pytest.raises(ProgramMissing, match="apptainer"):
        convert(IMAGE, tmp_path / "x.sif", source="docker", runner=FakeCommandRunner(), options=options)


def test_a_build_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    options = ConvertOptions(tmp_dir=tmp_path / "file" / "build")
    with pytest.raises(StoreNotWritable, match="file/build"):
        convert(IMAGE, tmp_path / "x.sif", source="docker", runner=FakeApptainer().runner(), options=options)


def test_by_default_images_are_unpacked_in_the_systems_temporary_directory(tmp_path):
    apptainer = FakeApptainer()
    convert(IMAGE, tmp_path / "x.sif", source="docker", runner=apptainer.runner(), options=ConvertOptions())
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
