"""How long Girder takes log, status and outputs of a job: as long as the tokens in its task live. Pure."""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone

#: What Girder 5 gives the tokens of a job and of its inputs and outputs when it makes the job. Nothing renews them.
TOKEN_SECONDS = 7 * 86400.0
#: What comes besides the time limit: the wait in the queue, and the upload.
MARGIN_SECONDS = 6 * 3600.0
#: Less than this is told in any case.
_SHORT_SECONDS = 86400.0


def outlives_tokens(tokens_end_at: float, now: float, limit_minutes: float | None) -> bool:
    """Whether a job with this time limit may end after its tokens; for one without a limit, whether they end soon.

    `tokens_end_at` and `now` are seconds since the epoch, 0 for an end that is not known.
    """
    if not tokens_end_at:
        return False
    left = tokens_end_at - now
    if limit_minutes is None or math.isinf(limit_minutes):
        return left < _SHORT_SECONDS
    return left < limit_minutes * 60 + MARGIN_SECONDS


def moment_of_id(object_id: str) -> float:
    """When something in Girder was made, in seconds since the epoch, by its id; 0 if that is none of MongoDB's ObjectIds.

    The first four bytes of an ObjectId are that moment (MongoDB's BSON types).
    """
    return float(int(object_id[:8], 16)) if re.fullmatch(r"[0-9a-f]{24}", object_id) else 0.0


def warning(tokens_end_at: float, now: float, name: str) -> str:
    """What the log of such a job says; `name` is what `girder-slurm` knows it by."""
    end = datetime.fromtimestamp(tokens_end_at, tz=timezone.utc).astimezone()
    left = max(0.0, tokens_end_at - now) / 3600
    span = f"{left / 24:.1f} days" if left >= 48 else f"{left:.0f} hours"
    return (
        f"Girder takes log and outputs of this job until {end:%Y-%m-%d %H:%M %Z} only ({span} from now). If it ends later, its"
        f" outputs stay on the cluster, and an administrator brings them here with: girder-slurm retry-upload {name}"
    )
