"""What somebody may publish who has got into the broker: no code of a message runs in the worker, and it goes on."""

from __future__ import annotations

import json
import pickle
import uuid
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Connection, Producer

from tests.support.girder_site import SUCCESS, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.conftest import Site

pytestmark = pytest.mark.girder

DOCKER_RUN = "girder_worker.docker.tasks.docker_run"


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def _code(mark: Path) -> dict[str, Any]:
    """JSON that makes a file when jsonpickle decodes it."""
    return {"py/reduce": [{"py/function": "os.system"}, {"py/tuple": [f"touch {mark}"]}]}


def test_no_code_of_a_message_runs_in_the_worker(site: Site, folder: str) -> None:
    marks = {
        name: site.stack.shared / f"mark-{uuid.uuid4().hex}"
        for name in ("v1", "v2", "hook", "pickle", "other", "other_hook", "other_pickle")
    }
    ids = {name: f"hostile-{name}-{uuid.uuid4().hex[:8]}" for name in (*marks, "giant")}

    def headers(name: str, **more: Any) -> dict[str, Any]:
        return {"lang": "py", "id": ids[name], "task": DOCKER_RUN, "root_id": ids[name], **more}

    empty = json.dumps([[], {}, {}])
    with Connection(site.stack["GIRDER_WORKER_BROKER"]) as connection:
        producer = Producer(connection.channel())

        def publish(body: str | bytes, content_type: str = "application/json", **fields: Any) -> None:
            encoding = "utf-8" if isinstance(body, str) else "binary"
            producer.publish(
                body, routing_key="celery", content_type=content_type, content_encoding=encoding, **fields
            )

        publish(json.dumps({"id": ids["v1"], "task": DOCKER_RUN, "args": [_code(marks["v1"])], "kwargs": {}}))
        publish(json.dumps([[_code(marks["v2"])], {}, {}]), headers=headers("v2"))
        publish(empty, headers=headers("hook", girder_result_hooks=[_code(marks["hook"])]))
        publish(
            pickle.dumps([[_Touch(marks["pickle"])], {}, {}]),
            "application/x-python-serialize",
            headers=headers("pickle"),
        )
        # A task that Celery itself runs in this worker, and whose message it decodes.
        publish(
            json.dumps([[_code(marks["other"])], {}, {}]), headers=headers("other", task="celery.accumulate")
        )
        publish(
            pickle.dumps([[_Touch(marks["other_pickle"])], {}, {}]),
            "application/x-python-serialize",
            headers=headers("other_pickle", task="celery.accumulate"),
        )
        # A task of Girder, before which Girder Worker makes the hooks in its headers.
        publish(
            empty,
            headers=headers(
                "other_hook",
                task="girder.tasks.copyFolderTask",
                girder_result_hooks=[_code(marks["other_hook"])],
            ),
        )
        publish(
            zlib.compress(bytes(100_000_000)),
            headers=headers("giant", compression="application/x-gzip"),
        )
    for name in ("v2", "hook", "pickle"):
        wait_until(f"{name} has ended", (site.worker.root / "ended" / ids[name]).exists, seconds=30)
        assert (site.worker.root / "unhandled" / ids[name] / "reason.txt").exists(), name
    wait_until("v1 is kept", (site.worker.root / "unhandled" / ids["v1"]).exists, seconds=30)
    reason = site.worker.root / "unhandled" / ids["giant"] / "reason.txt"
    wait_until("the giant is kept", reason.exists, seconds=30)
    assert "when it is unpacked" in reason.read_text(encoding="utf-8")
    # They were taken in their order, so what Celery decodes has been decoded when this one ends.
    ended = site.girder.wait_for_end(site.run_toy(folder))
    assert ended["status"] == SUCCESS, ended["log"]
    assert [name for name, mark in marks.items() if mark.exists()] == []
