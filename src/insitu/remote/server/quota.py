"""What one user's jobs may leave on the disk, so that nobody takes it from the others.

quota = Quota(store, folder, limits); quota.open()
limits = quota.of_a_job()              # a result is a quarter of what there is, at most
quota.grew("ada", results=2_000_000, rows=4_100); await quota.keep()
"""

import asyncio
from collections import Counter
from dataclasses import replace

from insitu.remote.protocol import Limits
from insitu.remote.server.files import Folder
from insitu.remote.server.store import Store, forgotten

LEAST_BYTES = 2**20
"""A result may take this much, however full the disk is: that is what its reserve is for."""
AT_ONCE = 100
"""Jobs that are looked at in one turn."""


class Quota:
    """What each user's results and events take, and which of them go first."""

    def __init__(self, store: Store, folder: Folder, limits: Limits) -> None:
        self._store = store
        self._folder = folder
        self._limits = limits
        self._results: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._keeping = asyncio.Lock()

    def open(self) -> None:
        """Count what an earlier server has left."""
        for user, results, rows in self._store.rows(
            "SELECT user, SUM(result_bytes * kept), SUM(rows_bytes) FROM jobs GROUP BY user"
        ):
            self.grew(user, results or 0, rows or 0)

    def grew(self, user: str, results: int, rows: int) -> None:
        """A user's job has ended, or one of them is kept no longer."""
        self._results[user] += results
        self._rows[user] += rows

    @property
    def share(self) -> int:
        """What one user's results may take now."""
        held = self._results.total()
        return max(2 * LEAST_BYTES, self._folder.share(self._limits.kept_bytes, held))

    def of_a_job(self) -> Limits:
        """The limits of a job that begins now: its result leaves room for the one before it."""
        return replace(self._limits, result_bytes=min(self._limits.result_bytes, self.share // 2))

    async def keep(self) -> None:
        """Remove the oldest of who has more than their share.

        Raises:
            StoreTrouble: the database does not take it; files may be gone already.
            OSError: the disk does not take it.
        """
        async with self._keeping:
            share = self.share
            for user in [it for it, size in self._results.items() if size > share]:
                await self._fewer_results(user, self._results[user] - share)
            most = self._limits.kept_rows_bytes
            for user in [it for it, size in self._rows.items() if size > most]:
                await self._fewer_rows(user, self._rows[user] - most)

    async def remove_old(self) -> None:
        """Remove the results that have been kept long enough.

        Raises:
            StoreTrouble: the database does not take it; files may be gone already.
            OSError: the disk does not take it.
        """
        async with self._keeping:
            for id in await asyncio.to_thread(self._folder.old):
                row = self._store.job(id)
                if row is None or not row["kept"]:  # it is counted no more
                    await asyncio.to_thread(self._folder.remove_result, id)
                    continue
                await self._removed(row["user"], id, row["result_bytes"] or 0)
                await self._store.write(("UPDATE jobs SET kept = 0 WHERE id = ?", (id,)))

    async def _fewer_results(self, user: str, over: int) -> None:
        rows = self._store.rows(
            "SELECT id, result_bytes FROM jobs WHERE user = ? AND kept = 1 AND result_bytes > 0 "
            "ORDER BY created LIMIT ?",
            (user, AT_ONCE),
        )
        for id, size in rows:
            if over <= 0:
                return
            await self._removed(user, id, size)
            await self._store.write(("UPDATE jobs SET kept = 0 WHERE id = ?", (id,)))
            over -= size

    async def _fewer_rows(self, user: str, over: int) -> None:
        rows = self._store.rows(
            "SELECT id, rows_bytes, result_bytes * kept FROM jobs "
            "WHERE user = ? AND ended IS NOT NULL ORDER BY created LIMIT ?",
            (user, AT_ONCE),
        )
        for id, size, result in rows:
            if over <= 0:
                return
            await self._removed(user, id, result or 0)
            await self._store.write(*forgotten(id))
            self.grew(user, 0, -size)
            over -= size

    async def _removed(self, user: str, id: str, size: int) -> None:
        self.grew(user, -size, 0)  # before it goes: else `share` counts it twice, held and free
        try:
            await asyncio.to_thread(self._folder.remove_result, id)
        except OSError:
            self.grew(user, size, 0)
            raise
