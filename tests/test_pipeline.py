"""The whole way on digits: pretrain, stop, resume, evaluate; and a folder that another run must not touch."""

import dataclasses
import json

import numpy as np
import pytest

from moco_jax import assembly, cli, config, load_encoder, pages, parallel, pretrain, protocols
from moco_jax.checkpoints.store import Store
from moco_jax.config import ConfigError
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation import probe
from tests import tiny


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS folder of the tests' own."""
    return str(tmp_path_factory.mktemp("tfds"))


def digits(data_dir, **changes):
    """The default page, shrunken: 8 images a device, a net of width 4, two epochs of two steps."""
    c = config.read(pages.load("digits"))
    c = dataclasses.replace(
        c,
        batch_size=64,
        bn=config.BatchNorm(8),
        queue=config.Queue(64, mask_same_image=True),
        data=dataclasses.replace(c.data, data_dir=data_dir, split="train[:150]"),
        model=dataclasses.replace(c.model, width=4, dim=8),
        train=config.Train(epochs=2),
        eval=dataclasses.replace(
            c.eval, every_epochs=1, bank_split="train[:150]", split="train[1400:]", k=5, batch_size=64
        ),
        leak=config.Leak(every_epochs=0),
        consistency=config.Consistency(every_epochs=0),
        checkpoint=config.Checkpoint(every_epochs=1),
        log=config.Log(every_steps=1),
    )
    return dataclasses.replace(c, **changes)


def state_of(workdir, step):
    """Every leaf that a checkpoint holds."""
    store = Store(workdir / "checkpoints", read_only=True)
    parts = assembly.assemble(config.read(store.about(step)["config"]))
    return parallel.host(store.restore(step, parallel.abstract(parts.mechanism.init)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
    """A run that was never stopped; it alone has leak alarm and key consistency, which must change nothing."""
    workdir = tmp_path_factory.mktemp("whole")
    measured = {"leak": config.Leak(every_epochs=1), "consistency": config.Consistency(every_epochs=1)}
    return pretrain.train(digits(data_dir, **measured), workdir)


def log_of(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_leaves_log_config_and_checkpoint(whole):
    """Chance level, loss, pretext accuracy, similarities, alignment, uniformity, effective rank, queue age, kNN."""
    records = log_of(whole.workdir)
    assert records[0]["event"] == "start" and records[0]["chance"] == pytest.approx(np.log(65))
    steps = [r for r in records if "loss" in r]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    wanted = {"loss", "pretext_accuracy", "positive_similarity", "negative_similarity", "alignment", "uniformity"}
    wanted |= {"effective_rank", "queue_age_mean", "queue_age_max", "queue_filled", "images_per_second", "own_keys"}
    assert steps[0]["images_per_second"] is None  # compiling is no training
    assert wanted <= steps[-1].keys() and all(np.isfinite(steps[-1][k]) for k in wanted)
    assert [r["step"] for r in records if "knn_top1" in r] == [2, 4]
    assert [r["step"] for r in records if "leak" in r] == [2, 4]
    assert [r["step"] for r in records if "key_cosine_100" in r] == [2, 4]
    about = json.loads((whole.workdir / "config.json").read_text())
    assert about["config"]["shuffle"]["block"] == 64 and about["format"] == 1
    assert whole.checkpoint == 4 and not whole.was_complete


@pytest.mark.slow
def test_a_run_is_within_a_reference_made_of_its_own_log(whole, tmp_path, capsys):
    """`moco-jax compare` reads what the loop writes: two epochs of two steps, the cosine at 0 and 1 of 2 epochs."""
    records = log_of(whole.workdir)
    loss = [r["loss"] for r in records if "loss" in r]
    knn = [100 * r["knn_top1"] for r in records if "knn_top1" in r]
    rows = [(1, 0.06, (loss[0] + loss[1]) / 2, knn[0]), (2, 0.03, (loss[2] + loss[3]) / 2, knn[1])]
    reference = tmp_path / "reference.csv"
    reference.write_text("epoch,lr,train_loss,knn_top1\n" + "".join(f"{','.join(map(str, r))}\n" for r in rows))
    exact = ("--lr_tolerance=1e-8", "--loss_tolerance=1e-8", "--knn_tolerance=1e-8")
    assert cli.main(["compare", str(whole.workdir), str(reference), *exact]) == 0
    assert capsys.readouterr().out.count("at all 2 epochs to 2") == 3


@pytest.mark.slow
def test_stopped_and_resumed_equals_never_stopped_bit_for_bit(whole, tmp_path, data_dir):
    """Stopped by an evaluator after the first epoch, its checkpoint written; the same command goes on from there."""

    def fails(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain.train(digits(data_dir), tmp_path, evaluators=[fails])
    result = pretrain.train(digits(data_dir), tmp_path)
    assert any(r.get("event") == "start" and r["step"] == 2 for r in log_of(tmp_path))
    assert result.checkpoint == 4
    gap, where = tiny.distance(state_of(tmp_path, 4), state_of(whole.workdir, 4))
    assert gap == 0.0, where


@pytest.mark.slow
def test_a_complete_run_is_left_alone(whole, data_dir):
    """The same command again says so and trains nothing."""
    before = (whole.workdir / "log.jsonl").read_bytes()
    assert pretrain.train(digits(data_dir), whole.workdir).was_complete
    assert (whole.workdir / "log.jsonl").read_bytes() == before


@pytest.mark.slow
def test_another_runs_folder_is_refused_and_untouched(whole, data_dir):
    """Another temperature is another run; other paths, logging and cadence are not."""
    changed = dataclasses.replace(digits(data_dir), moco=config.Moco(0.99, 0.5))
    with pytest.raises(ConfigError, match=r"holds another run: moco.temperature 0.1 -> 0.5"):
        pretrain.train(changed, whole.workdir)
    free = dataclasses.replace(digits(data_dir), log=config.Log(2), checkpoint=config.Checkpoint(5))
    assert pretrain.train(free, whole.workdir).was_complete


@pytest.mark.slow
def test_the_probe_compares_with_no_training_and_is_read_back(whole, tmp_path, data_dir):
    """Untrained, trained; a second call shows the stored numbers."""
    data = protocols.Labelled(train_split="train[:200]", test_split="test")
    settings = protocols.Linear(epochs=4, milestones=(2, 3), untrained=True, data=data)
    text = probe.run(settings, whole.workdir, tmp_path)
    assert "untrained encoder: top-1" in text and "trained encoder: top-1" in text
    stamp = (tmp_path / "result.json").stat().st_mtime_ns
    assert probe.run(settings, whole.workdir, tmp_path) == text
    assert (tmp_path / "result.json").stat().st_mtime_ns == stamp
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert rows["untrained encoder"] != rows["trained encoder"]


@pytest.mark.slow
def test_a_users_objects_train_and_are_asked_for_again(tmp_path):
    """Own images, own pair rule, no labels; resuming without the rule is an error, and features come out."""
    stored = np.random.default_rng(0).integers(0, 2**16, (64, 10, 10, 2), np.uint16)

    def neighbours(ids, draws):
        return np.stack([ids, ids ^ 1], axis=1)

    c = config.Config(
        batch_size=16,
        bn=config.BatchNorm(2),
        data=config.Data(range=(0.0, 65535.0), mean=(0.5, 0.5), std=(0.25, 0.25)),
        views=config.Views(recipe="bands", size=8),
        model=config.Model(width=4, dim=8),
        queue=config.Queue(16),
        train=config.Train(epochs=1),
        eval=config.Eval(every_epochs=0),
        leak=config.Leak(every_epochs=0),
        consistency=config.Consistency(every_epochs=0),
    )
    source = ArraySource(stored, name="mine")
    pretrain.train(c, tmp_path, source=source, pairs=neighbours)
    with pytest.raises(ConfigError, match="give the same object as pairs="):
        pretrain.train(c, tmp_path, source=source)
    encoder = load_encoder(tmp_path)
    features = encoder.features(stored[:3, 1:9, 1:9])
    assert features["backbone"].shape == (3, 16) and np.isfinite(features["head"]).all()


@pytest.mark.slow
def test_the_streamed_path_trains_the_same_images(whole, tmp_path, data_dir):
    """Pillow crops on the host instead of crops on the device: other draws, the same records, a finite loss."""
    c = digits(data_dir, train=config.Train(epochs=1))
    c = dataclasses.replace(c, data=dataclasses.replace(c.data, path="streamed"))
    assert pretrain.train(c, tmp_path).checkpoint == 2
    losses = [[r["loss"] for r in log_of(w) if "loss" in r][:2] for w in (tmp_path, whole.workdir)]
    assert np.isfinite(losses).all() and losses[0] != losses[1]
    assert abs(losses[0][0] - losses[1][0]) < 0.5  # one net, one batch, one recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": config.Train(epochs=1, steps_per_call=2)}, "train.steps_per_call 2 is for GPUs and TPUs"),
        ({"views": config.Views(recipe="moco_v2", size=16)}, "which need 3 channels, but the images have 1"),
        ({"model": config.Model(arch="resnet19")}, "model.arch 'resnet19' is unknown"),
        ({"model": config.Model(dtype="float8")}, "model.dtype 'float8' is unknown"),
        ({"data": config.Data(mean=(0.1, 0.2), std=(1.0, 1.0))}, "data.mean has length 2 and images have 1 channel"),
        ({"optimizer": config.Optimizer(schedule="linear")}, "optimizer.schedule 'linear' is unknown"),
        ({"eval": config.Eval(k=500)}, "kNN has no labelled images for source 'mine'"),
        ({"views": config.Views(recipe="supervised")}, "'supervised' makes one view, for classifiers, .* digits, "),
    ],
)
def test_what_cannot_be_run_ends_before_anything_is_written(change, message, tmp_path):
    """One clear line, and no folder."""
    base = config.Config(
        batch_size=16,
        bn=config.BatchNorm(2),
        model=config.Model(width=4, dim=8),
        eval=config.Eval(every_epochs=0),
    )
    source = ArraySource(np.zeros((64, 16, 16, 1), np.uint8), name="mine")
    with pytest.raises(ConfigError, match=message):
        pretrain.train(dataclasses.replace(base, **change), tmp_path / "run", source=source)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": np.zeros((4, 8, 8, 1), np.uint8)}, "a ndarray is no source"),
        ({"source": ArraySource([], name="none")}, "none holds no images"),
        ({"recipe": ("a", "b")}, "a recipe is two ViewRecipe"),
        (
            {"source": ArraySource([np.zeros((8, s, 1), np.uint8) for s in (8, 9) * 32])},
            "the images of arrays differ in size",
        ),
    ],
)
def test_objects_that_do_not_fit_are_named(arguments, message, tmp_path):
    """A user's own objects get the same manners as a config."""
    c = config.Config(batch_size=16, bn=config.BatchNorm(2), eval=config.Eval(every_epochs=0))
    given = {"source": ArraySource(np.zeros((64, 8, 8, 1), np.uint8))} | arguments
    with pytest.raises(ConfigError, match=message):
        pretrain.train(c, tmp_path / "run", **given)
    with pytest.raises(ConfigError, match="a run takes moco_jax.config.read"):
        pretrain.train({"seed": 1}, tmp_path / "run", **given)
