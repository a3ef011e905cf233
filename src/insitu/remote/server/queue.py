"""Who runs next: fair between users, in order for each of them, as models have room.

line = Line(most=100, most_per_user=10)
line.add(Waiting("5f…", "ada", "demo"))
line.next(workers.room)                  # the job to run now, or None
line.places()                            # {"5f…": 1}
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A job that has not begun."""

    job: str
    user: str
    model: str


class Line:
    """Jobs that wait. Round robin: who runs least goes first, then who was served longest ago."""

    def __init__(self, most: int, most_per_user: int) -> None:
        self.most = most
        self.most_per_user = most_per_user
        self.running: Counter[str] = Counter()
        self._waiting: dict[str, deque[Waiting]] = {}
        self._served: dict[str, int] = {}
        self._turn = 0
        self._coming: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(len(line) for line in self._waiting.values())

    def full_for(self, user: str) -> str:
        """Why a user can send no more, or nothing."""
        if len(self) + self._coming.total() >= self.most:
            return f"the queue is full: {self.most} jobs wait."
        if len(self._waiting.get(user, ())) + self._coming[user] >= self.most_per_user:
            return f"{self.most_per_user} jobs of yours wait already."
        return ""

    def hold(self, user: str) -> None:
        """Keep a place for a request that is still being read."""
        self._coming[user] += 1

    def release(self, user: str) -> None:
        """The request has come, or will not."""
        self._coming[user] -= 1
        if self._coming[user] <= 0:
            del self._coming[user]

    def add(self, job: Waiting) -> None:
        """A job waits from now on."""
        self._waiting.setdefault(job.user, deque()).append(job)

    def remove(self, job: str) -> bool:
        """A job is not to be run; whether it was waiting."""
        for user, line in self._waiting.items():
            for it in line:
                if it.job == job:
                    line.remove(it)
                    if not line:
                        del self._waiting[user]
                    return True
        return False

    def next(self, room: Callable[[str], int]) -> Waiting | None:
        """The job whose turn it is among those whose model has room; it counts as running."""
        free: dict[str, bool] = {}
        for user in sorted(self._waiting, key=self._turn_of):
            for it in self._waiting[user]:
                if it.model not in free:
                    free[it.model] = room(it.model) > 0
                if free[it.model]:
                    self.remove(it.job)
                    self._start(user)
                    return it
        return None

    def ended(self, user: str) -> None:
        """One that ran is over."""
        self.running[user] -= 1
        if self.running[user] <= 0:
            del self.running[user]
            if user not in self._waiting and len(self._served) > 10 * self.most:
                self._served.clear()  # who was served last matters among those that wait

    def places(self) -> dict[str, int]:
        """Where each job stands, from 1, as if every job took as long as the others."""
        ranked = sorted(
            (self.running[user] + place, self._served.get(user, 0), place, it.job)
            for user, line in self._waiting.items()
            for place, it in enumerate(line)
        )
        return {job: place for place, (*_, job) in enumerate(ranked, 1)}

    def _turn_of(self, user: str) -> tuple[int, int]:
        return self.running[user], self._served.get(user, 0)

    def _start(self, user: str) -> None:
        self._turn += 1
        self._served[user] = self._turn
        self.running[user] += 1
