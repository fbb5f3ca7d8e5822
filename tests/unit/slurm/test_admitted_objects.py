"""No message runs code while it is decoded, wherever in it the code stands: it is refused, and says why."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from girder_worker.docker import transforms
from girder_worker.docker.transforms import girder as girder_transforms
from slicer_cli_web.girder_worker_plugin import direct_docker_run

from girder_worker_slurm.celery_worker.admitted_objects import STOCK_CLASSES
from girder_worker_slurm.celery_worker.message import decode, store_message
from girder_worker_slurm.errors import MessageUndecodable
from tests.unit.slurm.site import broker_message, message_of

#: What a publisher may try; each would leave a file behind if jsonpickle met it.
ATTACKS = {
    "reduce": {"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["touch {mark}"]}]},
    "new_arguments": {"py/object": "subprocess.Popen", "py/newargs": {"py/tuple": [["touch", "{mark}"]]}},
    "stock_class_with_arguments": {
        "py/object": "girder_worker.docker.transforms.VolumePath",
        "py/newargsex": {"py/tuple": [[], {}]},
    },
    "type": {"py/type": "os.system"},
    "function": {"py/function": "os.system"},
    "module": {"py/mod": "os"},
    "repr": {"py/repr": "os/os.system('touch {mark}')"},
    "other_class": {"py/object": "pathlib.Path"},
    "class_that_is_no_text": {"py/object": ["pathlib.Path"]},
    "name_that_a_stock_module_imports": {"py/object": "girder_worker.docker.transforms.girder.os"},
    "key_that_is_an_object": {'json://{"py/reduce": [{"py/function": "os.system"}]}': 1},
    "reduce_with_a_reference": {"py/reduce": [{"py/id": 1}, {"py/tuple": ["touch {mark}"]}]},
    "reduce_of_a_type_that_is_only_named": {"py/reduce": [{"py/type": "builtins.list"}, {"py/tuple": [[1]]}]},
    "reduce_with_two_meanings": {
        "py/reduce": [{"py/type": "datetime.date", "py/function": "os.system"}, {"py/tuple": []}]
    },
    "arguments_for_a_client": {"py/object": "girder_client.GirderClient", "py/newargs": {"py/tuple": [1]}},
    "state": {
        "py/object": "girder_worker.docker.transforms.VolumePath",
        "py/state": {"py/type": "os.system"},
    },
}
#: Bases that no message has, since they do nothing by themselves.
BASES = {"Transform", "ResultTransform", "NamedPipeBase", "_TemporaryVolumeBase", "GirderClientTransform"}


def armed(attack, mark: Path):
    return json.loads(json.dumps(ATTACKS[attack]).replace("{mark}", str(mark)))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", ["argument", "keyword", "hook", "embedded"])
def test_an_attack_is_refused_wherever_it_stands(tmp_path, attack, place):
    bad = armed(attack, tmp_path / "mark")
    stored = message_of("t1", hooks=[bad] if place == "hook" else None)
    body = {
        "argument": [[[bad]], {}, {}],
        "keyword": [[], {"x": {"y": bad}}, {}],
        "embedded": [[], {}, {"chain": [bad]}],
    }
    if place in body:
        stored["body"] = json.dumps(body[place])
    if (place, attack) == ("hook", "key_that_is_an_object"):
        # Girder Worker makes hooks with keys that are text, whatever it is.
        assert decode(stored).hooks == (bad,)
        return
    with pytest.raises(MessageUndecodable, match="requeue t1"):
        decode(stored)
    assert not (tmp_path / "mark").exists()


#: What decodes in a worker besides its own steps: Celery a body, and Girder Worker the hooks of a task that Celery runs.
OTHER_DECODERS = """
import json, sys
import girder_worker.app as stock
from girder_worker.docker.transforms import VolumePath
from kombu.serialization import dumps, loads
from girder_worker_slurm.celery_worker.admitted_objects import STOCK_CLASSES, guard_decoding

stock.app.loader.import_default_modules()
if sys.argv[1] == "guarded":
    guard_decoding(STOCK_CLASSES)

def body(value):
    return loads(json.dumps(value), "application/json", "utf-8", accept={"application/json"})

def hook(value):
    task = stock.app.tasks["girder.tasks.copyFolderTask"]
    task.push_request(girder_result_hooks=[value], headers={}, girder_api_url=None)
    stock.gw_task_prerun(task=task, sender=task)
    return task.request.girder_result_hooks[0]

for decode, bad in zip((body, hook), json.load(sys.stdin)):
    try:
        print("made", decode(bad))
    except Exception as error:
        print("refused", error)

kind, encoding, text = dumps({"x": VolumePath("a")}, "girder_io")
assert body(json.loads(text))["x"].filename == "a"
assert hook(stock.jsonpickle.pickler.Pickler().flatten(VolumePath("b"))).filename == "b"
assert stock._girder_io_decode(stock._girder_io_encode([VolumePath("c")]))[0].filename == "c"
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_nothing_in_the_worker_s_process_decodes_with_jsonpickle(tmp_path, guarded):
    """In a process of its own, since it changes what all of Celery decodes with. Unguarded as well, so that it can fail."""
    marks = [tmp_path / "body", tmp_path / "hook"]
    done = subprocess.run(
        [sys.executable, "-c", OTHER_DECODERS, "guarded" if guarded else "stock"],
        input=json.dumps([armed("reduce", mark) for mark in marks]),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "GIRDER_WORKER_BROKER": "memory://"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("could run code") == (2 if guarded else 0), done.stdout
    assert [mark.exists() for mark in marks] == [not guarded] * 2


def test_a_message_of_the_first_protocol_is_looked_at_as_plain_json(tmp_path):
    mark = tmp_path / "mark"
    body = {"id": "t9", "task": "a.task", "args": [armed("reduce", mark)]}
    stored = store_message(broker_message(body))
    assert (stored["task_id"], stored["task"]) == ("t9", "a.task")
    assert not mark.exists()


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/x-yaml"])
def test_pickle_and_yaml_are_not_read(content_type):
    stored = {**message_of("t1"), "body": "[[], {}, {}]", "content_type": content_type}
    with pytest.raises(MessageUndecodable, match=f"{content_type}; only application/json"):
        decode(stored)


def test_every_stock_transform_is_admitted_and_nothing_else():
    found = {
        f"{cls.__module__}.{cls.__qualname__}"
        for module in (transforms, girder_transforms, direct_docker_run)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, transforms.Transform) and cls.__name__ not in BASES
    }
    assert found == STOCK_CLASSES
