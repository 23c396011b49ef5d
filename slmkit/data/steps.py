"""Steps of training as rows of a plan, found from the number of steps taken.

Step n of an epoch is its rows n * global_rows .. (n + 1) * global_rows - 1; the last one may lack rows, never samples.
Rows are numbered through the windows of the epoch, so where a step begins depends on the number of rows in the windows
before. A cursor says where one window begins; with it only the window of the step is planned. Cursors are JSON; one
that does not belong to this plan is not believed, and the windows before are planned.

Invariant (law): `walk` gives the same steps with any cursor and none.

Example:
    steps = Steps(plan, global_rows=64, name="sha256 of all that decides the plan")
    for step in steps.walk(done_steps=2000, cursor=saved):
        step.epoch, step.number, step.rows
    steps.cursor(done_steps=2100)      # {"epoch": 0, "epoch_start": 0, "window": 16, ...}
"""

import bisect
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slmkit.data.plan import Plan

IntArray = npt.NDArray[np.int64]
Cursor = dict[str, Any]


class PlannedStep(NamedTuple):
    """The samples of a step; its last rows may be empty."""

    epoch: int
    number: int  # within the epoch, from 0
    rows: list[IntArray]  # global_rows of them


class WindowStart(NamedTuple):
    """Where a window begins."""

    epoch: int
    window: int
    epoch_start: int  # steps before the epoch
    first_row: int  # of the window, counted through the epoch


class Steps:
    """The steps of all epochs of a plan. Remembers where the windows it has passed begin."""

    def __init__(self, plan: Plan, global_rows: int, name: str = "") -> None:
        """`name` is a hash of what decides the plan; a cursor belongs to plans of its name only."""
        self.plan, self.global_rows, self.name = plan, global_rows, name
        self._places = [WindowStart(0, 0, 0, 0)]  # sorted

    def walk(
        self, done_steps: int = 0, cursor: Cursor | None = None, *, epochs: int | None = None
    ) -> Iterator[PlannedStep]:
        """The steps after `done_steps`: those before epoch number `epochs`, endlessly for None.

        Endless only where some sample fits a row.
        """
        place = self._find(done_steps, cursor)
        while epochs is None or place.epoch < epochs:
            number = max(0, done_steps - place.epoch_start)
            rows: list[IntArray] = []
            num_rows = place.first_row
            for window_number in range(place.window, self.plan.num_windows(place.epoch)):
                self._note(WindowStart(place.epoch, window_number, place.epoch_start, num_rows))
                window = self.plan.window(place.epoch, window_number)
                skipped = min(window.num_rows, max(0, number * self.global_rows + len(rows) - num_rows))
                rows += map(window.row, range(skipped, window.num_rows))
                num_rows += window.num_rows
                while len(rows) >= self.global_rows:
                    yield PlannedStep(place.epoch, number, rows[: self.global_rows])
                    rows = rows[self.global_rows :]
                    number += 1
            if rows:
                empty = np.zeros(0, np.int64)
                yield PlannedStep(place.epoch, number, rows + [empty] * (self.global_rows - len(rows)))
            epoch_start = place.epoch_start + -(-num_rows // self.global_rows)
            place = WindowStart(place.epoch + 1, 0, epoch_start, 0)

    def cursor(self, done_steps: int) -> Cursor:
        """The last known window that begins at or before the step after `done_steps`."""
        place = self._find(done_steps, None)
        return self._sealed({**place._asdict(), "rows": self._num_rows(place)})

    def _find(self, done_steps: int, cursor: Cursor | None) -> WindowStart:
        given = self._believed(cursor)
        if given is not None:
            self._note(given)
        return self._places[bisect.bisect_right(self._places, done_steps * self.global_rows, key=self._row) - 1]

    def _row(self, place: WindowStart) -> int:
        """The place of a window in the rows of the run, as if no step lacked any."""
        return place.epoch_start * self.global_rows + place.first_row

    def _note(self, place: WindowStart) -> None:
        i = bisect.bisect_left(self._places, place)
        if i == len(self._places) or self._places[i] != place:
            self._places.insert(i, place)

    def _believed(self, cursor: Cursor | None) -> WindowStart | None:
        """The place a cursor names, if it belongs to this plan."""
        if not isinstance(cursor, dict) or cursor != self._sealed({k: cursor[k] for k in cursor if k != "seal"}):
            return None
        place = WindowStart(*(int(cursor[field]) for field in WindowStart._fields))
        return place if self._num_rows(place) == cursor["rows"] else None

    def _sealed(self, values: Cursor) -> Cursor:
        """`values` with a hash of them and of the plan."""
        content = repr((self.name, self.global_rows, sorted(values.items())))
        return {**values, "seal": hashlib.sha256(content.encode()).hexdigest()[:16]}

    def _num_rows(self, place: WindowStart) -> int:
        return self.plan.window(place.epoch, place.window).num_rows if self._exists(place) else 0

    def _exists(self, place: WindowStart) -> bool:
        return place.window < self.plan.num_windows(place.epoch)
