"""The settings of how jobs are submitted: section ``[slurm]`` of the configuration files."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from girder_worker_singularity.settings_file import setting
from girder_worker_slurm.options.binds import parse_site_binds
from girder_worker_slurm.options.catalogue import USUALLY_ALLOWED
from girder_worker_slurm.options.hooks import JobHooks, SrunRules, check_hooks
from girder_worker_slurm.options.limits import parse_limits
from girder_worker_slurm.options.requests import check_site_options, parse_allowed, parse_profile


def _profile(text: str) -> str:
    parse_profile("*", text)
    return text


class SlurmSection(BaseModel):
    """How jobs are submitted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: str = setting(
        "", "Partition of all jobs. Empty: the cluster's default.", env=("GIRDER_WORKER_SLURM_PARTITION",)
    )
    options: dict[str, str] = setting(
        {},
        "sbatch options of every job, `name = value`, in the section [slurm.options]; an empty value is a flag.",
    )
    profiles: dict[str, Annotated[str, AfterValidator(_profile)]] = setting(
        {},
        "More sbatch options for some images, in the section [slurm.profiles]: a pattern of images, or that and, after a blank,"
        " one of CLIs; below it one option a line. Later ones win.",
    )
    allow_options: list[str] = setting(
        list(USUALLY_ALLOWED),
        "sbatch options that images (labels `slurm.NAME`), CLIs (`docker-params`) and users (`--slurm_NAME`) may choose."
        " The sections here may set any.",
    )
    allow_girder_settings: list[str] = setting(
        [],
        "sbatch options that Girder's settings `worker_slurm.NAME` (of our plugin in the Girder server) may choose besides those"
        " in `allow_options`: `account` and `qos`, say.",
    )
    limits: dict[str, str] = setting(
        {},
        "The most that one job gets of what they ask for, in the section [slurm.limits]: time, mem (of a node), cpus,"
        " gpus, nodes.",
    )
    login_shell: bool = setting(
        False, "Read /etc/profile in the job before anything else, as a login shell does."
    )
    bashrc_path: str = setting("", "A file that the job reads next, such as $HOME/.bashrc.")
    modules: list[str] = setting([], "Modules that the job loads (`module load`), one a line.")
    conda_env: str = setting("", "A conda environment that the job activates.")
    environment_file: str = setting(
        "",
        "A file of NAME=value lines, in bash's words, that the job reads. It is on the nodes, as the job's user sees it.",
    )
    variables: dict[str, str] = setting(
        {},
        "Variables of the job, in the section [slurm.variables]: for the commands around the container, which gets none of them.",
    )
    prerun_commands: list[str] = setting(
        [], "Lines of bash that the job runs before the container, one a line.", separators="\\n"
    )
    postrun_commands: list[str] = setting(
        [],
        "Lines of bash that it runs after the container, also if that failed; its exit code stays the job's.",
        separators="\\n",
    )
    use_srun: bool = setting(False, "Start the container with srun.")
    srun_options: dict[str, str] = setting(
        {},
        "Options of srun, in the section [slurm.srun_options]: one letter becomes `-k value`, more `--key=value`, an empty value a flag.",
    )
    srun_append: str = setting(
        "", "A command line between srun and the container's own, such as a profiler's."
    )
    script_template: Path | None = setting(
        None, "A Jinja2 template of the site's own with blocks that replace some of the job script's."
    )
    submit_script: Path | None = setting(
        None,
        "A site's own submit script: its #SBATCH lines and its body are used around the container.",
        env=("GIRDER_WORKER_SLURM_SUBMIT_SCRIPT",),
    )
    mount_prefix: str = setting(
        "",
        "Prepended to the server's assetstore paths to find them on this cluster.",
        env=("GIRDER_WORKER_SLURM_MOUNT_PREFIX",),
    )
    direct_paths: list[str] = setting(
        [],
        "Directories whose files may be mounted straight from the assetstore. Empty: any the job user can read.",
        env=("GW_DIRECT_PATHS",),
        separators="\\n,:",
    )
    binds: dict[str, str] = setting(
        {},
        "Paths of the nodes that containers get to see, `/path = /place in the container`, in the section [slurm.binds]; behind"
        " commas `ro` (which it is anyway) or `rw`, `images=PATTERN PATTERN`, `users=LOGIN LOGIN`, `groups=GROUP GROUP`.",
    )
    commands_dir: Path | None = setting(None, "Directory of sbatch, squeue, scancel, scontrol. Empty: PATH.")
    slurm_module: str = setting(
        "",
        "The module that brings Slurm's commands on this machine (`module load`, in a login shell), where they are not on PATH.",
    )
    command_timeout_seconds: PositiveFloat = setting(
        180.0, "When a Slurm command is given up. sbatch itself may retry for two minutes: stay above."
    )
    commands_per_second: PositiveFloat = setting(
        50.0, "Most Slurm commands per second, of all kinds together."
    )
    submits_per_minute: NonNegativeFloat = setting(
        0.0,
        "Most submissions a minute, for clusters that limit them. 0: as many as `commands_per_second` allows.",
    )
    parallel_submits: PositiveInt = setting(4, "sbatch commands at the same time.")
    poll_seconds: PositiveFloat = setting(15.0, "Shortest interval between two listings of the queue.")
    event_seconds: PositiveFloat = setting(0.25, "How often the spool of job events is looked at.")
    direct_limit_seconds: PositiveFloat = setting(
        30.0,
        "Time limit of runs that a form in Girder waits for (datalists); they run on the worker's own host.",
    )
    ask_accounting: bool = setting(
        True,
        "Ask sacct what jobs used whose nodes do not count it, or that had several: after their end, for all at once, and once"
        " a minute at most. Where there is no sacct, nothing is asked.",
    )
    convert_images: bool = setting(
        False,
        "Convert images in Slurm jobs, for login nodes that forbid long work, instead of on the worker's machine.",
    )
    convert_options: dict[str, str] = setting(
        {},
        "sbatch options of such a conversion, in the section [slurm.convert_options], besides those of every job.",
    )
    event_grace_seconds: NonNegativeFloat = setting(
        5.0,
        "How long to wait for a job's own word after Slurm said it ended, at least. Longer where `girder-slurm doctor` has"
        " measured that the jobs root is late; and two minutes for a script that came to its end.",
    )
    infrastructure_retries: NonNegativeInt = setting(
        2,
        "How often a job is run again that was lost without its own fault: its node failed or did not boot, it could not be"
        " launched, it was put back into the queue, or Slurm's controller lost it. On other nodes, if there are some.",
    )
    preemption_retries: NonNegativeInt = setting(10, "How often a job is run again that was preempted.")
    docker_resources: Literal["honour", "ignore"] = setting(
        "honour",
        "What becomes of Docker's limits of memory and processors (`mem_limit`, `nano_cpus`, ...): `honour` asks Slurm for"
        " at least as much, never for less than the options here; `ignore` leaves it to them.",
    )
    gpu_options: dict[str, str] = setting(
        {},
        "More sbatch options of jobs that want GPUs, `name = value`, in the section [slurm.gpu_options]; {gpus} stands for"
        " how many. None: `gres = gpu:{gpus}`, unless the options of every job ask for GPUs already.",
    )

    @model_validator(mode="after")
    def _hooks_are_bash(self) -> SlurmSection:
        check_hooks(self.hooks)
        return self

    @property
    def hooks(self) -> JobHooks:
        """What all jobs do around their container."""
        return JobHooks(
            login_shell=self.login_shell,
            bashrc=self.bashrc_path,
            modules=tuple(self.modules),
            conda_env=self.conda_env,
            environment_file=self.environment_file,
            variables=self.variables,
            prerun=tuple(self.prerun_commands),
            postrun=tuple(self.postrun_commands),
            srun=SrunRules(self.use_srun, self.srun_options, self.srun_append),
        )

    @field_validator("options", "gpu_options", "convert_options")
    @classmethod
    def _options_can_be_given(cls, value: dict[str, str]) -> dict[str, str]:
        check_site_options(value.items())
        return value

    @field_validator("binds")
    @classmethod
    def _binds_can_be_made(cls, value: dict[str, str]) -> dict[str, str]:
        parse_site_binds(value)
        return value

    @field_validator("allow_options", "allow_girder_settings")
    @classmethod
    def _options_exist(cls, value: list[str]) -> list[str]:
        parse_allowed(value)
        return value

    @field_validator("limits")
    @classmethod
    def _limits_are_known(cls, value: dict[str, str]) -> dict[str, str]:
        parse_limits(value)
        return value
