"""Images → folders and items in Girder: several at once, one failing, again and again."""

from __future__ import annotations

import json
import threading
from base64 import b64decode
from dataclasses import dataclass, field
from types import SimpleNamespace
from urllib.parse import parse_qsl

import pytest

from girder_worker_singularity.sif.convert import ConvertOptions
from girder_worker_singularity.sif.store import SifStore, StoreOptions
from girder_worker_singularity.sif.use import last_used
from girder_worker_singularity.testing import FakeAnswer, FakeClock, FakeCommandRunner
from girder_worker_slurm.celery_worker.message import DecodedTask
from girder_worker_slurm.errors import GirderUnreachable, JobCancelled, NotSupported
from girder_worker_slurm.girder.ingest import ingest_images, labels_for_girder, read_descriptions
from tests.support.sif_files import FakeApptainer, sif_bytes
from tests.unit.slurm.http_girder import HttpGirder, Mishap, http_girder

XML = "<executable><title>T</title></executable>"


@dataclass
class IngestGirder(HttpGirder):
    """Folders and CLI items, as far as an ingest looks at them."""

    folders: dict[tuple[str, str], dict] = field(default_factory=dict)
    clis: dict[str, dict] = field(default_factory=dict)

    def answer(self, method, path, parameters, body):
        parts = path.strip("/").split("/")
        if (method, path) == ("POST", "/folder"):
            form = dict(parse_qsl(body.decode()))
            key = (form["parentId"], form["name"])
            folder = self.folders.setdefault(key, {"_id": self.new_id("d"), "name": form["name"], "meta": {}})
            folder["meta"] |= json.loads(form["metadata"])
            return 200, folder
        if (method, path) == ("POST", "/slicer_cli_web/cli"):
            return 200, self._put_cli(dict(parse_qsl(body.decode())))
        if method == "DELETE" and path.startswith("/slicer_cli_web/cli/"):
            del self.clis[parts[-1]]
            return 200, {"status": "OK"}
        if (method, path) == ("GET", "/item"):
            return 200, [cli for cli in self.clis.values() if cli["folderId"] == parameters["folderId"]]
        if method == "PUT" and parts[0] == "item" and parts[-1] == "metadata":
            meta = self.clis[parts[1]]["meta"]
            meta |= json.loads(body)
            for name in [name for name, value in meta.items() if value is None]:
                del meta[name]
            return 200, {}
        return super().answer(method, path, parameters, body)

    def _put_cli(self, form):
        for cli in self.clis.values():
            if (cli["folderId"], cli["name"]) == (form["folder"], form["name"]):
                break
        else:
            cli = {"_id": self.new_id("i"), "folderId": form["folder"], "name": form["name"], "meta": {}}
            self.clis[cli["_id"]] = cli
        cli["meta"] |= {"slicerCLIType": "task", "image": form["image"], "desc_type": form["desc_type"]}
        cli["meta"]["spec"] = b64decode(form["spec"]).decode()
        return cli

    def names(self, image):
        return sorted(cli["name"] for cli in self.clis.values() if cli["meta"]["image"] == image)

    def meta(self, name):
        (cli,) = (cli for cli in self.clis.values() if cli["name"] == name)
        return cli["meta"]


class Bench:
    def __init__(self, girder, tmp_path):
        self.girder = girder
        self.root = tmp_path
        self.clock = FakeClock()
        self.apptainer = FakeApptainer()
        self.images: dict[str, dict | str | FakeAnswer] = {}
        self.on_list = lambda _image: None
        self.runner = FakeCommandRunner({"apptainer": self.answer})
        options = StoreOptions(ConvertOptions(tmp_dir=tmp_path / "build"), minimum_free_bytes=0)
        self.store = SifStore(
            tmp_path / "sifs",
            self.runner,
            self.clock,
            options,
            ask_registry=lambda *_: "sha256:" + "ab" * 32,
            ask_engine=lambda _: None,
        )
        self.news = []
        self.check = lambda: None

    def answer(self, call):
        if "exec" not in call.argv:
            return self.apptainer(call)
        image = next(
            name
            for name in self.images
            if f"/{name.replace('/', '_').replace(':', '_')}.sif" in str(call.argv)
        )
        clis = self.images[image]
        self.on_list(image)
        if isinstance(clis, FakeAnswer):
            return clis
        if isinstance(clis, str):
            return FakeAnswer(stdout=clis)
        if call.argv[-1] == "--list_cli":
            return FakeAnswer(stdout="starting\n" + json.dumps(clis))
        return FakeAnswer(stdout=f"noise\n{clis[call.argv[-2]].get('text', XML)}\nnoise\n")

    def ingest(self, *names, **kwargs):
        values = {"name_list": list(names), "token": "t", "folder_id": "base", "pull": None, **kwargs}
        decoded = DecodedTask((), values, {}, SimpleNamespace(apiUrl=self.girder.url), ())
        self.news.clear()
        return ingest_images(
            decoded,
            api_url="",
            images=self.store,
            runner=self.runner,
            clock=self.clock,
            apptainer="apptainer",
            image_rules={},
            jobs_root=self.root,
            check=self.check,
            say=self.news.append,
        )

    def said(self, image):
        return [news.line for news in self.news if news.line.startswith(f"{image}: ")]


@pytest.fixture
def bench(tmp_path):
    with http_girder(IngestGirder) as girder:
        yield Bench(girder, tmp_path)


def test_an_image_becomes_a_folder_a_tag_and_items(bench):
    oci = {"Entrypoint": ["./run"], "Labels": {"description": "a toy", "org.example.kind": "test"}}
    bench.apptainer.images[f"docker://docker.io/team/a@sha256:{'ab' * 32}"] = sif_bytes(oci_config=oci)
    bench.images["team/a:1"] = {"A": {}, "B": {"docker-params": {"mem_limit": "1g"}}}
    assert bench.ingest("team/a:1") == []
    image = bench.girder.folders["base", "team/a"]
    tag = bench.girder.folders[image["_id"], "1"]
    assert image["meta"] == {"slicerCLIType": "image"}
    assert tag["meta"] == {
        "slicerCLIType": "tag",
        "digest": f"team/a@sha256:{'ab' * 32}",
        "org_example_kind": "test",
    }
    assert bench.girder.names("team/a:1") == ["A", "B"]
    assert bench.girder.meta("A")["spec"] == XML
    assert "docker-params" not in bench.girder.meta("A")
    assert bench.girder.meta("B")["docker-params"] == {"mem_limit": "1g"}
    assert bench.said("team/a:1")[-1] == "team/a:1: 2 CLIs registered: A, B"
    assert last_used(bench.store.root / "team_a_1.sif") == bench.clock.now()
    assert read_descriptions(bench.root, "team_a_1.sif") == {"A": XML, "B": XML}


def test_descriptions_come_in_three_languages(bench):
    bench.images["team/a:1"] = {
        "X": {},
        "J": {"desc-type": "json", "text": '{"title": "J"}'},
        "Y": {"desc-type": "yaml", "text": "title: Y\ndescription: y"},
    }
    assert bench.ingest("team/a:1") == []
    metas = [bench.girder.meta(name) for name in ("X", "J", "Y")]
    assert [(meta["desc_type"], meta["spec"]) for meta in metas] == [
        ("xml", XML),
        ("json", '{"title": "J"}'),
        ("yaml", "title: Y\ndescription: y\n"),
    ]


def test_one_failing_image_does_not_fail_the_others(bench):
    bench.images |= {"team/a:1": {"A": {}}, "team/b:1": "no json at all", "team/c:1": {"C": {}}}
    assert bench.ingest("team/a:1", "team/b:1", "UPPER:1", "team/c:1") == ["team/b:1", "UPPER:1"]
    assert bench.girder.names("team/a:1") == ["A"]
    assert bench.girder.names("team/c:1") == ["C"]
    assert "not JSON" in bench.said("team/b:1")[-1]


def test_two_images_are_ingested_at_a_time(bench):
    bench.images |= {f"team/a:{number}": {"A": {}} for number in range(4)}
    meeting, lock, now, most = threading.Barrier(2, timeout=20), threading.Lock(), [0], [0]
    first: set[str] = set()

    def list_cli(image):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            is_first = image not in first
            first.add(image)
        if is_first:
            meeting.wait()  # breaks if they come one by one
        with lock:
            now[0] -= 1

    bench.on_list = list_cli
    assert bench.ingest(*bench.images) == []
    assert most == [2]
    assert len(bench.girder.folders) == 5


def test_the_progress_counts_images_and_names_those_under_way(bench):
    bench.images |= {"team/a:1": {"A": {}}, "team/b:1": "broken"}
    bench.ingest("team/a:1", "team/b:1")
    assert bench.news[0].progress == 0.0
    assert bench.news[0].message == "0 of 2 images done; now team/a:1"
    assert bench.news[-1].progress == 1.0
    assert any("team/a:1 (asking for its CLIs)" in news.message and not news.line for news in bench.news)
    assert bench.news[-1].message == "2 of 2 images done"
    assert sorted(news.progress for news in bench.news) == [news.progress for news in bench.news]
    assert all("\n" not in news.line for news in bench.news)


def test_an_image_that_is_named_twice_is_ingested_once(bench):
    bench.images["team/a:1"] = {"A": {}}
    assert bench.ingest("team/a:1", "team/a:1") == []
    assert len(bench.said("team/a:1")) == 2


def test_another_ingest_replaces_and_removes_what_is_gone(bench):
    bench.images["team/a:1"] = {"A": {"docker-params": {"x": 1}}, "Old": {}}
    bench.images["team/a:2"] = {"Old": {}}
    bench.ingest("team/a:1", "team/a:2")
    before = bench.girder.meta("A")
    bench.girder.clis["mine"] = {
        "_id": "mine",
        "folderId": next(c["folderId"] for c in bench.girder.clis.values() if c["name"] == "A"),
        "name": "notes of a person",
    }
    bench.images["team/a:1"] = {"A": {"text": XML.replace("T", "New")}, "B": {}}
    assert bench.ingest("team/a:1") == []
    assert bench.girder.meta("A") is before
    assert "New" in before["spec"]
    assert "docker-params" not in before
    del bench.girder.clis["mine"]  # still there
    assert bench.girder.names("team/a:1") == ["A", "B"]
    assert bench.girder.names("team/a:2") == ["Old"]
    assert bench.said("team/a:1")[-1] == "team/a:1: 2 CLIs registered: A, B; no longer there and removed: Old"


def test_an_image_that_fails_removes_nothing(bench):
    bench.images["team/a:1"] = {"A": {}, "B": {}}
    bench.ingest("team/a:1")
    bench.images["team/a:1"] = "broken"
    assert bench.ingest("team/a:1") == ["team/a:1"]
    assert bench.girder.names("team/a:1") == ["A", "B"]


def test_a_description_on_which_girder_fails_fails_its_image_only(bench):
    bench.images |= {"team/a:1": {"A": {}}}
    body = json.dumps({"message": "Failed to parse json", "trace": ["secret paths"], "type": "internal"})
    bench.girder.mishaps.append(Mishap("POST", "/slicer_cli_web/cli", 500, body.encode()))
    assert bench.ingest("team/a:1") == ["team/a:1"]
    (_, line) = bench.said("team/a:1")
    assert "CLI A (500): Failed to parse json" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("path", "status"), [("/slicer_cli_web/cli", 503), ("/slicer_cli_web/cli", 0), ("/folder", 500)]
)
def test_a_girder_that_is_away_fails_no_image(bench, path, status):
    bench.images |= {"team/a:1": {"A": {}}}
    bench.girder.mishaps += [Mishap("POST", path, status)] * 2
    with pytest.raises(GirderUnreachable):
        bench.ingest("team/a:1")


def test_a_refusal_is_told(bench):
    bench.images |= {"team/a:1": {"A": {}}}
    bench.girder.mishaps.append(Mishap("POST", "/folder", 403, b'{"message": "Write access denied"}'))
    assert bench.ingest("team/a:1") == ["team/a:1"]
    assert "Girder refused it (403): Write access denied" in bench.said("team/a:1")[-1]


def test_a_cancel_ends_it_before_the_next_image(bench):
    bench.images |= {f"team/a:{number}": {"A": {}} for number in range(6)}
    cancelled = threading.Event()

    def check():
        if cancelled.is_set():
            raise JobCancelled("in Girder")

    bench.check = check
    bench.on_list = lambda _image: cancelled.set()
    with pytest.raises(JobCancelled):
        bench.ingest(*bench.images)
    assert bench.girder.clis == {}
    assert len([news for news in bench.news if "fetching" in news.line]) <= 2


def test_a_cancel_does_not_wait_for_an_image_that_does_not_answer(bench):
    bench.images["team/a:1"] = FakeAnswer(stdout=json.dumps({"A": {}}), takes_seconds=200)
    cancelled = threading.Event()

    def check():
        if cancelled.is_set():
            raise JobCancelled("in Girder")

    bench.check = check
    bench.on_list = lambda _image: cancelled.set()
    with pytest.raises(JobCancelled):
        bench.ingest("team/a:1")
    assert [call.argv[-1] for call in bench.runner.calls if "exec" in call.argv] == ["--list_cli"]
    assert list((bench.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("missing", ["name_list", "token", "folder_id"])
def test_a_task_that_does_not_say_what_to_ingest_is_refused(bench, missing):
    with pytest.raises(NotSupported):
        bench.ingest("a:1", **{missing: None})


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("org.example/a b", "x", {"org_example/a b": "x"}),
        ("$where", "x", {"_where": "x"}),
        ("", "x", {}),
        ("a\0b", "c", {"a_b": "c"}),
        ("half\udc80", "\ud83d", {"half?": "?"}),
    ],
)
def test_labels_are_stored_by_names_that_girder_can_hold(name, value, stored):
    assert labels_for_girder({name: value}) == stored
