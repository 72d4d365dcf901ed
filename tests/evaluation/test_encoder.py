"""A run's folder opened for evaluation: the trained online network, the untrained one, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moco_jax import load_encoder, parallel
from moco_jax.checkpoints.store import Store, describe
from moco_jax.config import ConfigError, Data, Eval, Views, to_json
from moco_jax.core.randomness import INIT, key
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation.features import extract
from moco_jax.state import Network, State
from tests import tiny

CONFIG = tiny.config(
    seed=5,
    views=Views(size=tiny.SIZE),
    data=Data(range=(0.0, 100.0), mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 1.0)),
    eval=Eval(resize=tiny.SIZE + 4),
)
SMALL = tiny.small_encoder(CONFIG, 3)


def begun(seed):
    """The small encoder as a run with this seed begins."""
    return parallel.born(lambda: Network(**SMALL.init(key(seed, 0, INIT))))


def plus(network, amount):
    return parallel.born(lambda: jax.tree.map(lambda a: jnp.asarray(a) + amount, parallel.host(network)))


@pytest.fixture(scope="module")
def fresh():
    """What the config's seed begins with."""
    return begun(CONFIG.seed)


@pytest.fixture(scope="module")
def online(fresh):
    """What the newest checkpoint holds as its online network."""
    return plus(fresh, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, fresh, online):
    """A run with two checkpoints, in which online and target of both are four different networks."""
    workdir = tmp_path_factory.mktemp("run")
    objects = {"encoder": "small", "source": "mine", "recipe": "", "pairs": ""}
    values = frozen.Values(3, "uint8", 0.0, 100.0)
    about = {**describe(to_json(CONFIG), objects), "values": values._asdict(), "total_steps": 20}
    with Store(workdir / "checkpoints", keep=2) as store:
        for step, ours in ((4, plus(fresh, 3.0)), (8, online)):
            target = plus(ours, 1.0)
            state = State(parallel.born(lambda n=step: jnp.asarray(n)), ours, target, {}, {})
            store.save(step, state, about)
    return workdir


@pytest.fixture(scope="module")
def loaded(folder):
    """The folder, opened with the encoder that it was trained with."""
    return frozen.load(folder, encoder=SMALL)


def test_the_trained_network_is_the_newest_online_one(loaded, folder, online):
    """Not the target, not an older step; read anew it is still the same."""
    assert loaded.step == 8
    assert frozen.digest(loaded.trained.network) == frozen.digest(online)
    assert frozen.stored_digest(folder, 8, loaded.trained.network) == frozen.digest(online)
    assert frozen.stored_digest(folder, 4, loaded.trained.network) != frozen.digest(online)
    assert frozen.stored_digest(folder, 2, loaded.trained.network) is None  # removed, or never there
    assert frozen.digest(load_encoder(folder, encoder=SMALL).network) == frozen.digest(online)


def test_the_untrained_network_is_what_the_runs_seed_begins_with(loaded, fresh):
    """The baseline of a run is its own beginning; another seed would be another encoder."""
    assert frozen.digest(loaded.untrained.network) == frozen.digest(fresh)
    assert frozen.digest(loaded.untrained.network) != frozen.digest(begun(0))


def test_config_and_source_come_from_the_checkpoint(loaded):
    """Nothing but the folder is needed."""
    assert loaded.config == CONFIG and loaded.source == "mine" and loaded.total_steps == 20
    for it in loaded[:2]:
        assert it.label == "small" and it.view_shape == (tiny.SIZE, tiny.SIZE, 3)


def test_features_are_of_standardised_views_by_each_network(loaded, online, fresh):
    """Stored values 0..100 are mapped to 0..1, then mean and std; both networks are fed alike."""
    raw = np.random.default_rng(0).integers(0, 101, (8, tiny.SIZE, tiny.SIZE, 3), np.uint8)
    x = (raw / 100.0 - np.array([0.5, 0.4, 0.3])) / np.array([0.25, 0.5, 1.0])
    for it, network in ((loaded.trained, online), (loaded.untrained, fresh)):
        network = parallel.host(network)
        wanted = SMALL.features(network.params, network.batch_stats, jnp.asarray(x, jnp.float32))
        got = it.features(raw)
        for name in ("backbone", "head"):
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4, atol=1e-4)


def photographs():
    """Three images (H, W, 3) of other sizes, wide and high, of values 0..100."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 101, (*shape, 3), np.uint8) for shape in ((20, 31), (25, 18), (12, 12))]


def test_images_of_any_size_are_seen_as_in_evaluation(loaded):
    """Shorter side to eval.resize, centre cut out, one row for each image: the same as a source of them gives."""
    images, encoder = photographs(), loaded.trained
    got = encoder(images)
    wanted = extract(encoder, ArraySource(images), batch_size=8, workers=2)["backbone"]
    assert got.shape == (3, 4) and got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    one_size = np.stack([image[:12, :12] for image in images])
    np.testing.assert_allclose(encoder(one_size, batch_size=2), encoder(list(one_size)), rtol=0, atol=1e-6)
    assert np.abs(got[0] - encoder(one_size)[0]).max() > 1e-3  # the centre of the whole image is another view


def test_preprocessing_says_what_the_encoder_expects(loaded):
    """All of it comes from the run's config and from what its images held."""
    how = loaded.trained.preprocessing
    assert (how.size, how.resize, how.channels, how.dtype) == (tiny.SIZE, tiny.SIZE + 4, 3, "uint8")
    assert (how.range, how.mean, how.std) == ((0.0, 100.0), (0.5, 0.4, 0.3), (0.25, 0.5, 1.0))
    x = loaded.trained.preprocess(photographs())
    assert x.shape == (3, tiny.SIZE, tiny.SIZE, 3) and x.dtype == np.float32


def test_module_and_variables_are_the_encoder_in_linen(loaded):
    """Backbone and pooling of the trained network; evaluation mode unless `train` is said, and no head."""
    encoder, images = loaded.trained, photographs()
    x, wanted = encoder.preprocess(images), encoder(images)
    assert {c: list(tree) for c, tree in encoder.variables.items()} == {c: ["backbone"] for c in encoder.variables}
    np.testing.assert_allclose(encoder.module.apply(encoder.variables, x), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.module.apply(encoder.variables, x, train=False), wanted, rtol=0, atol=1e-6)
    assert np.abs(encoder.module.apply(loaded.untrained.variables, x) - wanted).max() > 1e-3


def test_the_encoder_becomes_an_nnx_module(loaded):
    """`nnx.bridge.ToNNX` holds the same parameters and statistics, gives the same features, and has gradients."""
    encoder, images = loaded.trained, photographs()
    x = encoder.preprocess(images)
    model = nnx.bridge.ToNNX(encoder.module, rngs=nnx.Rngs(0)).lazy_init(x)
    for values in encoder.variables.values():
        nnx.update(model, values)
    np.testing.assert_allclose(model(x), encoder(images), rtol=0, atol=1e-6)
    for kind, collection in ((nnx.Param, "params"), (nnx.BatchStat, "batch_stats")):
        held = jax.tree.leaves(nnx.state(model, kind))
        assert sum(a.size for a in held) == sum(a.size for a in jax.tree.leaves(encoder.variables[collection])) > 0
    gradient = jax.tree.leaves(nnx.grad(lambda m: jnp.sum(m(x) ** 2))(model))
    assert max(float(np.abs(g).max()) for g in gradient) > 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images to encode"),
        (np.zeros((8, 8, 3), np.uint8), r"image 0 is uint8 \(8, 3\); the encoder takes images \(H, W, 3\) of uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))], r"image 1 is float64 \(8, 8, 3\)"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"image 0 is uint8 \(8, 8, 1\)"),
        (["a.jpg"], r"image 0 is str \(\)"),
    ],
)
def test_images_of_another_kind_are_refused(loaded, images, message):
    """By number, with what they are and what is taken: neither 8-bit values nor gray ones are made up."""
    for use in (loaded.trained, loaded.trained.preprocess):
        with pytest.raises(ConfigError, match=message):
            use(images)


def test_another_encoder_is_refused(folder):
    """By its label: one of the user's own, and the config's where none is given."""
    with pytest.raises(ConfigError, match="trained with encoder 'small', not 'other': give the same one from Python"):
        frozen.load(folder, encoder=SMALL._replace(label="other"))
    with pytest.raises(ConfigError, match="with encoder 'small', not 'resnet_tiny.*': give that one .* as encoder="):
        load_encoder(folder)


def test_a_folder_without_a_finished_checkpoint_is_refused(tmp_path):
    """No folder, one where nobody ever trained, training that has not saved yet, and one that began to."""
    with pytest.raises(ConfigError, match="there is no folder .*/none: give that of a run"):
        load_encoder(tmp_path / "none", encoder=SMALL)
    with pytest.raises(ConfigError, match="there are no checkpoints in .*: give the folder of a run"):
        load_encoder(tmp_path, encoder=SMALL)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no finished checkpoint yet"):
        load_encoder(tmp_path, encoder=SMALL)
    Store(tmp_path / "checkpoints").__exit__()
    with pytest.raises(ConfigError, match="holds no finished checkpoint yet"):
        load_encoder(tmp_path, encoder=SMALL)
