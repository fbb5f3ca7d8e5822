"""Images under the official names, built from Debian's packages where no image registry can be reached."""

from tests.support.stand_ins.build import ensure_stand_ins

__all__ = ["ensure_stand_ins"]
