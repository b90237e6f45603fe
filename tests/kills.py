"""What the scripts that kill trainings share: a task in a process of its own, its end, and trials until enough died."""

import os
import signal
import time
import traceback


def start(task):
    """Runs a function in a process forked from this one, and returns the process' number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            task()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def end(child, after=None):
    """Waits for a process, killed after some seconds if these are given; returns its seconds, None if it was killed."""
    began = time.perf_counter()
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit("The training failed.")
    return time.perf_counter() - began if os.WIFEXITED(status) else None


def repeat(trial, kills, most):
    """Repeats a trial until so many kills hit, and prints each; returns the numbers of kills, trials and failures.

    Args:
        trial: Function (number of the trial, kills so far) -> (what was killed where, names of what differs).
        kills: How many.
        most: Trials for each kill, after which it gives up.
    """
    done = number = failures = 0
    while done < kills:
        if number > most * kills:
            raise SystemExit(f"Only {done} of {number} trials could be killed: the kills miss their moments.")
        places, differing = trial(number, done)
        number, done, failures = number + 1, done + len(places), failures + bool(differing)
        found = f"DIFFERENT ({', '.join(sorted(differing))})" if differing else "same"
        print(found, "after", places or "a kill that came too late", flush=True)
    return done, number, failures
