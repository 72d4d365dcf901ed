"""A run in a bucket: `gs://` through gcsfs and TensorStore as users have them, against a server that speaks GCS."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import runs
from moco_jax import parallel, places, pretrain
from moco_jax.checkpoints import folder, verified
from moco_jax.cli import report
from moco_jax.config import ConfigError, Log, Queue
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation import loading
from moco_jax.logs import CLOCK, EVALUATED
from moco_jax.reports.runs import read
from tests import fake_gcs, tiny
from tests.test_preemption import ENDS, ended, until
from tests.test_resume_position import CONFIG, SMALL, TOTAL


@pytest.fixture(scope="module")
def bucket():
    with pytest.MonkeyPatch.context() as patch, fake_gcs.served() as served:
        for name, value in served.environment.items():
            patch.setenv(name, value)
        yield served


@pytest.fixture
def workdir(bucket, request):
    """A folder of its own in the bucket, as text; nothing is refused after the test."""
    yield f"gs://{fake_gcs.BUCKET}/{request.node.originalname}_{len(bucket.requests)}"  # no parameter is in the name
    bucket.refused.clear()


@pytest.fixture
def loop(monkeypatch):
    """In place of the loop: a line of the log and a checkpoint at each of `steps`; what it was begun with, and saw."""
    heard = {"steps": (), "begun": [], "seen": [], "error": None}

    def run(step_fn, state, batches, data, *, first_step, cadence, log, save, **_):
        heard["begun"].append((first_step, int(parallel.host(state.step))))
        for step in heard["steps"]:
            log.metrics(step, {"loss": float(step)})
            save(step, state.replace(step=parallel.born(lambda n=step: jnp.asarray(n, jnp.int32))), {})
            heard["seen"].append(heard["look"]() if "look" in heard else None)
        log.write({"event": EVALUATED, "step": TOTAL})
        if heard["error"] is not None:
            raise heard["error"]
        return state

    monkeypatch.setattr(pretrain, "run", run)
    return heard


def go(workdir, config=CONFIG):
    return pretrain.train(config, workdir, encoder=SMALL, source=ArraySource(tiny.images(), name="mine"))


def below(bucket, workdir, *parts):
    """The names of objects below a folder of a run, from there on."""
    prefix = "/".join([workdir.removeprefix(f"gs://{fake_gcs.BUCKET}/"), *parts, ""])
    return [name.removeprefix(prefix) for name in bucket.names(prefix)]


def steps(bucket, workdir):
    return sorted({name.split("/")[0] for name in below(bucket, workdir, "checkpoints")})


def lines(workdir):
    return [json.loads(line) for line in places.read_log(places.at(workdir)).splitlines()]


def test_a_run_goes_on_from_what_the_bucket_holds(bucket, workdir, loop, capsys, tmp_path):
    """Newest two checkpoints and nothing of older ones; a segment of the log for each start, read as one log."""
    loop["steps"] = (4, 8, 9)
    go(workdir)
    assert steps(bucket, workdir) == ["8", "9"]
    loop["steps"] = (12, TOTAL)
    result = go(workdir)
    assert loop["begun"] == [(0, 0), (9, 9)] and (result.checkpoint, result.was_complete) == (TOTAL, False)
    assert steps(bucket, workdir) == ["12", str(TOTAL)]
    assert below(bucket, workdir, "log") == ["00000001.jsonl", "00000002.jsonl"]
    found = lines(workdir)
    assert [r["step"] for r in found if "loss" in r] == [4, 8, 9, 12, TOTAL]
    assert [r["step"] for r in found if r.get("event") == "start"] == [0, 9]
    assert sum(pretrain.NO_LOCK in r["warnings"] for r in found if r.get("event") == "start") == 2
    assert read(places.at(workdir)).step == TOTAL and str(result.workdir) == workdir
    assert go(workdir).was_complete and len(loop["begun"]) == 2
    assert report.main([workdir, f"--output={tmp_path}"]) == 0 and (tmp_path / "report.html").is_file()
    assert capsys.readouterr().out.count(f"warning: {pretrain.NO_LOCK}") == 2


def test_what_is_in_the_bucket_is_what_is_on_a_disk(bucket, workdir, loop, tmp_path):
    """The same digests of every leaf, the same config.json, the same lines of the log but for clock and warning."""
    loop["steps"] = (TOTAL,)
    go(workdir)
    go(tmp_path)
    there, here = (verified.entries(at / "checkpoints" / str(TOTAL)) for at in (places.at(workdir), tmp_path))
    assert there == here
    assert (tmp_path / "config.json").read_bytes() == bucket.objects[f"{places.at(workdir).name}/config.json"]
    gone = (*CLOCK, "warnings")
    there, here = (
        [{k: v for k, v in json.loads(line).items() if k not in gone} for line in places.read_log(at).splitlines()]
        for at in (places.at(workdir), tmp_path)
    )
    assert there == here
    assert not (tmp_path / "log").exists() and not os.path.exists("gs:")


def test_lines_are_there_before_the_checkpoint_that_takes_them_for_logged(bucket, workdir, loop):
    """However long ago the log was written last: a kill right after a checkpoint loses none of them."""
    loop["steps"] = (4, 8)
    loop["look"] = lambda: [r["step"] for r in lines(workdir) if "loss" in r]
    go(workdir)
    assert loop["seen"] == [[4], [4, 8]]


def test_a_step_comes_and_goes_by_its_mark(bucket, workdir, loop):
    """Written last of its files and removed first: a kill at any moment leaves whole ones listed."""
    before, loop["steps"] = len(bucket.requests), (4, 8, 9)
    go(workdir)
    name = f"{places.at(workdir).name}/checkpoints/4/"
    asked = [line for line in bucket.requests[before:] if name in line]
    put, gone = ([line for line in asked if line.startswith(verb)] for verb in ("PUT", "DELETE"))
    assert put[-1] == f"PUT {name}commit_success.txt"
    assert gone[0] == f"DELETE {name}commit_success.txt" and len(gone) > 5 and not bucket.names(name)


def test_what_a_kill_left_half_is_no_step_and_goes(bucket, workdir, loop):
    """Half written or half removed: without its mark. The next start goes on from the one before."""
    loop["steps"] = (4, 9)
    go(workdir)
    run = places.at(workdir).name
    del bucket.objects[f"{run}/checkpoints/9/commit_success.txt"]
    assert folder.steps_of(places.at(workdir) / "checkpoints") == [4] and loading.load(workdir, encoder=SMALL).step == 4
    loop["steps"] = ()
    go(workdir)
    assert loop["begun"][-1] == (4, 4) and steps(bucket, workdir) == ["4"]


def test_a_damaged_step_is_moved_and_training_goes_on_before_it(bucket, workdir, loop, capsys):
    """All of its files lie beside, as on a disk."""
    loop["steps"] = (4, 9)
    go(workdir)
    before = below(bucket, workdir, "checkpoints", "9")
    (name,) = bucket.names(f"{places.at(workdir).name}/checkpoints/9/about/metadata")
    bucket.objects[name] = bucket.objects[name].replace(b"moco", b"mocx", 1)
    with pytest.raises(ConfigError, match="9 is damaged"):
        loading.load(workdir, encoder=SMALL)
    loop["steps"] = ()
    go(workdir)
    assert loop["begun"][-1] == (4, 4) and steps(bucket, workdir) == ["4", "damaged"]
    assert below(bucket, workdir, "checkpoints", "damaged", "9") == before
    assert f"was moved to {workdir}/checkpoints/damaged/9; continuing from step 4" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["9/about/metadata", "9/state/d/", "9/state/manifest", "config.json"])
@pytest.mark.parametrize("status", [401, 403])
def test_what_cannot_be_reached_is_not_damaged_and_not_gone(bucket, workdir, loop, part, status):
    """Access that ends: an error, nothing moved or removed, nothing begun anew."""
    loop["steps"] = (4, 9) if "9/" in part else ()
    go(workdir)
    before, bucket.refused[part] = below(bucket, workdir), status
    with pytest.raises((ConfigError, OSError), match="cannot be (read now|reached)"):
        go(workdir)
    bucket.refused.clear()
    assert below(bucket, workdir) == before and len(loop["begun"]) == 1


def test_a_step_whose_mark_cannot_be_seen_is_not_removed(bucket, workdir, loop):
    """Only what is known to be half is."""
    loop["steps"] = (4, 9)
    go(workdir)
    bucket.refused[f"prefix={places.at(workdir).name}/checkpoints/9/"] = 403
    with pytest.raises(OSError, match="checkpoints/9 cannot be reached"):
        go(workdir)
    bucket.refused.clear()
    assert steps(bucket, workdir) == ["4", "9"]


def test_an_error_of_the_users_leaves_nothing(bucket, workdir, loop):
    """Before the first checkpoint, as in a new folder of a disk."""
    loop["error"] = ConfigError("record 70 has 1 channel")
    with pytest.raises(ConfigError, match="record 70"):
        go(workdir)
    assert below(bucket, workdir) == []


def test_another_run_is_refused_there_too(bucket, workdir, loop):
    """By what the checkpoint says of its run."""
    loop["steps"] = (4,)
    go(workdir)
    with pytest.raises(ConfigError, match=f"{workdir} .*queue.size"):
        go(workdir, dataclasses.replace(CONFIG, queue=Queue(48)))


def test_no_event_files_there(bucket, workdir):
    """Which tensorboardX writes: refused before anything is."""
    with pytest.raises(ConfigError, match=rf"log.tensorboard=True writes to a disk, .*{workdir}/log"):
        go(workdir, dataclasses.replace(CONFIG, log=Log(tensorboard=True)))
    assert below(bucket, workdir) == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gs://other/run", "there is no bucket other"),
        ("gs://bucket", "not gs://BUCKET/FOLDER"),
        ("s3://bucket/run", "not gs://BUCKET/FOLDER"),
    ],
)
def test_what_is_no_folder_of_a_bucket_is_refused_in_a_line(bucket, path, said):
    """Before anything is opened or compiled."""
    with pytest.raises(ConfigError, match=said) as error:
        go(path)
    assert "\n" not in str(error.value)


def test_without_access_or_gcsfs_a_line_says_what_to_do(bucket, workdir, monkeypatch):
    """How to sign in, and what to install."""
    bucket.refused["/b/bucket/o"] = 401
    with pytest.raises(ConfigError, match="no access here.*gcloud auth application-default login"):
        go(workdir)
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs gcsfs: pip install 'moco_jax\[gcs\]'"):
        go(workdir)


def test_results_of_evaluations_stay_here(bucket, workdir, loop, capsys):
    """A bucket is read; where a result goes is to be said."""
    go(workdir)
    assert report.main([workdir]) == 1 and "is in a bucket: give --output" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is in a bucket: give --workdir"):
        loading.workdir_for(workdir, "knn")
    with pytest.raises(ConfigError, match="results of evaluations go to a folder of this machine"):
        loading.check_no_run(workdir)


SHORT = {"train.epochs": 12}  # 48 steps


def start(workdir):
    return runs.start(workdir, SHORT)[0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The state of a run on a disk, and its log."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert ended(start(workdir))[0] == 0
    return runs.state(workdir), runs.last_lines(workdir)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_ends_in_the_state_of_one_on_a_disk(bucket, undisturbed, tmp_path, number):
    """train.py stopped and killed, and started again: bit for bit, and the same log; then kNN reads it."""
    text = f"gs://{fake_gcs.BUCKET}/train{int(number)}"
    process = start(text)
    until(process, "step 10/")
    process.send_signal(number)
    status, out = ended(process)
    assert status == ENDS.get(number, -number), out[-2000:]
    workdir = places.at(text)
    step, _ = runs.state(workdir)
    assert step >= 10 if number in ENDS else step % 4 == 0
    status, out = ended(start(text))
    assert status == 0 and f"continuing at step {step}" in out and f"log {text}/log" in out, out[-2000:]
    assert (runs.state(workdir), runs.last_lines(workdir)) == undisturbed
    if number == signal.SIGTERM:
        command = [sys.executable, "-m", "moco_jax", "knn", f"--checkpoint={text}", f"--workdir={tmp_path}"]
        asked = subprocess.run(command, cwd=runs.ROOT, text=True, capture_output=True, check=False)
        assert asked.returncode == 0 and f"step 48 of 48 of {text}" in asked.stdout, asked.stderr[-2000:]
        assert np.isfinite(json.loads((tmp_path / "result.json").read_text())["format"])
