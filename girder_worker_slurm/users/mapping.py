"""What a site says about its users: from a Girder user to what their jobs get. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal

from girder_worker_slurm.errors import UserRefused
from girder_worker_slurm.options.layers import Layer
from girder_worker_slurm.options.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from girder_worker_slurm.job.state import GirderUser
    from girder_worker_slurm.options.layers import AllowedOptions
    from girder_worker_slurm.options.requests import OptionRules

Key = Literal["login", "email", "group", "group_id", "id"]
Unmapped = Literal["refuse", "default"]

KEYS: tuple[Key, ...] = ("login", "email", "group", "group_id", "id")
#: What Girder tells about a user only if it is set up to.
_OF_PROFILE = ("email", "group", "group_id")
#: Who pays stays who pays, whatever kind of job it is.
_ABOVE_ALL = ("account",)


@dataclass(frozen=True)
class MappingEntry:
    """What is said about some users."""

    key: Key
    names: tuple[str, ...]
    """Any of them, in lower case; Girder has no two that differ in case alone."""
    options: tuple[tuple[str, str], ...] = ()
    limits: Limits = field(default_factory=Limits)
    """Each that is set takes the place of the site's."""
    allowed: AllowedOptions | None = None
    """What may be asked for; None: what everybody may."""
    unix_user: str = ""
    """The Unix user whom their jobs run as; empty: as this entry does not say."""

    def fits(self, user: GirderUser) -> bool:
        """Whether it is about this user."""
        known: dict[Key, Iterable[str]] = {
            "login": (user.login,),
            "email": (user.email,),
            "group": user.groups.values(),
            "group_id": user.groups,
            "id": (user.id,),
        }
        return any(name and name.lower() in self.names for name in known[self.key])

    @property
    def origin(self) -> str:
        """Where its options come from, for `girder-slurm explain`."""
        return f"The mapping of users, {self.key} {', '.join(self.names)}"


@dataclass(frozen=True)
class UserMapping:
    """What a site says about all users. Of the entries that fit, the later ones win, as among profiles."""

    entries: tuple[MappingEntry, ...] = ()
    unmapped: Unmapped = "refuse"
    """What becomes of jobs of users whom no entry fits."""
    is_set: bool = False
    """Whether there is a mapping at all; without one everybody is alike."""

    @property
    def needs_profile(self) -> bool:
        """Whether it looks at what Girder tells only if it is set up to."""
        return any(entry.key in _OF_PROFILE for entry in self.entries)

    @property
    def needs_group_names(self) -> bool:
        """Whether it knows groups by their names."""
        return any(entry.key == "group" for entry in self.entries)

    @property
    def unix_users(self) -> tuple[str, ...]:
        """All Unix users that it names."""
        return tuple(dict.fromkeys(entry.unix_user for entry in self.entries if entry.unix_user))

    def unix_user_of(self, user: GirderUser | None) -> str:
        """The Unix user whom jobs of this user run as; empty: the worker's own."""
        fitting, _ = self._fitting(user)
        return next((entry.unix_user for entry in reversed(fitting) if entry.unix_user), "")

    def knows_enough_of(self, user: GirderUser | None) -> bool:
        """Whether all that it looks at is known of this user."""
        if not self.is_set:
            return True
        return (
            user is not None
            and not (self.needs_profile and not user.email)
            and not (self.needs_group_names and not all(user.groups.values()))
        )

    def rules_for(self, user: GirderUser | None, rules: OptionRules) -> OptionRules:
        """What a job of this user may ask of Slurm, and gets without asking; raises UserRefused."""
        if not self.is_set:
            return rules
        fitting, reason = self._fitting(user)
        if reason and self.unmapped == "refuse":
            raise UserRefused(reason)
        for entry in fitting:
            rules = replace(
                rules,
                personal=(*rules.personal, *_layers(entry, above=False)),
                personal_above=(*rules.personal_above, *_layers(entry, above=True)),
                limits=_together(rules.limits, entry.limits),
                allowed=rules.allowed if entry.allowed is None else entry.allowed,
            )
        return rules

    def _fitting(self, user: GirderUser | None) -> tuple[Sequence[MappingEntry], str]:
        """The entries for this user, or why there are none."""
        if user is None:
            return (), (
                "Girder does not say for certain whose job this is, and only users whom the site knows may run jobs"
                " here. A batch can be meant by that: start its parts one by one, or ask the administrator."
            )
        name = user.login or user.id
        if self.needs_profile and not user.email:
            # An entry that limits a group must not be passed over because the group is not told.
            return (), (
                f"Girder does not tell the e-mail address and the groups of its user {name}, by which the site"
                " decides who may run jobs here. Ask the administrator."
            )
        if self.needs_group_names and not all(user.groups.values()):
            return (), (
                f"Girder does not tell the names of all groups of its user {name}, by which the site decides who may"
                " run jobs here. Ask the administrator."
            )
        fitting = [entry for entry in self.entries if entry.fits(user)]
        if fitting:
            return fitting, ""
        return (), (
            f"The Girder user {name} may not run jobs here: the site's mapping of users does not have them."
            " Ask the administrator."
        )


def _layers(entry: MappingEntry, *, above: bool) -> tuple[Layer, ...]:
    chosen = tuple(pair for pair in entry.options if (pair[0] in _ABOVE_ALL) is above)
    return (Layer(entry.origin, chosen),) if chosen else ()


def _together(site: Limits, own: Limits) -> Limits:
    set_here = {one.name: getattr(own, one.name) for one in fields(own)}
    return replace(site, **{name: value for name, value in set_here.items() if value is not None})
