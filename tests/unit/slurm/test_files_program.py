"""`girder-slurm-files` and the worker believe each other nothing that could lead out of a directory."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest

from girder_worker_slurm.cluster import files_program
from girder_worker_slurm.cluster.files_program import FilesServer, enter
from girder_worker_slurm.cluster.frames import FrameInvalid, frame, read_frame
from girder_worker_slurm.cluster.tree_transfer import TreeReceiver, left_entries, open_inside

END = {"entry": "end"}


def reader(data: bytes):
    stream = io.BytesIO(data)

    def read(count: int) -> bytes:
        found = stream.read(count)
        if len(found) < count:
            raise EOFError
        return found

    return read


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A directory that the program has entered."""
    root = tmp_path / "runs"
    monkeypatch.chdir(tmp_path)
    enter(root)
    return root


def ask(*orders):
    """The answers to these orders, each a head, or a head and bytes."""
    sent = b"".join(frame(*order) if isinstance(order, tuple) else frame(order) for order in orders)
    out = io.BytesIO()
    with contextlib.suppress(EOFError):
        FilesServer().serve(io.BytesIO(sent), out)
    read = reader(out.getvalue())
    answers = [read_frame(read) for _ in range(1 + len(orders))]
    assert answers[0][0]["program"] == "girder-slurm-files"
    return answers[1:]


@pytest.mark.parametrize("damaged", [b"HTTP/1.1 200 OK....", b"gsf1" + b"\xff" * 8, frame({})[:-1]])
def test_what_is_no_frame_is_refused(damaged):
    with pytest.raises((FrameInvalid, EOFError)):
        read_frame(reader(damaged))


@pytest.mark.parametrize("text", [b"[1]", b"{", b"[" * 100_000])
def test_a_head_that_is_not_what_it_should_be_is_refused(text):
    damaged = frame({})[:4] + len(text).to_bytes(4, "big") + bytes(4) + text
    with pytest.raises(FrameInvalid):
        read_frame(reader(damaged))


def test_a_frame_that_the_other_side_would_refuse_is_not_sent():
    with pytest.raises(FrameInvalid):
        frame({}, bytes(5 * 1024 * 1024))


def test_names_of_files_that_no_text_can_hold_travel_as_they_are():
    name = os.fsdecode(b"a\xffb\n")
    assert read_frame(reader(frame({"path": name})))[0] == {"path": name}


@pytest.mark.parametrize("token", ["..", ".", "", "a/b", "../x", "/etc", ".hidden", "a\0", "a\n", 7, None])
@pytest.mark.parametrize(
    "do", ["create", "remove", "remove_data", "claimed", "kept_events", "put", "collect"]
)
def test_a_token_that_leads_out_is_refused(root, do, token):
    (root.parent / "x").mkdir()
    ((answer, _),) = ask({"do": do, "token": token})
    assert "error" in answer
    assert (root.parent / "x").is_dir()


@pytest.mark.parametrize("name", ["../nonce", "a/b", "..", "volume/x"])
def test_a_file_outside_of_the_run_directory_is_neither_written_nor_read(root, name):
    orders = [{"do": "prepare"}, {"do": "create", "token": "t"}]
    orders += [
        ({"do": "write", "token": "t", "name": name, "mode": 384}, b"x"),
        {"do": "read", "token": "t", "name": name},
    ]
    *_, written, read = ask(*orders)
    assert "error" in written[0]
    assert "error" in read[0]
    assert sorted(path.name for path in root.rglob("*")) == ["run", "scratch", "spool", "t", "volume"]


def test_a_link_out_of_the_run_directory_is_not_read(root, tmp_path):
    (tmp_path / "secret").write_text("secret")
    ask({"do": "prepare"}, {"do": "create", "token": "t"})
    (root / "run" / "t" / "output.log").symlink_to(tmp_path / "secret")
    answers = ask(
        {"do": "read", "token": "t", "name": "output.log"}, {"do": "size", "token": "t", "name": "output.log"}
    )
    assert ["error" in head for head, _ in answers] == [True, True]


def test_orders_that_make_no_sense_are_answered_and_the_next_one_is_done(root):
    answers = ask({"do": "nothing"}, {}, {"do": "claim", "token": "t"}, {"do": "prepare"})
    assert ["error" in head for head, _ in answers] == [True, True, True, False]
    assert (root / "spool").is_dir()


def test_a_directory_of_another_user_is_not_entered(tmp_path, monkeypatch):
    monkeypatch.setattr(files_program.os, "geteuid", lambda: os.getuid() + 1)
    (tmp_path / "other").mkdir()
    with pytest.raises(PermissionError, match="belongs to another user"):
        enter(tmp_path / "other")


def test_a_link_in_the_place_of_the_directory_is_not_entered(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError):  # noqa: PT011 - ELOOP or ENOTDIR, as the system likes
        enter(tmp_path / "link")
    with pytest.raises(OSError, match="no absolute path"):
        enter(Path("relative"))


def test_a_directory_that_others_could_read_is_closed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "open").mkdir(mode=0o755)
    enter(tmp_path / "open")
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "volume/../../x", "other/x", "", "volume/\0", None, "run/../volume"]
)
def test_a_path_that_leads_out_is_not_received(tmp_path, path):
    receiver = TreeReceiver(tmp_path, ("volume",))
    for kind in ("directory", "file", "link"):
        with pytest.raises(FrameInvalid):
            receiver.take({"entry": kind, "path": path, "target": "x"}, b"")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link_that_was_received(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    receiver = TreeReceiver(place, ("volume",))
    receiver.take({"entry": "directory", "path": "volume"}, b"")
    receiver.take({"entry": "link", "path": "volume/way", "target": "../.."}, b"")
    with pytest.raises(FileNotFoundError):
        receiver.take({"entry": "file", "path": "volume/way/evil", "mtime_ns": 1}, b"")
    receiver.take({"entry": "directory", "path": "volume/way"}, b"")
    receiver.take({"entry": "file", "path": "volume/way/evil", "mtime_ns": 1}, b"")
    with pytest.raises(FileExistsError):
        receiver.take(END, b"")
    assert not (tmp_path / "evil").exists()


def test_a_file_is_received_once_and_a_piece_only_after_its_file(tmp_path):
    receiver = TreeReceiver(tmp_path, ("volume",))
    with pytest.raises(FrameInvalid):
        receiver.take({"entry": "piece"}, b"x")
    receiver.take({"entry": "directory", "path": "volume"}, b"")
    receiver.take({"entry": "file", "path": "volume/a", "mtime_ns": 5_000}, b"")
    receiver.take({"entry": "piece"}, b"xy")
    with pytest.raises(FileExistsError):
        receiver.take({"entry": "file", "path": "volume/a", "mtime_ns": 1}, b"")
    assert (tmp_path / "volume" / "a").read_bytes() == b"xy"


def test_what_leads_out_of_the_volume_is_not_sent(tmp_path):
    volume = tmp_path / "volume"
    (volume / "inputs" / "0").mkdir(parents=True)
    (volume / "inputs" / "0" / "slide").write_text("slide")
    (tmp_path / "secret").write_text("secret")
    os.mkfifo(volume / "pipe")
    for name, target in {
        "out": "../secret",
        "absolute": str(tmp_path / "secret"),
        "loop": "loop",
        "input": "inputs/0/slide",
        "directory": "inputs",
    }.items():
        (volume / name).symlink_to(target)
    sent = list(left_entries(volume, inputs="inputs", begun_ns=2**62))
    assert not any(b"secret" in data for _, data in sent)
    found = {head["path"]: head["entry"] for head, _ in sent if "path" in head}
    assert found == {
        "volume": "directory",
        "volume/inputs": "directory",
        "volume/inputs/0": "directory",
        # A link to an input, which is not sent, becomes what it leads to.
        "volume/input": "file",
        "volume/directory": "link",
        # Inside, for all that one can see.
        "volume/loop": "link",
    }


def test_what_was_opened_counts_and_not_what_its_path_seemed_to_be(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "in" / "fine").write_text("fine")
    with pytest.raises(PermissionError):
        open_inside(tmp_path / "in" / "link", tmp_path / "in")
    with pytest.raises(PermissionError):
        open_inside(tmp_path / "in", tmp_path)
    descriptor = open_inside(tmp_path / "in" / "fine", tmp_path / "in")
    assert os.read(descriptor, 10) == b"fine"
    os.close(descriptor)


def test_the_program_says_how_it_is_used(capsys):
    assert files_program.main(["--help"]) == 0
    assert files_program.main([]) == 2
    assert "usage: girder-slurm-files DIRECTORY" in capsys.readouterr().out
