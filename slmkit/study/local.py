"""All steps of a study on this machine, as many at a time as the study says.

Whatever is killed, the same call goes on: a step that another process holds is waited for, one that was stopped is
started again, one that failed is tried once more in this call when its error was no user error. A step that failed
leaves those that do not need it.

Example:
    is_done = run_study(plan, os.environ)       # {"codec-melvq1": Status("done"), ...}
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping

from slmkit.log import duration, get_logger
from slmkit.stopping import USER_ERROR
from slmkit.study.plan import StudyPlan
from slmkit.study.work import PROGRAM, Status, Work, look, look_at, take
from slmkit.world import threads_each

log = get_logger(__name__)
POLL_SEC = 0.2
LOOK_SEC = 2.0  # between two looks at what other processes have done
MAX_CRASHES = 1  # of a step, after which it is tried again in the same call
MAX_STOPS = 20  # of a step that somebody else stops again and again


def run_study(
    plan: StudyPlan,
    env: Mapping[str, str],
    *,
    is_told_to_stop: Callable[[], bool] = lambda: False,
    program: tuple[str, ...] = PROGRAM,
) -> dict[str, Status]:
    """Do all steps that can be done; gives how every step stands then.

    Told to stop, it tells the commands that run and waits for their ends.
    """
    at_once = plan.config.at_once
    environment = {"OMP_NUM_THREADS": str(threads_each(at_once)), **env}
    running: dict[str, Work] = {}
    given_up: set[str] = set()
    crashes, stops = Counter[str](), Counter[str]()
    looked, is_stopping = -LOOK_SEC, False
    while True:
        if is_told_to_stop() and not is_stopping:
            is_stopping = True
            for work in running.values():
                work.stop()
        for name in [name for name, work in running.items() if work.has_ended()]:
            work = running.pop(name)
            state, why, code = work.finish()
            crashes[name] += state == "failed"
            stops[name] += state == "stopped"
            is_hopeless = code == USER_ERROR or crashes[name] > MAX_CRASHES or stops[name] > MAX_STOPS
            if state != "done" and is_hopeless:
                given_up.add(name)
            took = duration(time.time() - work.began)
            log.info("%s: %s after %s%s", name, state, took, f"; {why}" if why else "")
            looked = -LOOK_SEC
        if is_stopping and not running:
            return look(plan)
        if is_stopping or time.monotonic() - looked < LOOK_SEC:
            time.sleep(POLL_SEC)
            continue
        statuses, looked, is_held = look(plan), time.monotonic(), False
        for name, status in statuses.items():
            is_held |= status.state == "running" and name not in running
            can_begin = status.state in ("ready", "stopped", "failed") and name not in given_up
            if not can_begin or name in running or len(running) >= at_once:
                continue
            taken = take(plan, plan.by_name[name])
            if taken is None:
                is_held = True
            elif look_at(plan, taken.step, is_mine=True).state == "done":  # by another, just now
                taken.release()
            else:
                running[name] = taken
                taken.start(environment, program=program)
        if not running and not is_held:
            return statuses
