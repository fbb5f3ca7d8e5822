"""Settings: which source wins, and what a mistake is told with."""

from __future__ import annotations

from pathlib import Path

import pytest

from girder_worker_slurm.errors import SettingsInvalid
from girder_worker_slurm.settings import (
    Settings,
    generic_origins,
    load_settings,
    render_reference,
    render_sample,
    setting_fields,
)

REPOSITORY = Path(__file__).parents[3]


def cfg(tmp_path, text, name="a.cfg"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_sample_file_in_the_repository_is_the_generated_one():
    assert (REPOSITORY / "worker.dist.cfg").read_text() == render_sample()


def test_the_sample_file_sets_exactly_the_defaults():
    assert load_settings((REPOSITORY / "worker.dist.cfg",), {}) == Settings()


def test_later_files_and_then_the_environment_win(tmp_path):
    dist = cfg(tmp_path, "[slurm]\npartition = dist\npoll_seconds = 1\n[jobs]\nroot = /dist\n", "dist.cfg")
    local = cfg(tmp_path, "[slurm]\npartition = local\npoll_seconds = 2\n", "local.cfg")
    settings = load_settings((dist, local), {"GIRDER_WORKER_SLURM_PARTITION": "env"})
    assert (settings.slurm.partition, settings.slurm.poll_seconds) == ("env", 2.0)
    assert settings.jobs_root == Path("/dist")


def test_of_two_variables_the_first_one_named_wins():
    settings = load_settings(
        (), {"GIRDER_WORKER_BROKER": "amqp://second/", "CELERY_BROKER_URL": "amqp://first/"}
    )
    assert settings.celery.broker.get_secret_value() == "amqp://first/"


def test_generic_variables_count_only_where_nothing_else_sets_a_value(tmp_path):
    file = cfg(tmp_path, "[jobs]\nroot = /file\n")
    assert load_settings((), {"TMPDIR": "/generic"}).jobs_root == Path("/generic")
    assert load_settings((), {"TMPDIR": "/second", "TMP": "/first"}).jobs_root == Path("/first")
    assert load_settings((file,), {"TMP": "/generic"}).jobs_root == Path("/file")
    env = {"TMP": "/generic", "GIRDER_WORKER_SLURM_JOBS_ROOT": "/own"}
    assert load_settings((), env).jobs_root == Path("/own")
    assert load_settings((), {"LOGS": "/logs"}).jobs.logs_dir == Path("/logs")


def test_the_start_knows_which_settings_come_from_generic_variables(tmp_path):
    assert generic_origins((), {"TMP": "/x", "LOGS": "/l"}) == {
        "[jobs] root": "TMP",
        "[jobs] logs_dir": "LOGS",
    }
    file = cfg(tmp_path, "[jobs]\nroot = /file\n")
    assert generic_origins((file,), {"TMP": "/x"}) == {}
    assert generic_origins((), {"TMP": "/x", "GIRDER_WORKER_SLURM_JOBS_ROOT": "/own"}) == {}


def test_an_empty_variable_is_as_none_but_for_text(tmp_path):
    file = cfg(tmp_path, "[jobs]\nroot = /file\n[slurm]\npartition = p\n")
    env = {"GIRDER_WORKER_SLURM_JOBS_ROOT": "", "GIRDER_WORKER_SLURM_PARTITION": ""}
    settings = load_settings((file,), env)
    assert (settings.jobs_root, settings.slurm.partition) == (Path("/file"), "")


def test_lists_come_one_per_line_or_with_commas(tmp_path):
    file = cfg(tmp_path, "[celery]\nqueues =\n    celery\n    gpu\n\n    # not this\n    big\n")
    assert load_settings((file,), {}).celery.queues == ["celery", "gpu", "big"]
    assert load_settings((), {"GIRDER_WORKER_SLURM_QUEUES": "a, b,,c"}).celery.queues == ["a", "b", "c"]
    assert load_settings((), {"GW_DIRECT_PATHS": "/a:/b"}).slurm.direct_paths == ["/a", "/b"]


def test_registries_keep_their_ports(tmp_path):
    file = cfg(tmp_path, "[singularity]\nplain_http_registries = localhost:5000\n    other:80\n")
    assert load_settings((file,), {}).singularity.plain_http_registries == ["localhost:5000", "other:80"]


def test_sbatch_options_stand_in_a_section_of_their_own_and_keep_their_case(tmp_path):
    file = cfg(tmp_path, "[slurm.options]\nmem = 4G\nexclusive =\nA = Account%(x)s\n[slurm]\npartition = p\n")
    assert load_settings((file,), {}).slurm.options == {"mem": "4G", "exclusive": "", "A": "Account%(x)s"}


def test_what_differs_for_some_images_is_a_table(tmp_path):
    file = cfg(tmp_path, "[singularity.images]\nteam/* = writable=overlay:600, fakeroot\nx:1 = net=none\n")
    images = load_settings((file,), {}).singularity.images
    assert images == {"team/*": "writable=overlay:600, fakeroot", "x:1": "net=none"}


def test_a_mistake_in_a_table_is_told_with_its_own_line(tmp_path):
    file = cfg(tmp_path, "[singularity.images]\na = fakeroot\nb = writeable=tmpfs\nc = net=none\n")
    with pytest.raises(SettingsInvalid) as caught:
        load_settings((file,), {})
    message = str(caught.value)
    assert message.startswith(f"{file}:3: [singularity.images] b: ")
    assert "`writeable=tmpfs` is not known" in message
    assert "writable=overlay:MIB" in message


def test_options_for_gpus_are_a_table(tmp_path):
    file = cfg(tmp_path, "[slurm.gpu_options]\ngres = gpu:a100:{gpus}\npartition = gpu\n")
    options = load_settings((file,), {}).slurm.gpu_options
    assert options == {"gres": "gpu:a100:{gpus}", "partition": "gpu"}


@pytest.mark.parametrize(("value", "mib"), [("640", 640), ("0", 0)])
def test_the_size_of_an_overlay_is_known_by_its_older_name(value, mib):
    assert load_settings((), {"JARVICE_SINGULARITY_OVERLAY_SIZE": value}).singularity.overlay_mib == mib


@pytest.mark.parametrize(
    "text",
    [
        "[singularity]\noverlay_mib = -1\n",
        "[singularity]\ngpu_kind = cuda\n",
        "[slurm]\ndocker_resources = no\n",
    ],
)
def test_a_word_or_number_out_of_place_is_refused_with_its_line(tmp_path, text):
    file = cfg(tmp_path, text)
    with pytest.raises(SettingsInvalid, match=f"{file}:2"):
        load_settings((file,), {})


@pytest.mark.parametrize(
    "text",
    [
        "[jobs]\nmax_submitted = 0\n",
        "[jobs]\nmax_accepted = 0\n",
        "[jobs]\nkeep_days = -1\n",
        "[slurm]\nparallel_submits = 0\n",
        "[slurm]\ncommands_per_second = 0\n",
        "[slurm]\npoll_seconds = 0\n",
        "[slurm]\nevent_seconds = 0\n",
        "[girder]\nupdates_per_second = 0\n",
    ],
)
def test_a_number_with_which_nothing_would_ever_be_done_or_all_the_time_stops_the_start(tmp_path, text):
    with pytest.raises(SettingsInvalid, match=r":2: .*greater than"):
        load_settings((cfg(tmp_path, text),), {})


def test_run_options_are_json():
    env = {"GIRDER_WORKER_DOCKER_RUN_OPTIONS": '{"shm_size": "8g"}'}
    assert load_settings((), env).singularity.run_options == {"shm_size": "8g"}
    assert load_settings((), {"GIRDER_WORKER_DOCKER_RUN_OPTIONS": " "}).singularity.run_options == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[slurm]\npartition = p\npartion = x\n", ["a.cfg:3", "partion", "partition"]),
        ("\n[slrum]\npartition = p\n", ["a.cfg:3", "slrum", "slurm"]),
        ("[slurm]\npoll_seconds = often\n", ["a.cfg:2", "[slurm] poll_seconds", "often"]),
        ("[jobs]\nmax_accepted = 1.5\n", ["a.cfg:2", "max_accepted"]),
        ("[slurm]\npartition\n", ["a.cfg:2", "name = value"]),
        ("partition = p\n", ["a.cfg:1"]),
        ("[singularity]\nrun_options = {not json\n", ["a.cfg:2", "run_options"]),
        ("[singularity]\nrun_options = [1]\n", ["a.cfg:2", "run_options"]),
        ("[slurm]\noptions = x\n", ["a.cfg:2", "options"]),
        ("[celery]\nqueues = local\n", ["and not `local`"]),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_is_known(tmp_path, text, words):
    with pytest.raises(SettingsInvalid) as caught:
        load_settings((cfg(tmp_path, text),), {})
    for word in words:
        assert word in str(caught.value)


def test_a_mistake_is_told_in_our_words_only(tmp_path):
    path = tmp_path / "worker.local.cfg"
    path.write_text("[slurm]\nallow_options = mem time\n")
    with pytest.raises(SettingsInvalid) as caught:
        load_settings((path,), {})
    assert str(caught.value).startswith(f"{path}:2: [slurm] allow_options: `mem time` is no option of sbatch")


def test_a_wrong_value_of_a_variable_names_the_variable():
    with pytest.raises(SettingsInvalid, match="DSA_WORKER_CONCURRENCY"):
        load_settings((), {"DSA_WORKER_CONCURRENCY": "many"})


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SettingsInvalid, match=r"b\.cfg"):
        load_settings((tmp_path / "b.cfg",), {})


def test_without_a_jobs_root_it_is_said_what_to_set():
    with pytest.raises(SettingsInvalid, match="GIRDER_WORKER_SLURM_JOBS_ROOT"):
        _ = load_settings((), {}).jobs_root
    with pytest.raises(SettingsInvalid, match="absolute"):
        _ = load_settings((), {"TMP": "relative"}).jobs_root


def test_the_older_name_of_the_jobs_root_is_understood(tmp_path):
    file = cfg(tmp_path, "[girder_worker]\ntmp_root = /old\n[celery]\nbroker = amqp://x/\n")
    assert load_settings((file,), {}).jobs_root == Path("/old")


def test_sifs_lie_in_the_jobs_root_unless_set_elsewhere():
    assert load_settings((), {"TMP": "/j"}).sif_image_path == Path("/j/sif")
    assert load_settings((), {"TMP": "/j", "SIF_IMAGE_PATH": "/s"}).sif_image_path == Path("/s")


def test_passwords_are_not_shown():
    settings = load_settings((), {"CELERY_BROKER_URL": "amqp://user:geheim@host/"})
    assert "geheim" not in f"{settings!r} {settings} {settings.celery!r}"


def test_the_process_environment_is_not_looked_at(monkeypatch):
    monkeypatch.setenv("SLURM", '{"partition": "from nowhere"}')
    monkeypatch.setenv("GIRDER_WORKER_SLURM_PARTITION", "env")
    assert load_settings((), {}).slurm.partition == ""
    assert load_settings().slurm.partition == "env"


def test_the_files_stay_as_they_were_read():
    settings = load_settings((), {})
    with pytest.raises(Exception, match="frozen"):
        settings.slurm.partition = "x"


def test_every_setting_says_what_it_is_and_no_variable_sets_two():
    fields = list(setting_fields())
    variables = [name for field in fields for name in (*field.environment, *field.generic_environment)]
    assert all(field.description.endswith((".", "?")) for field in fields)
    assert len(variables) == len(set(variables))


def test_the_reference_has_every_setting_and_every_variable():
    page = render_reference()
    for field in setting_fields():
        assert f"### {field.name}\n\n{field.description}" in page
        assert all(f"`{name}`" in page for name in (*field.environment, *field.generic_environment))


def test_a_password_is_not_in_an_error_about_the_settings(tmp_path):
    file = tmp_path / "worker.local.cfg"
    file.write_text("[celery]\nbroker = amqp://user:geheim@host/\nqueues = local\n")
    with pytest.raises(SettingsInvalid) as caught:
        load_settings((file,), {})
    assert "geheim" not in str(caught.value)


def test_a_password_is_not_in_an_error_about_a_broken_line(tmp_path):
    file = tmp_path / "worker.local.cfg"
    file.write_text("[celery]\nbroker: amqp://user:geheim@host/\n")
    with pytest.raises(SettingsInvalid) as caught:
        load_settings((file,), {})
    assert "geheim" not in str(caught.value)


def test_a_key_for_girder_needs_girder_s_address(tmp_path):
    file = tmp_path / "worker.cfg"
    file.write_text(f"[jobs]\nroot = {tmp_path}\n[girder]\nprune_key_file = /key\n")
    with pytest.raises(SettingsInvalid, match="api_url"):
        load_settings((file,), {})
    environment = {"GIRDER_WORKER_API_URL": "https://girder.example/api/v1"}
    assert load_settings((file,), environment).girder.prune_key_file == Path("/key")


def test_a_comma_in_a_line_of_bash_does_not_end_it(tmp_path):
    line = "nvidia-smi --query-gpu=name --format=csv,noheader"
    file = cfg(tmp_path, f"[slurm]\nprerun_commands =\n    {line}\n    two\npostrun_commands = {line}\n")
    slurm = load_settings((file,), {}).slurm
    assert slurm.prerun_commands == [line, "two"]
    assert slurm.postrun_commands == [line]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[slurm.options]\nmem =\n", r"\[slurm\] options: .*sets `mem` to nothing; it takes an amount"),
        ("[slurm.options]\nmy opt = 3\n", "`my opt` is no name of an sbatch option"),
        ("[slurm.options]\noutput = x\n", "`output`, which only the worker"),
        ("[slurm.options]\ncomment = a\n  b\n", "`comment` to several lines"),
        ("[slurm.gpu_options]\npartition =\n", "`partition` to nothing"),
        ("[slurm.profiles]\na/b:* =\n  mem 16G\n", r"a/b:\*: .*`mem 16G` is no name"),
        ("[slurm.profiles]\na/b:* =\n  exclusive\n  time =\n", "`time` to nothing"),
    ],
)
def test_options_that_no_job_could_be_submitted_with_stop_the_start(tmp_path, text, words):
    with pytest.raises(SettingsInvalid, match=words):
        load_settings((cfg(tmp_path, text),), {})
