"""Results in an object store: moto's S3 server, which the tests start."""

import os
import threading
import uuid
from collections.abc import Iterator

import boto3
import pandas as pd
import pytest
from commands import SMALL, Run, run_command
from helpers import ready_of
from made_tables import CONFIG, row
from moto.server import ThreadedMotoServer
from ray import tune

from search.explore import Optuna
from search.explore.ask import ask
from search.results import files, lock, tables
from search.results.__main__ import main
from search.results.lock import LockedError, held
from search.results.tables import EPOCHS, Results, ResultsError
from search.session import known_trials
from search.study.explorer import PlannedTrial, Tables
from search.study.space_file import load_study
from search.study.study import Study
from trainable import checkpoint
from trainable.checkpoint import TrialState
from trainable.config import TrialConfig, trial_key
from trainable.finetune import finetune
from trainable.host import storage

BUCKET = "bucket"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    """The server's address, and an environment that leads pyarrow to it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        started.start()
        host, port = started.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        storage._opened.cache_clear()
        yield f"{host}:{port}"
        started.stop()
        storage._opened.cache_clear()


@pytest.fixture
def opened() -> Results:
    return tables.open_results(f"s3://{BUCKET}/{uuid.uuid4().hex}", "s")


def commit(opened: Results, *keys: str, num_epochs: int = 2) -> None:
    for key in keys:
        rows = [{"study": "s", "trial_key": key, "epoch": e + 1} for e in range(num_epochs)]
        tables.commit_epochs(opened, key, rows)
        tables.commit_trial(opened, row(key, epochs_completed=num_epochs))


def test_what_is_committed_is_read_and_verified(opened: Results) -> None:
    commit(opened, "k1", "k2")
    tables.commit_study(opened, {"name": "s"})
    assert list(tables.trials(opened)["trial_key"]) == ["k1", "k2"]
    assert list(tables.epochs(opened)["epoch"]) == [1, 2, 1, 2]
    commit(opened, "k2", num_epochs=3)
    assert len(tables.epochs(opened)) == 5
    assert tables.faults(tables.open_folder(opened.folder.uri)) == []
    frame = pd.read_parquet(f"{opened.folder.uri}/epochs")  # as in any folder
    assert len(frame) == 5


def test_only_what_is_missing_is_planned(opened: Results) -> None:
    vary = {"batch_size": tune.grid_search([16, 32])}
    study = Study(name="s", base=CONFIG, vary=vary)

    def missing(results: Results) -> list[PlannedTrial]:
        known = known_trials(ready_of(study, results), tables.trials(results))
        return [trial for trial in ask(study, known, 1) if trial.key not in known.ended]

    planned = missing(opened)
    assert len(planned) == 2
    commit(opened, planned[0].key)
    again = tables.open_results(opened.folder.uri.removesuffix("/s"), "s")
    assert missing(again) == planned[1:]


def test_a_search_goes_on_in_a_store_too(opened: Results) -> None:
    def declared(num_configs: int) -> Study:
        return Study(
            name="s",
            base=CONFIG,
            vary={"base_lr": tune.loguniform(0.1, 1.0), "batch_size": tune.choice([16, 32])},
            explore=Optuna(num_configs=num_configs, sampler="random"),
        )

    def known() -> Tables:
        return Tables(data_fingerprint="d", folder=opened.folder)

    assert ask(declared(3), known(), room=0) == []
    first = ask(declared(3), known(), room=3)
    assert len({trial.key for trial in first}) == 3
    assert ask(declared(3), known(), room=0) == first  # what a killed command had chosen
    more = known()
    more.ended.update({t.key: {"status": "completed", "val_auroc": 0.5} for t in first})
    assert len(ask(declared(5), more, room=9)) == 5
    assert more.memory["journal"].num_chosen == 5


def test_compact_packs_and_a_packed_trial_can_run_again(opened: Results) -> None:
    commit(opened, "k1", "k2", "k3")
    before = tables.epochs(opened)
    assert main(["compact", opened.folder.uri]) == 0
    assert tables.num_files(opened) == 2
    pd.testing.assert_frame_equal(tables.epochs(opened), before)
    tables.take_apart(opened, ["k2"])
    assert storage.names(opened / "epochs", ".parquet")[0] == "k2.parquet"
    commit(opened, "k2", num_epochs=4)
    counts = tables.epochs(opened).groupby("trial_key").size()
    assert dict(counts) == {"k1": 2, "k2": 4, "k3": 2}
    assert tables.faults(opened) == []


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_a_pack_that_is_killed_on_the_way_is_seen_whole_and_cleared_up(
    opened: Results, deleted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(opened, "k1", "k2", "k3")
    before = tables.epochs(opened)
    calls = []
    delete = storage.delete_file

    def killed(folder: storage.Folder, name: str) -> None:
        if len(calls) == deleted:
            raise KeyboardInterrupt
        calls.append(name)
        delete(folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_file", killed)
        with pytest.raises(KeyboardInterrupt):
            files.pack(opened / "epochs", EPOCHS)
    assert len(storage.names(opened / "epochs", ".parquet")) == 4 - deleted
    seen = tables.epochs(opened).sort_values(["trial_key", "epoch"], ignore_index=True)
    pd.testing.assert_frame_equal(seen, before)
    assert tables.faults(opened) == []
    tables.make_sound(opened)
    assert len(storage.names(opened / "epochs", ".parquet")) == 1
    pd.testing.assert_frame_equal(tables.epochs(opened), before)


def test_a_reader_lists_again_what_was_packed_meanwhile(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(opened, "k1", "k2")
    names, packed = storage.names, []

    def packed_after(folder: storage.Folder, suffix: str) -> list[str]:
        found = names(folder, suffix)
        if not packed:
            packed.append(True)
            files.pack(folder, EPOCHS)
        return found

    monkeypatch.setattr(storage, "names", packed_after)
    table, damaged = files.read_parts(opened / "epochs", EPOCHS)
    assert (len(table), damaged) == (4, {})


def test_verify_sets_a_broken_object_aside(opened: Results) -> None:
    commit(opened, "k1", "k2")
    content = storage.read(opened / "epochs", "k1.parquet")
    storage.write(opened / "epochs", "k1.parquet", content[:-9])
    assert main(["verify", opened.folder.uri]) == 1
    assert main(["verify", opened.folder.uri]) == 0
    assert list(tables.trials(opened)["trial_key"]) == ["k2"]  # k1 runs again
    assert len(storage.names(opened / "damaged" / "epochs", ".parquet")) == 1


def test_of_many_writers_at_once_one_is_let_in(opened: Results) -> None:
    inside, refused = [], []
    begin, done = threading.Barrier(4), threading.Event()

    def enter(number: int) -> None:
        begin.wait()
        try:
            with held(opened.folder):
                inside.append(number)
                done.wait(60)
        except LockedError as error:
            refused.append(str(error))
        if len(refused) == 3:
            done.set()

    writers = [threading.Thread(target=enter, args=(n,)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(90)
    assert (len(inside), len(refused)) == (1, 3)
    assert f"process {os.getpid()} on" in refused[0]
    assert storage.names(opened.folder, "") == []  # the lock is let go, and no claim is left
    with held(opened.folder):
        pass


def test_two_that_take_over_a_dead_lock_do_not_both_get_it(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = b'{"host": "elsewhere", "pid": 7, "token": "t"}'
    storage.write(opened.folder, lock.NAME, dead)
    assert storage.create_in_store(opened.folder, lock.NAME, b"first", instead_of=dead)
    assert not storage.create_in_store(opened.folder, lock.NAME, b"second", instead_of=dead)
    assert storage.read(opened.folder, lock.NAME) == b"first"
    storage.write(opened.folder, lock.NAME, dead)
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    with held(opened.folder):  # it does not beat
        assert str(os.getpid()).encode() in storage.read(opened.folder, lock.NAME)


def test_a_claim_of_a_dead_writer_does_not_lock_for_ever(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CLAIM_STALE_S", 0.5)
    storage.write(opened.folder, f".{lock.NAME}-claim-dead", b"")
    assert storage.create_in_store(opened.folder, lock.NAME, b"x")


def test_a_trial_goes_on_from_a_checkpoint_in_the_store(
    opened: Results, tiny_config: TrialConfig, tiny_data: object
) -> None:
    folder = opened / "checkpoints" / trial_key(tiny_config, "tiny")
    about = {"data": tiny_data, "checkpoint_folder": folder}
    begun = finetune(tiny_config, **about)
    first = [next(begun) for _ in range(2)]
    begun.close()
    state = checkpoint.load(folder, trial_key=trial_key(tiny_config, "tiny"))
    assert isinstance(state, TrialState)
    assert state.epoch == 2
    rest = list(finetune(tiny_config, **about))
    assert [r.epoch for r in [*first, *rest]][-2:] == [3, 4]


def test_options_of_a_uri_stay_at_its_end(server: str) -> None:
    options = f"?endpoint_override={server}&scheme=http"
    folder = storage.folder_at(f"s3://{BUCKET}/options/{options}")
    assert (folder / "s").uri == f"s3://{BUCKET}/options/s{options}"
    assert (folder / "s").name == "s"
    storage.write(folder / "s", "a.parquet", b"1")
    assert storage.read(storage.folder_at(f"s3://{BUCKET}/options/s"), "a.parquet") == b"1"


def test_a_bucket_that_is_not_there_is_refused_in_a_sentence() -> None:
    with pytest.raises(ResultsError, match="cannot write to --out s3://nowhere"):
        tables.open_results("s3://nowhere/x", "s")


def test_a_table_of_no_rows_is_not_packed(opened: Results) -> None:
    assert files.pack(opened / "epochs", EPOCHS) == 0


@pytest.mark.ray
def test_a_whole_study_is_kept_in_the_store_and_trained_once(
    monkeypatch: pytest.MonkeyPatch, run_here: Run
) -> None:
    out = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    settings = ("--set", "batch_size=32", "--set", "keep_weights=True")
    # The store's address and keys are in the environment, which workers of this machine inherit.
    done = run_command(SMALL, out, *settings)
    assert done.returncode == 0, done.stderr
    assert "2 trials on dataset=synthetic, 0 done before, 2 to run" in done.stdout
    assert f'pd.read_parquet("{out}/small/trials")' in done.stdout

    trials = pd.read_parquet(f"{out}/small/trials")
    epochs = pd.read_parquet(f"{out}/small/epochs")
    assert list(trials["status"]) == ["completed"] * 2
    assert sorted(trials["base_lr"]) == [0.3, 1.0]
    for cell in load_study(SMALL).configs:
        if cell.batch_size == 32:
            (key,) = trials.loc[trials["base_lr"] == cell.base_lr, "trial_key"]
            own = epochs[epochs["trial_key"] == key].sort_values("epoch")
            assert list(own["val_loss"]) == [result.val_loss for result in finetune(cell)]
    assert tables.faults(tables.open_folder(f"{out}/small")) == []

    def objects() -> dict[str, object]:
        prefix = f"{out.removeprefix(f's3://{BUCKET}/')}/small/"
        held = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
        return {
            each["Key"].removeprefix(prefix): each["LastModified"]
            for each in held
            if not each["Key"].endswith("/")  # a folder's marker
        }

    before = objects()
    # What the workers wrote: weights that were asked for, and no state, since none is resumed.
    in_checkpoints = {name for name in before if name.startswith("checkpoints/")}
    assert in_checkpoints == {f"checkpoints/{key}/weights.pt" for key in trials["trial_key"]}
    assert {"report.html", "report.json", "study.json"} <= set(before)
    assert lock.NAME not in before

    def no_cluster(address: str, *, study: str) -> None:
        raise AssertionError("Ray is started though there is nothing to run")

    monkeypatch.setattr("cluster.connect.connect", no_cluster)
    again = run_here(SMALL, out, *settings)
    assert again.returncode == 0
    assert "2 done before, 0 to run" in again.stdout
    folders = ("trials/", "epochs/", "checkpoints/")
    kept = {name: at for name, at in before.items() if name.startswith(folders)}
    assert {name: at for name, at in objects().items() if name.startswith(folders)} == kept
