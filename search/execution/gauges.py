"""What Prometheus and Ray's dashboard can draw of a study: gauges that the driver keeps up to date.

Ray exports them as `ray_study_...`. Their tags are few: a series a trial would be too many.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from search.execution.progress import Progress
from trainable.config import SCORES

INTERVAL_S = 2.0


class Gauges:
    """The study's gauges, and what they are computed from."""

    def __init__(self, study: str, metric: str, progress: Progress) -> None:
        """Begin with no trial ended."""
        self.progress, self.metric = progress, metric
        self.ended: Counter[str] = Counter()
        self.best, self.most_memory_gib, self.evaluations = math.nan, 0.0, 0
        self.shown_at = -math.inf
        tags = {"study": study}
        self.gauges = {
            name: Gauge(name, description=about, tag_keys=("study", *more))
            for name, about, more in (
                ("study_trials", "trials of this command by status", ("status",)),
                ("study_best", "the best score of an ended trial", ("metric",)),
                ("study_evaluations", "evaluations that this command has received", ()),
                ("study_images_per_s", "training images a second of all running trials", ()),
                ("study_trial_memory_gib", "the peak memory of the largest ended trial", ()),
                ("study_seconds_left", "estimated from the trials that ended", ()),
            )
        }
        for gauge in self.gauges.values():
            gauge.set_default_tags(tags)

    def evaluated(self) -> None:
        """An evaluation came."""
        self.evaluations += 1

    def trial_ended(self, row: Mapping[str, Any]) -> None:
        """A trial's row came."""
        self.ended[row["status"]] += 1
        better = max if SCORES[self.metric] == "max" else min
        score = row.get(self.metric)
        if row["status"] != "diverged" and score is not None and math.isfinite(score):
            self.best = score if math.isnan(self.best) else better(self.best, score)
        self.most_memory_gib = max(self.most_memory_gib, row.get("peak_memory_gib") or 0.0)

    def show(self) -> None:
        """Set all gauges, every few seconds."""
        if time.monotonic() - self.shown_at < INTERVAL_S:
            return
        self.shown_at = time.monotonic()
        running = [row for _, row in self.progress.running.values()]
        num_left = self.progress.total - self.progress.done_before - self.progress.ended
        by_status = {**self.ended, "running": len(running), "waiting": num_left - len(running)}
        for status, count in by_status.items():
            self.gauges["study_trials"].set(max(0, count), {"status": status})
        self.gauges["study_evaluations"].set(self.evaluations)
        self.gauges["study_images_per_s"].set(sum(row.get("images_per_s", 0.0) for row in running))
        if (left_s := self.progress.seconds_left) is not None:
            self.gauges["study_seconds_left"].set(left_s)
        if not math.isnan(self.best):
            self.gauges["study_best"].set(self.best, {"metric": self.metric})
        self.gauges["study_trial_memory_gib"].set(self.most_memory_gib)
