"""How a task is run here: site's rules, image and Docker options together."""

from __future__ import annotations

import pytest

from girder_worker_singularity.errors import MountInvalid
from girder_worker_singularity.image.config import ImageConfig
from girder_worker_singularity.run.docker_options import ResourceWishes
from girder_worker_singularity.run.image_rules import parse_image_rule
from girder_worker_singularity.run.mounts import Mount
from girder_worker_slurm.girder.inputs import StagedTask
from girder_worker_slurm.job.container_plan import GPU_VARIABLES, THREAD_VARIABLES, RunPaths, container_plan
from girder_worker_slurm.job.services import ContainerRules
from girder_worker_slurm.options.binds import parse_site_binds

PATHS = RunPaths("/run/environment", "/run/scratch", "/run/scratch/overlay.img")
IMAGE = ImageConfig(entrypoint=("./run",))
GPU_IMAGE = ImageConfig(entrypoint=("./run",), needs_nvidia=True)


def plan(words="", image=IMAGE, uid=1000, rules=None, **task):
    images = {"team/*": parse_image_rule(words)} if words else {}
    return container_plan(
        StagedTask("team/tool:1", "if-not-present", (), task.pop("mounts", ()), **task),
        sif="/a.sif",
        image=image,
        rules=ContainerRules(images=images, **(rules or {})),
        paths=PATHS,
        uid=uid,
    )


def test_a_container_is_read_only_and_has_the_node_s_network_unless_somebody_says_otherwise():
    made = plan()
    spec = made.spec
    assert (spec.writable_tmpfs, spec.overlay, spec.fakeroot, spec.network_none, spec.gpu) == (
        False,
        None,
        False,
        False,
        None,
    )
    assert (made.wishes, made.ignored, made.gpu_variables) == (ResourceWishes(), (), ())
    assert made.thread_variables == THREAD_VARIABLES


def test_the_rule_of_an_image_is_followed():
    made = plan("writable=overlay:700, fakeroot, net=none")
    assert (made.spec.overlay, made.overlay_mib) == (PATHS.overlay, 700)
    assert made.spec.fakeroot
    assert made.spec.network_none


def test_an_overlay_without_a_size_has_the_site_s_and_of_size_0_is_a_tmpfs():
    assert plan("writable=overlay").overlay_mib == 600
    assert plan("writable=overlay", rules={"overlay_mib": 0}).spec.writable_tmpfs
    assert plan("writable=overlay:70", rules={"overlay_mib": 0}).overlay_mib == 70


@pytest.mark.parametrize("words", ["writable=overlay", "writable=tmpfs"])
def test_a_task_that_wants_its_image_read_only_gets_it(words):
    spec = plan(words, read_only=True).spec
    assert (spec.overlay, spec.writable_tmpfs) == (None, False)


@pytest.mark.parametrize(
    ("user", "words", "is_met"),
    [
        (None, "", True), ("1000", "", True), ("1000:100", "", True), ("root", "", False), ("0:0", "", False), ("nobody", "", False),
        ("root", "fakeroot", True), ("0", "fakeroot", True), ("nobody", "fakeroot", False),
    ],
)  # fmt: skip
def test_another_user_is_named_unless_the_image_may_be_root(user, words, is_met):
    assert plan(words, user=user).ignored == (() if is_met else ("user",))


def test_gpus_come_by_label_or_by_wish_and_as_many_as_wished():
    assert plan(image=GPU_IMAGE).wishes == ResourceWishes(gpus=1)
    assert plan(image=GPU_IMAGE).spec.gpu == "nv"
    assert plan(wishes=ResourceWishes(gpus=3), image=GPU_IMAGE).wishes == ResourceWishes(gpus=3)
    assert plan(wishes=ResourceWishes(gpus=1), rules={"gpu_kind": "rocm"}).spec.gpu == "rocm"
    assert plan(wishes=ResourceWishes(gpus=1)).gpu_variables == GPU_VARIABLES


def test_where_there_are_no_gpus_none_are_asked_for_and_a_wish_is_named():
    made = plan(wishes=ResourceWishes(gpus=1), rules={"gpu_kind": "none"})
    assert (made.spec.gpu, made.wishes.gpus, made.ignored) == (None, 0, ("device_requests",))
    # A label is no wish of the task: such an image may well run without.
    assert plan("gpu=none", image=GPU_IMAGE).ignored == ()
    assert plan("gpu=rocm", image=GPU_IMAGE, rules={"gpu_kind": "none"}).spec.gpu == "rocm"


def test_limits_that_the_site_ignores_are_named():
    made = plan(wishes=ResourceWishes(100, 2, 1), rules={"honours_docker_resources": False})
    assert made.wishes == ResourceWishes(gpus=1)
    assert made.ignored == ("mem_limit or processors",)


def test_variables_that_image_or_task_set_are_left_alone():
    image = ImageConfig(environment=("OMP_NUM_THREADS=1", "CUDA_VISIBLE_DEVICES=all"), needs_nvidia=True)
    made = plan(image=image, environment={"MKL_NUM_THREADS": "2", "SLURM_JOB_GPUS": "x"})
    assert not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & set(made.thread_variables)
    assert "OPENBLAS_NUM_THREADS" in made.thread_variables
    assert "SLURM_JOB_GPUS" not in made.gpu_variables
    assert "CUDA_VISIBLE_DEVICES" in made.gpu_variables


def test_variables_that_apptainer_cannot_hand_over_are_named_and_left_out():
    made = plan(environment={"a.b": "1", "HOME": "/x", "OK": "2", "": "3"})
    assert dict(made.spec.environment) == {"OK": "2"}
    assert made.ignored == ("environment ''", "environment 'HOME'", "environment 'a.b'")


def test_a_job_learns_about_itself_by_names_that_nobody_has_taken():
    made = plan(image=ImageConfig(environment=("JOB_ID=of the image",)), environment={"JOB_NAME": "mine"})
    names = [pair.partition("=")[0] for pair in made.job_variables]
    assert "JOB_NODELIST=SLURM_JOB_NODELIST" in made.job_variables
    assert not {"JOB_ID", "JOB_NAME"} & set(names)
    assert "JOB_ID=SLURM_JOB_ID" in plan().job_variables


def test_the_site_s_data_is_mounted_beside_the_task_s_own():
    binds = parse_site_binds({"/data/atlas": "/opt/atlas", "/licences": "images=other/*"})
    made = plan(rules={"binds": binds}, mounts=(Mount("/run/volume", "/mnt/girder_worker/x"),))
    assert made.spec.mounts == (
        Mount("/data/atlas", "/opt/atlas", read_only=True),
        Mount("/run/volume", "/mnt/girder_worker/x"),
    )
    assert made.site_paths == ("/data/atlas",)


def test_a_task_does_not_get_into_the_place_of_the_site_s_data():
    binds = parse_site_binds({"/data/atlas": "/opt/atlas"})
    with pytest.raises(MountInvalid, match="Both '/mine' and '/data/atlas'"):
        plan(rules={"binds": binds}, mounts=(Mount("/mine", "/opt/atlas"),))


def test_an_overlay_that_the_job_asks_for_goes_before_the_rule_of_the_image():
    assert asked_for(700).overlay_mib == 700
    assert asked_for(700).spec.overlay == PATHS.overlay
    assert asked_for(0).spec.writable_tmpfs
    assert asked_for(700, read_only=True).spec.overlay is None


def asked_for(overlay_mib, **task):
    return container_plan(
        StagedTask("team/tool:1", "if-not-present", (), (), **task),
        sif="/a.sif",
        image=IMAGE,
        rules=ContainerRules(images={"team/*": parse_image_rule("writable=overlay:300")}),
        paths=PATHS,
        uid=1000,
        overlay_mib=overlay_mib,
    )
