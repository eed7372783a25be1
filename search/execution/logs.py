"""Trials in TensorBoard, MLflow or Weights & Biases, by Ray's own callbacks."""

import importlib.util
import math
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from search.results.tables import Results
from search.study.explorer import PlannedTrial
from search.study.shown import show
from search.study.study import Study

TENSORBOARD, MLFLOW, WANDB = "tensorboard", "mlflow", "wandb"
TOOLS = (TENSORBOARD, MLFLOW, WANDB)
PACKAGES = {TENSORBOARD: "tensorboardX", MLFLOW: "mlflow", WANDB: "wandb"}
FOLDER, DATABASE = "logs", "mlflow.db"  # in the folder of the results
Event = Callable[[Any], object]  # what a callback is called for
WAIT_S = 60.0  # for what is still to be sent when the study has ended


class LogError(ValueError):
    """A tool cannot be logged to; the message says what to type."""


@dataclass(frozen=True, eq=False)
class LoggedTrial:
    """What Ray's callbacks ask of a trial: a trial of Ray's may be several of ours."""

    trial_id: str
    config: dict[str, Any]
    evaluated_params: dict[str, Any]
    experiment_dir_name: str
    name: str
    local_path: str

    def __str__(self) -> str:
        """What the tools call it."""
        return self.name

    def init_local_path(self) -> None:
        """Make its folder."""
        Path(self.local_path).mkdir(parents=True, exist_ok=True)


class Log:
    """Hands what happens to the callbacks, in a thread: they may be slow, and they may fail."""

    def __init__(
        self,
        study: Study,
        results: Results,
        callbacks: Mapping[str, Any],
        note: Callable[[str], None],
    ) -> None:
        """`callbacks` are Ray's, by the names of their tools; `note` tells the user a sentence."""
        self.study, self.note = study, note
        self.callbacks = dict(callbacks)
        is_local = results.folder.is_local
        self.folder = Path(results.folder.uri if is_local else gettempdir(), FOLDER).absolute()
        self.running: dict[str, LoggedTrial] = {}
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="log", daemon=True)

    def started(self, trial: PlannedTrial) -> None:
        """A worker began with a trial."""
        if trial.key not in self.running:
            logged = self.running[trial.key] = self._logged(trial)
            self.events.put(lambda _: logged.init_local_path())
            self.events.put(lambda callback: callback.log_trial_start(logged))

    def evaluated(self, trial: PlannedTrial, row: Mapping[str, Any]) -> None:
        """A trial reported an evaluation."""
        self.started(trial)
        logged = self.running[trial.key]
        result = numbers_of(row) | {"training_iteration": row["epoch"]}
        self.events.put(lambda callback: callback.log_trial_result(0, logged, result))

    def ended(self, trial: PlannedTrial, row: Mapping[str, Any]) -> None:
        """A trial reported its end; its scores at the best epoch are called `final_`."""
        self.started(trial)
        logged, is_failed = self.running.pop(trial.key), row.get("status") == "failed"
        scores = {name: value for name, value in row.items() if name.startswith(("val_", "test_"))}
        final = {f"final_{name}": value for name, value in numbers_of(scores).items()}
        if final:
            result = final | {"training_iteration": row.get("epochs_completed") or 0}
            self.events.put(lambda callback: callback.log_trial_result(0, logged, result))
        self.events.put(_ended(logged, is_failed=is_failed))

    def close(self) -> None:
        """End the runs of trials that are under way, and wait for what is still to be sent."""
        for logged in self.running.values():
            self.events.put(_ended(logged, is_failed=True))
        self.events.put(lambda callback: callback.on_experiment_end([]))
        self.events.put(None)
        self.thread.join(WAIT_S)
        if self.thread.is_alive():
            self.note(f"--log {' '.join(self.callbacks)}: not all was sent in {WAIT_S:.0f} s")

    def _logged(self, trial: PlannedTrial) -> LoggedTrial:
        config = asdict(trial.config) | {"trial_key": trial.key}
        varied = {name: config[name] for name in (*self.study.vary, "seed")}
        part = trial.step or trial.variant
        values = ",".join(f"{name}={show(value)}" for name, value in varied.items())
        name = f"{part}:{values}" if part else values
        return LoggedTrial(
            trial_id=trial.key,
            config=config,
            evaluated_params=varied,
            experiment_dir_name=self.study.name,
            name=name,
            local_path=str(self.folder / f"{name.replace('/', '_')}_{trial.key[:6]}"),
        )

    def _work(self) -> None:
        """Give each event to each callback; one that fails gets no more."""
        while (event := self.events.get()) is not None:
            for name, callback in list(self.callbacks.items()):
                try:
                    event(callback)
                except Exception as error:  # whatever a tool raises: a trial is worth more
                    del self.callbacks[name]
                    why = f"{type(error).__name__}: {error}".splitlines()[0]
                    self.note(f"--log {name} has stopped ({why}); the study goes on without it")


def _ended(logged: LoggedTrial, *, is_failed: bool) -> Event:
    return lambda callback: callback.log_trial_end(logged, failed=is_failed)


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, which are what the tools can draw."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def check_logs(tools: Sequence[str], study: Study, results: Results) -> None:
    """Before the first trial: can the tools be logged to?

    Raises:
        LogError: a package or a key is missing, or the results are in a store.
    """
    for tool in tools:
        if importlib.util.find_spec(PACKAGES[tool]) is None:
            package = PACKAGES[tool]
            raise LogError(f"--log {tool} needs the package {package}: pip install {package}")
    if TENSORBOARD in tools and not results.folder.is_local:
        raise LogError("--log tensorboard writes to a folder of this machine: give a local --out")
    if MLFLOW in tools and not (os.environ.get("MLFLOW_TRACKING_URI") or results.folder.is_local):
        raise LogError("--log mlflow needs a local --out, or a server: set MLFLOW_TRACKING_URI")
    if WANDB in tools:
        try:
            _callback_of(WANDB, study, results)
        except ValueError as error:  # which tells of Ray's own arguments
            needed = "type `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline"
            raise LogError(f"--log wandb needs a key: {needed}") from error


@contextmanager
def logged_to(
    tools: Sequence[str], study: Study, results: Results, note: Callable[[str], None]
) -> Iterator[Log | None]:
    """A log of the block's trials; None without tools."""
    if not tools:
        yield None
        return
    callbacks = {}
    for tool in tools:
        try:
            callbacks[tool] = _callback_of(tool, study, results)
        except Exception as error:  # a server that does not answer
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            note(f"--log {tool} cannot be used ({why}); the study goes on without it")
    log = Log(study, results, callbacks, note)
    log.thread.start()
    try:
        yield log
    finally:
        log.close()


def _callback_of(tool: str, study: Study, results: Results) -> Any:
    """Ray's callback, set up."""
    if tool == TENSORBOARD:
        from ray.tune.logger import TBXLoggerCallback

        return TBXLoggerCallback()
    if tool == MLFLOW:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        database = Path(results.folder.uri, DATABASE).absolute()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}"
        mlflow = MLflowLoggerCallback(tracking_uri=uri, experiment_name=study.name)
        mlflow.setup()
        return mlflow
    from ray.air.integrations.wandb import WandbLoggerCallback

    project = os.environ.get("WANDB_PROJECT") or study.name
    wandb = WandbLoggerCallback(project=project, group=study.name)
    wandb.setup()
    return wandb
