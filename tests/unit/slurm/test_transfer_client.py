"""Downloads and uploads that break off go on where they were; nothing is uploaded twice."""

from __future__ import annotations

import pytest
from girder_client import HttpError

from girder_worker_slurm.errors import GirderUnreachable, JobCancelled, OutputRefused
from girder_worker_slurm.girder import transfer_client
from girder_worker_slurm.girder.transfer_client import TransferClient, Upload
from tests.unit.slurm.http_girder import Mishap, http_girder


class Ledger:
    def __init__(self) -> None:
        self.uploads: dict[str, Upload] = {}
        self.done: list[str] = []

    def is_uploaded(self, key):
        return key in self.done

    def upload(self, key):
        return self.uploads.get(key)

    def begun(self, key, upload_id):
        self.uploads[key] = Upload(upload_id, 0)

    def acknowledged(self, key, offset):
        self.uploads[key] = Upload(self.uploads[key].upload_id, offset)

    def finished(self, key):
        self.done.append(key)


@pytest.fixture
def girder():
    with http_girder() as girder:
        yield girder


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(transfer_client, "CHUNK_BYTES", 4)


@pytest.fixture
def client(girder, tmp_path):
    return make_client(girder, tmp_path, Ledger())


def make_client(girder, tmp_path, ledger, check=lambda: None):
    client = TransferClient(girder.url, "token", check)
    client.ledger = ledger
    client.upload_root = tmp_path
    client.key_prefix = "0"
    return client


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "out.txt"
    path.write_bytes(b"0123456789")
    return path


def test_a_file_goes_into_a_folder_in_pieces(girder, client, file, small_chunks):
    client.uploadFileToFolder("folder1", str(file))
    assert girder.contents("out.txt") == [b"0123456789"]
    assert girder.asked("POST", "/file/chunk") == 3
    assert client.ledger.done == ["0:out.txt"]


def test_a_file_that_is_uploaded_is_not_uploaded_again(girder, client, file):
    client.uploadFileToFolder("folder1", str(file))
    client.uploadFileToFolder("folder1", str(file))
    assert girder.contents("out.txt") == [b"0123456789"]


def test_files_of_one_name_in_different_hooks_or_places_are_different(girder, client, tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x").write_bytes(place.encode())
        client.uploadFileToFolder("folder1", str(tmp_path / place / "x"))
    client.key_prefix = "1"
    client.uploadFileToFolder("folder2", str(tmp_path / "a" / "x"))
    assert girder.contents("x") == [b"a", b"b", b"a"]


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.fault("connection to Girder cut", phases=("outputs uploading",))
def test_an_upload_that_broke_off_is_resumed_once(girder, client, file, small_chunks, is_done, number):
    sound = client.post

    def breaking(path, *args, **kwargs):
        if path.startswith("file/chunk") and girder.asked("POST", "/file/chunk") == number:
            girder.mishaps.append(Mishap("POST", "/file/chunk", is_done=is_done))
        return sound(path, *args, **kwargs)

    client.post = breaking
    with pytest.raises(GirderUnreachable):
        client.uploadFileToFolder("folder1", str(file))
    del client.post
    client.uploadFileToFolder("folder1", str(file))
    assert girder.contents("out.txt") == [b"0123456789"]
    assert girder.uploads == {}
    assert client.ledger.done == ["0:out.txt"]


def test_an_upload_that_girder_does_not_know_any_more_was_finished(girder, client, file):
    client.ledger.begun("0:out.txt", "gone")
    client.uploadFileToFolder("folder1", str(file))
    assert girder.contents("out.txt") == []
    assert client.ledger.done == ["0:out.txt"]


def test_a_resume_waits_while_girder_does_not_say_how_far_it_came(girder, client, file):
    client.ledger.begun("0:out.txt", "u1")
    girder.mishaps.append(Mishap("GET", "/file/offset", status=502))
    girder.mishaps.append(Mishap("GET", "/system/version", status=502))
    with pytest.raises(GirderUnreachable):
        client.uploadFileToFolder("folder1", str(file))
    assert client.ledger.done == []


def test_an_upload_that_girder_stumbles_over_is_begun_anew(girder, client, file):
    client.ledger.begun("0:out.txt", "u1")
    girder.mishaps.append(Mishap("GET", "/file/offset", status=500))
    client.uploadFileToFolder("folder1", str(file))
    assert girder.contents("out.txt") == [b"0123456789"]


def test_an_upload_that_another_user_began_is_begun_anew(girder, client, file, small_chunks):
    client.ledger.begun("0:out.txt", "u1")
    client.ledger.acknowledged("0:out.txt", 4)
    girder.uploads["u1"] = {"name": "out.txt", "size": 10, "data": b"0123", "replaced": None, "parent": {}}
    girder.mishaps.append(Mishap("POST", "/file/chunk", status=403))
    client.uploadFileToFolder("folder1", str(file))
    assert girder.contents("out.txt") == [b"0123456789"]
    assert client.ledger.done == ["0:out.txt"]


def test_an_upload_is_resumed_only_where_girder_acknowledged_it(girder, client, file, small_chunks):
    """Girder hashes what it acknowledges: resumed in the middle of a chunk, its hash would be wrong."""
    client.ledger.begun("0:out.txt", "u1")
    girder.uploads["u1"] = {"name": "out.txt", "size": 10, "data": b"012345", "replaced": None, "parent": {}}
    client.uploadFileToFolder("folder1", str(file))
    assert girder.contents("out.txt") == [b"0123456789"]
    assert client.ledger.uploads["0:out.txt"].upload_id != "u1"


def test_a_last_answer_that_is_no_file_is_no_success(girder, client, file):
    girder._finish = lambda _upload: {"_id": "u1", "received": 10}
    with pytest.raises(GirderUnreachable):
        client.uploadFileToFolder("folder1", str(file))
    assert client.ledger.done == []


def test_a_link_out_of_the_volume_is_not_followed(girder, client, file, tmp_path):
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_bytes(b"secret")
    (file.parent / "link").symlink_to(outside)
    with pytest.raises(OutputRefused):
        client.uploadFileToFolder("folder1", str(file.parent / "link"))
    assert not girder.files


def test_the_upload_is_recorded_before_its_first_byte_is_sent(girder, client, file):
    girder.mishaps.append(Mishap("POST", "/file/chunk"))
    with pytest.raises(GirderUnreachable):
        client.uploadFileToFolder("folder1", str(file))
    assert list(client.ledger.uploads) == ["0:out.txt"]


def test_an_empty_file_is_there_at_once(girder, client, tmp_path):
    (tmp_path / "empty").touch()
    client.uploadFileToFolder("folder1", str(tmp_path / "empty"))
    client.uploadFileToFolder("folder1", str(tmp_path / "empty"))
    assert girder.contents("empty") == [b""]
    assert girder.asked("POST", "/file/chunk") == 0


def test_a_cancel_between_two_pieces_stops_the_upload(girder, tmp_path, file, small_chunks):
    def check():
        if girder.asked("POST", "/file/chunk") == 2:
            raise JobCancelled("in Girder")

    client = make_client(girder, tmp_path, Ledger(), check)
    with pytest.raises(JobCancelled):
        client.uploadFileToFolder("folder1", str(file))
    assert girder.asked("POST", "/file/chunk") == 2
    assert girder.contents("out.txt") == []


def test_a_file_of_that_name_in_an_item_gets_the_new_content(girder, client, file):
    girder.files["f1"] = ("out.txt", b"old")
    girder.items["item1"] = ["f1"]
    client.uploadFileToItem("item1", str(file))
    assert girder.files == {"f1": ("out.txt", b"0123456789")}


def test_a_new_file_in_an_item_is_added(girder, client, file):
    girder.files["f1"] = ("other.txt", b"old")
    girder.items["item1"] = ["f1"]
    client.uploadFileToItem("item1", str(file))
    assert len(girder.items["item1"]) == 2


def test_a_file_that_shrinks_meanwhile_is_an_error_and_not_half_a_file(client, file, monkeypatch):
    monkeypatch.setattr(transfer_client, "CHUNK_BYTES", 40_000)
    file.write_bytes(b"x" * 200_000)
    sound = client.post

    def shrinking(path, *args, **kwargs):
        answer = sound(path, *args, **kwargs)
        if path.startswith("file/chunk"):
            file.write_bytes(b"x" * 100_000)
        return answer

    client.post = shrinking
    with pytest.raises(OSError, match="shorter"):
        client.uploadFileToFolder("folder1", str(file))
    assert client.ledger.done == []


def test_a_client_that_was_not_made_for_uploads_does_not_upload(girder, file):
    with pytest.raises(RuntimeError, match="not made for uploads"):
        TransferClient(girder.url, "token", lambda: None).uploadFileToFolder("folder1", str(file))


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_trouble_of_girder_is_unreachable(girder, client, status):
    girder.mishaps.append(Mishap("GET", "/file", status=status))
    with pytest.raises(GirderUnreachable):
        client.getFile("x")


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_of_girder_stays_a_refusal(girder, client, status):
    girder.mishaps.append(Mishap("GET", "/file", status=status))
    with pytest.raises(HttpError):
        client.getFile("x")


def test_a_download_is_there_as_a_whole_or_not_at_all(girder, client, tmp_path):
    girder.files["f1"] = ("in.svs", b"x" * 100_000)
    target = tmp_path / "new" / "in.svs"
    client.downloadFile("f1", str(target))
    assert target.read_bytes() == b"x" * 100_000
    assert [path.name for path in target.parent.iterdir()] == ["in.svs"]


def test_a_download_that_gives_too_little_is_not_taken(girder, client, tmp_path):
    girder.files["f1"] = ("in.svs", b"x" * 10)
    girder.mishaps.append(Mishap("GET", "/file/f1/download", status=200, body=b"xxx"))
    with pytest.raises(GirderUnreachable, match="3 of 10"):
        client.downloadFile("f1", str(tmp_path / "in.svs"))
    assert not (tmp_path / "in.svs").exists()


def test_a_download_stops_at_a_cancel(girder, tmp_path):
    girder.files["f1"] = ("in.svs", b"x" * 10)
    seen = []

    def check():
        seen.append(1)
        if len(seen) == 3:
            raise JobCancelled("in Girder")

    client = make_client(girder, tmp_path, Ledger(), check)
    with pytest.raises(JobCancelled):
        client.downloadFile("f1", str(tmp_path / "in.svs"))
    assert not (tmp_path / "in.svs").exists()
