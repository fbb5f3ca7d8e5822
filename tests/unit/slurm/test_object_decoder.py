"""What a stock server sends becomes what jsonpickle makes of it, object for object; the rest becomes nothing."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import json
import uuid

import jsonpickle
import pytest
from bson import ObjectId
from celery import Celery, chain, chord, group
from girder_client import GirderClient
from girder_worker.docker import transforms
from girder_worker.docker.transforms import girder as girder_transforms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slicer_cli_web.girder_worker_plugin import direct_docker_run

from girder_worker_slurm.celery_worker.admitted_objects import STOCK_CLASSES
from girder_worker_slurm.celery_worker.object_decoder import DEEPEST, MOST_BYTES, decode_text, decode_value
from girder_worker_slurm.errors import MessageUndecodable

INSTANCES = (transforms.Transform, GirderClient)


def shape(value):
    """A value as plain text, with what is one object more than once: equal for equal graphs of objects."""
    seen = {}

    def parts(item):
        if isinstance(item, INSTANCES):
            return {"": type(item).__qualname__, **vars(item)}.items()
        if isinstance(item, dict):
            return item.items()
        return enumerate(sorted(item, key=repr) if isinstance(item, (set, frozenset)) else item)

    def of(item):
        if not isinstance(item, (*INSTANCES, dict, list, tuple, set, frozenset)):
            return f"{type(item).__name__} {item!r}"
        if not isinstance(item, (tuple, set)):  # jsonpickle makes each of these anew
            if id(item) in seen:
                return f"again {seen[id(item)]}"
            seen[id(item)] = len(seen)
        # Celery's signatures are dicts, and become plain ones.
        kind = "dict" if type(item).__module__ == "celery.canvas" else type(item).__name__
        return f"{kind} {[(of(key), of(inner)) for key, inner in parts(item)]}"

    return of(value)


def decoded(text, admitted=STOCK_CLASSES):
    return decode_text(text, admitted)


def same_as_jsonpickle(value):
    text = jsonpickle.encode(value, keys=True)
    assert shape(decoded(text)) == shape(jsonpickle.decode(text, keys=True)), text  # noqa: S301 - made here
    return decoded(text)


STAMPS = st.datetimes(
    timezones=st.none() | st.sampled_from([dt.timezone.utc, dt.timezone(dt.timedelta(hours=5))])
)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.sampled_from(["py/object", "json://1", "py/id", "_x"]),
    st.binary(max_size=5),
    STAMPS,
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.binary(min_size=12, max_size=12).map(ObjectId),
)
KEYS = (
    st.text(max_size=3)
    | st.integers()
    | st.none()
    | st.sampled_from(["json://x", "default_factory"])
    | st.tuples(st.integers())
)


@st.composite
def graphs(draw):
    """Stock objects and plain data, in which some objects stand in more than one place."""
    made = [draw(PLAIN)]
    any_of = st.deferred(lambda: st.sampled_from(made))
    for _ in range(draw(st.integers(1, 6))):
        one = draw(any_of)
        made.append(
            draw(
                st.one_of(
                    PLAIN,
                    st.lists(any_of, max_size=4),
                    st.lists(any_of, max_size=4).map(tuple),
                    st.dictionaries(KEYS, any_of, max_size=4),
                    st.dictionaries(st.text(max_size=3), any_of, max_size=4).map(collections.OrderedDict),
                    st.sets(st.integers() | st.text(max_size=2), max_size=3),
                    st.frozensets(st.integers(), max_size=1),
                    st.builds(
                        collections.defaultdict, st.sampled_from([list, dict, None]), st.just({"a": one})
                    ),
                    st.builds(transforms.VolumePath, st.text(max_size=5)),
                    st.builds(transforms.TemporaryVolume),
                    st.builds(transforms.VolumePath, st.just("x"), st.builds(transforms.TemporaryVolume)),
                    st.builds(girder_transforms.GirderFileIdToVolume, st.just("5c"), volume=any_of),
                    st.builds(
                        girder_transforms.GirderUploadVolumePathToFolder,
                        st.builds(transforms.VolumePath, st.just("x")),
                        st.just("5c"),
                        upload_kwargs=st.dictionaries(st.text(max_size=3), any_of, max_size=2),
                    ),
                    st.builds(direct_docker_run.GirderToken),
                    st.builds(GirderClient, apiUrl=st.just("http://girder.test/api/v1")),
                    st.builds(transforms.Connect, any_of, any_of),
                )
            )
        )
    return draw(st.lists(any_of, min_size=1, max_size=6))


@settings(derandomize=True, max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_any_graph_of_stock_objects_becomes_what_jsonpickle_makes_of_it(value):
    same_as_jsonpickle(value)


def test_data_of_a_job_comes_back_as_it_was():
    """A hook of a stock server has its whole job with it, as MongoDB gave it."""
    stamp = dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.timezone.utc)
    job = {
        "_id": ObjectId("5c0123456789012345678901"),
        "created": stamp,
        "updated": dt.datetime(2026, 1, 2, 3, 4),  # noqa: DTZ001 - as MongoDB gives it
        "again": [stamp, dt.datetime(2027, 1, 1, tzinfo=dt.timezone.utc)],
        "day": dt.date(2026, 1, 2),
        "id": uuid.UUID(int=7),
        "price": decimal.Decimal("1.5"),
        "ordered": collections.OrderedDict(b=1, a=2),
        "names": frozenset({"x"}),
        "raw": b"raw",
        "pair": (1, {2}),
        3: {4: 5},
    }
    assert same_as_jsonpickle(job) == job


def test_hooks_are_decoded_as_girder_worker_has_made_them():
    hook = girder_transforms.GirderUploadVolumePathToFolder(
        transforms.VolumePath("x"), "5c1", upload_kwargs={"reference": "{}"}
    )
    hook.job = {"_id": ObjectId("5c0123456789012345678901"), "at": dt.datetime(2026, 1, 1), "json://1": 1}  # noqa: DTZ001
    flat = json.loads(json.dumps(jsonpickle.pickler.Pickler().flatten(hook)))
    stock = jsonpickle.unpickler.Unpickler().restore(flat)
    assert shape(decode_value(flat, STOCK_CLASSES)) == shape(stock)


@pytest.fixture(scope="module")
def run():
    """A task whose signatures bring their whole app with them, as Girder Worker's do."""
    app = Celery("test", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(name="run")
    def run():
        pass

    return run


def canvases(run):
    volume = transforms.TemporaryVolume()

    def step(name):
        made = run.si(name, volume, transforms.VolumePath(name, volume), stream={"a": [volume]})
        assert made.type  # from here on it has its app
        return made

    linked = step("first")
    linked.link(step("link"))
    return {
        "signature": step("one"),
        "links": linked,
        "chain": chain(step("a"), step("b"), app=run.app),
        "group": group(step("a"), step("b"), app=run.app),
        "chord": chord([step("a"), step("b")], step("c"), app=run.app),
        "chunks": run.chunks([(1,), (2,)], 1),
        "map": run.map([1, 2]),
        "starmap": run.starmap([(1, 2)]),
    }


@pytest.mark.parametrize(
    "name", ["signature", "links", "chain", "group", "chord", "chunks", "map", "starmap"]
)
def test_signatures_become_plain_dicts_without_the_app_of_their_sender(run, name):
    canvas = canvases(run)[name]
    after = {"x": 1}
    embed = {
        "callbacks": [canvas],
        "chain": [canvas, canvases(run)["signature"]],
        "after": after,
        "again": [after, canvas],
    }
    sent = ((canvas, after), {"stream": [canvas]}, embed)
    text = jsonpickle.encode(sent, keys=True)
    assert "_unpickle_app" in text
    made = decoded(text)
    assert shape(made) == shape(jsonpickle.decode(text, keys=True))  # noqa: S301 - made here
    assert type(made[0][0]) is dict
    assert "_app" not in str(made)
    assert run.app.signature(made[0][0]).task == canvas.task


def test_an_app_that_a_signature_brings_is_not_made(run):
    """What is left out is counted, whatever it is, and cannot be referred to from elsewhere."""
    inner = {
        "_app": {
            "py/reduce": [
                {"py/function": "os.system"},
                {"py/tuple": ["false", {"py/object": "no.Such", "a": {}}]},
            ]
        }
    }
    signature = {"py/object": "celery.canvas.Signature", "task": "t", "__dict__": inner}
    # 0: list, 1: signature, 2: __dict__, 3: what is called, 4: the instance, 5: its dict
    later = {"x": 1}
    assert decoded(json.dumps([signature, later, {"py/id": 1}, {"py/id": 6}])) == [
        {"task": "t"},
        later,
        {"task": "t"},
        later,
    ]
    for number in range(2, 6):
        with pytest.raises(MessageUndecodable, match="not made"):
            decoded(json.dumps([signature, later, {"py/id": number}]))


def test_a_reference_to_nothing_or_to_what_is_being_made_is_refused():
    for number in (-1, 1, 99, True, "0", None, 1.0):
        with pytest.raises(MessageUndecodable, match="reference"):
            decoded(json.dumps([{"py/id": number}]))
    with pytest.raises(MessageUndecodable, match="not made"):
        decoded(
            json.dumps([{"py/reduce": [{"py/type": "builtins.frozenset"}, {"py/tuple": [{"py/id": 1}]}]}])
        )


def test_a_list_may_hold_itself():
    (inner,) = decoded('[[{"py/id": 1}]]')
    assert inner[0] is inner


class Slide:
    """Of a site's own."""

    def __init__(self, level):
        self.level = level


class Restored(Slide):
    def __setstate__(self, state):
        self.level = state["level"] + 1

    def __getstate__(self):
        return {"level": self.level}


def test_a_site_admits_classes_by_their_names():
    text = jsonpickle.encode([Slide({"a": 3}), Restored(3)], keys=True)
    names = {f"{__name__}.{cls.__name__}" for cls in (Slide, Restored)}
    with pytest.raises(
        MessageUndecodable, match=r"Slide, which is none of .* install `tests`.*allow_classes"
    ):
        decoded(text)
    slide, restored = decoded(text, names)
    assert (type(slide), slide.level) == (Slide, {"a": 3})
    assert (type(restored), restored.level) == (Restored, 4)


@pytest.mark.parametrize(
    "name", ["no_such_package.tasks.Slide", f"{__name__}.NoSuchClass", f"{__name__}.shape"]
)
def test_an_admitted_class_that_is_not_there_is_named(name):
    with pytest.raises(MessageUndecodable, match=f"{name}, which is (not installed|no class)"):
        decoded(json.dumps({"py/object": name}), {name})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "nested deeper"),
        ('{"py/tuple":[' * (DEEPEST + 2) + "]}" * (DEEPEST + 2), "nested deeper"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper"),
        ("{", "cannot be decoded"),
        ("9" * 5000, "cannot be decoded"),
        ('"' + "x" * MOST_BYTES + '"', "are the most"),
        ("\xff\xfe", "cannot be decoded"),
    ],
    ids=["deep", "deep_tuples", "very_deep", "broken", "long_number", "giant", "no_text"],
)
def test_bodies_without_measure_are_refused(text, words):
    with pytest.raises(MessageUndecodable, match=words):
        decoded(text.encode("latin-1"))


def test_the_deepest_that_is_admitted_is_decoded_in_a_thread_of_celery():
    """Whose stack has a hundred frames already."""

    def with_frames(count):
        return with_frames(count - 1) if count else decoded('{"py/tuple":[' * DEEPEST + "1" + "]}" * DEEPEST)

    assert with_frames(150)


NAMES = ["os.system", "builtins.list", "datetime.date", "celery.canvas.Signature", *sorted(STOCK_CLASSES)[:2]]
TAGS = [
    "object",
    "reduce",
    "tuple",
    "set",
    "id",
    "type",
    "function",
    "state",
    "newargs",
    "seq",
    "b64",
    "mod",
    "repr",
    "iterator",
]
JSON = st.recursive(
    st.none() | st.integers(-2, 9) | st.sampled_from(NAMES),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "__dict__", "json://1", *(f"py/{tag}" for tag in TAGS)]), inner, max_size=3
        )
        | st.builds(
            lambda name, rest: {"py/object": name, **rest},
            st.sampled_from(NAMES),
            st.dictionaries(st.just("a"), inner),
        )
        | st.builds(
            lambda name, rest: {"py/reduce": [{"py/type": name}, {"py/tuple": rest}]},
            st.sampled_from(NAMES),
            st.lists(inner),
        )
    ),
    max_leaves=12,
)


@settings(derandomize=True, max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON)
def test_whatever_comes_is_refused_or_becomes_admitted_objects_and_plain_data(value):
    try:
        made = decoded(json.dumps(value))
    except MessageUndecodable:
        return
    pending = [made]
    seen = set()
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        name = f"{type(item).__module__}.{type(item).__qualname__}"
        if name in STOCK_CLASSES:
            pending.extend(vars(item).values())
        elif isinstance(item, dict):
            pending.extend([*item, *item.values()])
        elif isinstance(item, (list, tuple, set, frozenset)):
            pending.extend(item)
        else:
            assert item is None or isinstance(item, (int, str, bytes, dt.date)) or item in (list, dt.date), (
                item
            )
