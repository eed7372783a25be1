"""A scheduler that stops no trial."""

from typing import Any

from ray.tune.schedulers import FIFOScheduler

# Keys of a report as schedulers get it: Ray flattens what is nested in it.
ENDED_AS, HOST_FAILED = "trial_row/status", "host_error/kind"


class InOrder(FIFOScheduler):
    """Every trial to its end, in the order in which the queue handed them out."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None: Tune starts what is pending in order by itself.

        Ray's own scheduler looks through all trials at each step, which takes ever longer.
        """
