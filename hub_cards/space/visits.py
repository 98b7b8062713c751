"""What the demo remembers of its visitors, and for how long."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .limits import Limits

if TYPE_CHECKING:
    from ...conversation import Conversation
    from ...processing import Camera


@dataclass(eq=False)
class Visit:
    """One visitor's last picture and the conversation about it.

    Attributes:
        photo: the path of the picture.
        focal_length: in pixels, where the visitor typed it.
        camera: the picture's camera.
        results: the folder of its files; the depth map is in it from the start.
        stem: what the files' names begin with.
        messages: the questions and replies so far.
        conversation: the picture with its key-value cache, where it is in memory.
        seen: when the visitor last used it, on the monotonic clock.
    """

    photo: str
    focal_length: float | None
    camera: Camera
    results: Path
    stem: str
    messages: list[dict[str, str]] = field(default_factory=list)
    conversation: Conversation | None = None
    seen: float = field(default_factory=time.monotonic)

    def release(self) -> None:
        """Give back the memory of the picture and of the cache; the messages stay."""
        conversation, self.conversation = self.conversation, None
        if conversation is not None:
            self.messages = conversation.messages
            conversation.release()


class Visits:
    """All visits, the last used one last: a few with their picture in memory, the oldest ended when there are too many.

    Args:
        limits: how many are remembered, how many of them in memory, and for how long.
        on_end: called with each visit that has ended.
    """

    def __init__(self, limits: Limits, on_end: Callable[[Visit], None]) -> None:
        self.limits = limits
        self._on_end = on_end
        self._visits: OrderedDict[int, Visit] = OrderedDict()
        self._lock = threading.Lock()

    def used(self, visit: Visit) -> None:
        """Note that a visit has just been used."""
        with self._lock:
            visit.seen = time.monotonic()
            self._visits[id(visit)] = visit
            self._visits.move_to_end(id(visit))
            visits = list(self._visits.values())
        for old in visits[: max(0, len(visits) - self.limits.live_caches)]:
            old.release()
        for old in visits[: max(0, len(visits) - self.limits.sessions)]:
            self.end(old)

    def end(self, visit: Visit) -> None:
        """Forget a visit that is over."""
        with self._lock:
            known = self._visits.pop(id(visit), None)
        if known is not None:
            visit.release()
            visit.messages = []
            self._on_end(visit)

    def sweep(self) -> None:
        """End the visits that have not been used for `kept_seconds`."""
        oldest = time.monotonic() - self.limits.kept_seconds
        with self._lock:
            late = [visit for visit in self._visits.values() if visit.seen < oldest]
        for visit in late:
            self.end(visit)

    def __contains__(self, visit: Visit | None) -> bool:
        return visit is not None and id(visit) in self._visits

    def __len__(self) -> int:
        return len(self._visits)
