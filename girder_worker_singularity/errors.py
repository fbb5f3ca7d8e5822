"""What can go wrong between an image reference and a running container.

One class per thing a person would do differently::

    ContainerError
    ├── SettingsInvalid           a setting is wrong: file, line and what is allowed
    ├── ImageReferenceInvalid     the text is not an image reference
    ├── ImageNotAllowed           a rule of the site forbids the image
    ├── SignatureInvalid          a SIF that was made elsewhere is not signed by a trusted key
    ├── CredentialsInvalid        the file of credentials cannot be used
    ├── GirderListUnknown         which images Girder has cannot be found out
    ├── MountInvalid              a volume cannot be mounted as asked
    ├── EnvironmentInvalid        a variable cannot be handed to a container
    ├── DockerOptionInvalid       a Docker option has a value that makes no sense
    ├── ImageNotFound             the registry does not know the image
    ├── ImageNotInStore           no SIF, and the job may not have one made
    ├── RegistryRefused           the registry wants (other) credentials
    ├── RegistryUnreachable       no answer from the registry (retryable)
    ├── ConversionFailed          Apptainer could not make the SIF
    ├── ConversionTimeout         Apptainer took too long
    ├── ConversionStopped         the caller asked to stop
    ├── StoreNotWritable          no SIF can be written to the store
    ├── NotEnoughSpace            no room for a SIF
    ├── SifDamaged                the file is not a whole SIF
    │   └── SifUnsupported        it is whole, of a kind that Apptainer cannot run
    ├── ContainerNotStarted       Apptainer can start no container on this host
    ├── CliContractViolated       the image does not describe its CLIs
    └── ProgramMissing            a program is not on the PATH
"""

from __future__ import annotations

from typing import ClassVar


class ContainerError(Exception):
    """What happened and to which image; `remedy` says what to do about it."""

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later although nobody changed anything."""

    remedy: str = ""
    """What a person can do, in whole sentences."""

    def __init__(self, what: str, *, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        if remedy is not None:
            self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}".strip()


class SettingsInvalid(ContainerError):
    """A setting is unknown or has a wrong value."""

    remedy = "Correct it there."


class ImageReferenceInvalid(ContainerError):
    """The text does not name a container image."""

    remedy = "Write it as name:tag, user/name:tag, host:port/path/name:tag or name@sha256:digest."


class ImageNotAllowed(ContainerError):
    """A rule of the site forbids this image."""

    remedy = "Use an image that the site allows, or ask its administrator to change the rule."


class SignatureInvalid(ContainerError):
    """A SIF that was made elsewhere is not signed, or not by a key that is trusted here."""

    remedy = (
        "Sign it (`apptainer sign`), and import the signer's public key as the worker's user "
        "(`apptainer key import`); `apptainer verify --local` shows what is missing."
    )


class CredentialsInvalid(ContainerError):
    """The file with credentials of registries cannot be used."""

    remedy = "Give it mode 0600 and the owner of the worker, and check that it is JSON as documented."


class GirderListUnknown(ContainerError):
    """Which images Girder has cannot be found out for sure."""

    remedy = (
        "Give the address of Girder and the API key of one of its administrators, with all scopes, whose account "
        "may log in; nothing is removed without the whole list."
    )


class MountInvalid(ContainerError):
    """A volume cannot be mounted the way it was asked for."""

    remedy = "Use absolute paths without line breaks, and one source per place in the container."


class EnvironmentInvalid(ContainerError):
    """A variable cannot be handed to a container."""

    remedy = "Names are letters, digits and underscores, not starting with a digit; values hold no NUL."


class DockerOptionInvalid(ContainerError):
    """A Docker run option has a value that Docker would not take either."""

    remedy = "Correct it in the task, in the CLI's `docker-params` or in the worker's `run_options`."


class ImageNotFound(ContainerError):
    """The registry answered that it does not have this image."""

    remedy = "Check name and tag; push the image, or give credentials if the repository is private."


class ImageNotInStore(ContainerError):
    """There is no SIF of this image, and this job may not have one made."""

    remedy = "Put the SIF into the store, or allow pulling (pull policy `if-not-present`)."


class RegistryRefused(ContainerError):
    """The registry wants credentials, or other ones."""

    remedy = (
        "Log the worker's user in (`apptainer registry login`), or set APPTAINER_DOCKER_USERNAME and "
        "APPTAINER_DOCKER_PASSWORD for the worker; check that this account may pull the repository."
    )


class RegistryUnreachable(ContainerError):
    """The registry did not answer."""

    retryable = True
    remedy = (
        "Check name, port and network (proxy, firewall) from this host; "
        "a registry without TLS must be listed as a plain HTTP registry."
    )


class ConversionFailed(ContainerError):
    """Apptainer could not make a SIF of the image; the message holds its last lines."""

    remedy = "Run the same `apptainer build` by hand on this host to see all of its output."


class ConversionTimeout(ContainerError):
    """Apptainer did not finish the SIF in time."""

    remedy = "Raise the time limit for conversions, or put the SIF into the store by hand."


class ConversionStopped(ContainerError):
    """The caller asked to stop before the SIF was there."""

    remedy = "Ask again; other jobs that want the same image are not affected."


class StoreNotWritable(ContainerError):
    """No SIF can be written to the store."""

    remedy = "Give the worker's user write permission there, or set SIF_IMAGE_PATH to another directory."


class NotEnoughSpace(ContainerError):
    """There is no room for a SIF, in the store or in the directory it is built in."""

    remedy = "Remove SIF files that are no longer used, or move the store or the build directory."


class SifDamaged(ContainerError):
    """The file is not a whole SIF."""

    remedy = "Remove the file; it is made again when the image is next asked for."


class SifUnsupported(SifDamaged):
    """The file is a container of a kind that Apptainer cannot run. It is not made anew: somebody put it there."""

    remedy = (
        "Replace it with a SIF of the usual kind (`singularity build` without `--oci`, or `apptainer build`), or remove it"
        " to have one made from the registry."
    )


class ContainerNotStarted(ContainerError):
    """Apptainer can start no container on this host, of whatever image."""

    remedy = (
        "The image is not to blame. Allow the worker's user to create user namespaces on this host "
        "(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone) and to open /dev/fuse, "
        "or install Apptainer's setuid part."
    )


class CliContractViolated(ContainerError):
    """The image does not answer `--list_cli`, or a CLI of it does not describe itself."""

    remedy = (
        "The image must print its CLIs as JSON for `--list_cli` and a description for `<cli> --xml`; "
        "the Slicer CLI documentation shows how."
    )


class ProgramMissing(ContainerError):
    """A program that is needed here is not on the PATH."""

    remedy = "Install it on this host, or put its directory on the worker's PATH."
