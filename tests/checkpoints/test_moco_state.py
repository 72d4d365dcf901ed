"""MoCo's state as the released code's checkpoint and back, whole; torch goes on from it. Skips without torch."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: it writes and reads the files")

from moco_jax.checkpoints import moco_state, pytorch, reading, torch_names, weights  # noqa: E402
from moco_jax.checkpoints.verified import leaves  # noqa: E402
from moco_jax.config import ConfigError, to_json  # noqa: E402
from moco_jax.core.optimizers import sgd  # noqa: E402
from moco_jax.core.queue import Queue  # noqa: E402
from moco_jax.state import Network, State  # noqa: E402
from tests import tiny  # noqa: E402
from tests.checkpoints import bad_files, foreign  # noqa: E402
from tests.checkpoints.test_weights import network  # noqa: E402
from tests.parity.torchvision_cpu import import_torchvision  # noqa: E402

STEPS, STEPS_PER_EPOCH = 10, 4
ABOUT = {
    "format": 1,
    "total_steps": 20,
    "config": to_json(tiny.config()),
    "values": {"channels": 3, "dtype": "uint8", "low": 0.0, "high": 255.0},
    "objects": {"encoder": "", "source": ""},
}


def config(stem="imagenet", arch="resnet_tiny", head="mlp", symmetric=False, **of):
    """A run's config, whose model is that of `tree` with the same arguments."""
    base = tiny.config(**of)
    model = dataclasses.replace(base.model, arch=arch, stem=stem, head=head, width=4, dim=5)
    return dataclasses.replace(base, model=model, moco=dataclasses.replace(base.moco, symmetric=symmetric))


def tree(dtype=np.float32, channels=3, **of):
    """A state as `Store.tree` gives it: nested dicts and lists of numpy arrays, every number another."""
    rng = np.random.default_rng(1)
    of = {"stem": "imagenet", **of}
    online, target = (
        jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(dtype), network(channels=channels, **of))
        for _ in range(2)
    )
    for encoder in (online, target):
        encoder["batch_stats"] = jax.tree.map(lambda a: np.abs(a) + 1, encoder["batch_stats"])  # variances
    trace = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(dtype), online["params"])
    memory = {
        "queue": rng.standard_normal((12, 5)).astype(dtype),
        "ptr": np.asarray(7, np.int32),
        "written": np.arange(-2, 10, dtype=np.int32),
    }
    step = np.asarray(STEPS, np.int32)
    return {"step": step, "online": online, "target": target, "optimizer": [None, {"trace": trace}], "memory": memory}


def there_and_back(state, c, path, *, legacy=False):
    content = moco_state.to_content(state, ABOUT, c, steps_per_epoch=STEPS_PER_EPOCH)
    pytorch.write(path, content)
    if legacy:
        foreign.save(path, torch.load(path, weights_only=True), legacy=True)
    found = reading.read(path)
    return found, moco_state.to_state(found, step=found.ours.step, written=found.ours.written)


def assert_equal(back, state):
    """Leaf by leaf, bit for bit, of the same dtypes; as the State that the step takes."""
    assert isinstance(back, State) and isinstance(back.online, Network) and isinstance(back.memory, Queue)
    ours, theirs = leaves(back), leaves(state)
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        assert ours[name].dtype == leaf.dtype and ours[name].shape == leaf.shape, name
        assert ours[name].tobytes() == leaf.tobytes(), name


@pytest.mark.parametrize(
    "of",
    [
        {},
        {"head": "linear"},
        {"channels": 1},
        {"channels": 13},
        {"stem": "cifar"},
        {"arch": "resnet18", "stem": "cifar", "head": "linear"},
        {"arch": "resnet50"},
        {"dtype": np.float64},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_there_and_back(tmp_path, of, legacy):
    """Both heads and layouts, any channels, bottlenecks, double precision: step, queue and momentum too."""
    state = tree(**of)
    c = config(**{k: v for k, v in of.items() if k not in ("dtype", "channels")})
    found, back = there_and_back(state, c, tmp_path / "a.pth.tar", legacy=legacy)
    assert_equal(back, state)
    assert found.ours.about == json.loads(json.dumps(ABOUT)) and found.training.epoch == STEPS // STEPS_PER_EPOCH
    assert found.layout.endswith("notebook's" if of.get("stem") == "cifar" else "head)")
    assert found.pixels is None or of.get("channels", 3) == 3


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_stored_state_there_and_back(tmp_path, symmetric):
    """As the store reads it, of the structure that the step takes; torch counts every forward of its batch norms."""
    from moco_jax import parallel
    from moco_jax.checkpoints.store import Store

    c, params = config(symmetric=symmetric), network(stem="imagenet")
    optimizer = sgd(lambda step: step, momentum=0.9, weight_decay=0)

    def init():
        online, target = Network(**params), Network(**jax.tree.map(lambda a: a + 1, params))
        memory = Queue(
            jax.numpy.ones((40, 5)), jax.numpy.asarray(3, jax.numpy.int32), jax.numpy.arange(-32, 8, dtype=np.int32)
        )
        return State(jax.numpy.asarray(8, np.int32), online, target, optimizer.init(params["params"]), memory)

    with Store(tmp_path / "checkpoints") as store:
        store.save(8, parallel.born(init), ABOUT)
    with Store(tmp_path / "checkpoints", read_only=True) as store:
        state = store.tree(8)
    found, back = there_and_back(state, c, tmp_path / "a.pth.tar")
    assert_equal(back, state)
    assert jax.tree.structure(back) == jax.tree.structure(jax.eval_shape(init))
    content = torch.load(tmp_path / "a.pth.tar", weights_only=True)["state_dict"]
    counts = {int(v) for n, v in content.items() if n.endswith("num_batches_tracked")}
    assert counts == {16 if symmetric else 8} and found.training.epoch == 2


def test_double_precision_throughout(tmp_path):
    """With JAX in 64 bits, in a process of its own: nothing becomes 32 on the way."""
    code = (
        "import sys, pathlib, tests.checkpoints.test_moco_state as t, numpy as np\n"
        "state = t.tree(dtype=np.float64)\n"
        "_, back = t.there_and_back(state, t.config(), pathlib.Path(sys.argv[1]))\n"
        "t.assert_equal(back, state)\n"
        "assert back.online.params['backbone']['conv1']['kernel'].dtype == np.float64\n"
    )
    environment = {**__import__("os").environ, "JAX_ENABLE_X64": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.pth.tar"], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr


def loaded(path, module, optimizer=None):
    """A torch model of the same names takes the file, every tensor; so does its optimizer."""
    content = torch.load(path, weights_only=True)
    module.load_state_dict(content["state_dict"], strict=True)
    if optimizer is not None:
        optimizer.load_state_dict(content["optimizer"])
    return content


def contrast(head="mlp", channels=3, notebook=False):
    make = foreign.tiny(
        "resnet18" if notebook else "resnet_tiny", "cifar" if notebook else "imagenet", head, channels, 5
    )
    model = foreign.Contrast((lambda: foreign.of_notebook(make())) if notebook else make, 5, 12)
    return model if notebook else torch.nn.DataParallel(model)


@pytest.mark.parametrize("of", [{}, {"head": "linear"}, {"channels": 13}, {"notebook": True, "head": "linear"}])
def test_torch_takes_the_file_and_steps_as_we_do(tmp_path, of):
    """strict=True, its SGD over all parameters; one step from the same gradients moves both alike."""
    size = {"arch": "resnet18", "stem": "cifar"} if of.get("notebook") else {}
    state = tree(head=of.get("head", "mlp"), channels=of.get("channels", 3), **size)
    c = config(head=of.get("head", "mlp"), **size)
    pytorch.write(tmp_path / "a.pth.tar", moco_state.to_content(state, ABOUT, c, steps_per_epoch=STEPS_PER_EPOCH))
    model = contrast(**of)
    optimizer = torch.optim.SGD(model.parameters(), 123.0)
    content = loaded(tmp_path / "a.pth.tar", model, optimizer)
    assert content["epoch"] == 2 and content.get("arch") == (None if of.get("notebook") else "resnet_tiny")
    inner = getattr(model, "module", model)
    np.testing.assert_array_equal(inner.queue.numpy().T, state["memory"]["queue"])
    assert inner.queue_ptr.tolist() == [7]

    group = optimizer.param_groups[0]
    rate = float(group["lr"])
    assert 0 < rate < 1 and (group["momentum"], group["weight_decay"]) == (
        c.optimizer.momentum,
        c.optimizer.weight_decay,
    )
    params, trace = state["online"]["params"], state["optimizer"][1]["trace"]
    rng = np.random.default_rng(5)
    gradients = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(a.dtype), params)
    ours = sgd(lambda step: jax.numpy.asarray(rate), momentum=group["momentum"], weight_decay=group["weight_decay"])
    held = jax.tree.unflatten(jax.tree.structure(jax.eval_shape(ours.init, params)), jax.tree.leaves(trace))
    expected, _ = ours.update(gradients, held, params, 0)

    order = [n for n in torch_names.in_order(torch_names.to_torch(state["online"])) if "running" not in n]
    named = torch_names.to_torch({"params": gradients})
    for name, param in zip(order, inner.encoder_q.parameters(), strict=True):
        param.grad = torch.from_numpy(np.ascontiguousarray(named[name]))
    optimizer.step()
    after = torch_names.to_torch({"params": jax.tree.map(np.asarray, expected)})
    before = torch_names.to_torch({"params": params})
    for name, param in zip(order, inner.encoder_q.parameters(), strict=True):
        np.testing.assert_allclose(param.detach().numpy(), after[name], rtol=1e-5, atol=1e-6)
        assert not np.allclose(before[name], after[name], rtol=1e-4)
    for param, (name, _) in zip(inner.encoder_k.parameters(), inner.encoder_q.named_parameters(), strict=True):
        assert param not in optimizer.state, name


def test_the_learning_rate_is_the_last_ones(tmp_path):
    """That of the step that was done last, as the released code leaves it in its optimizer: none was done at 0."""
    from moco_jax.core.schedules import learning_rate

    state, c = tree(), config()
    c = dataclasses.replace(c, optimizer=dataclasses.replace(c.optimizer, schedule="cosine"))
    rates = learning_rate(c.optimizer, batch_size=c.batch_size, epochs=c.train.epochs, steps_per_epoch=STEPS_PER_EPOCH)
    assert float(rates(jax.numpy.asarray(7))) != float(rates(jax.numpy.asarray(8)))
    for step, of in ((8, 7), (0, 0)):
        state["step"] = np.asarray(step, np.int32)
        content = moco_state.to_content(state, ABOUT, c, steps_per_epoch=STEPS_PER_EPOCH)
        assert content["optimizer"]["param_groups"][0]["lr"] == pytest.approx(float(rates(jax.numpy.asarray(of))))
        assert content["epoch"] == step // STEPS_PER_EPOCH


@pytest.mark.slow
def test_torchvisions_module_takes_a_run(tmp_path):
    """ResNet-50 of torchvision's with MoCo v2's head, as main_moco.py resumes it."""
    torchvision = import_torchvision()
    if torchvision is None:
        pytest.skip("torchvision is not installed")

    def make():
        module = torchvision.models.resnet50(num_classes=5)
        module.fc = torch.nn.Sequential(torch.nn.Linear(2048, 2048), torch.nn.ReLU(), module.fc)
        return module

    state, c = tree(arch="resnet50", width=64), config(arch="resnet50")
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, width=64))
    pytorch.write(tmp_path / "a.pth.tar", moco_state.to_content(state, ABOUT, c, steps_per_epoch=STEPS_PER_EPOCH))
    model = torch.nn.DataParallel(foreign.Contrast(make, 5, 12))
    loaded(tmp_path / "a.pth.tar", model, torch.optim.SGD(model.parameters(), 1.0))
    kernel = state["online"]["params"]["backbone"]["layer3_4"]["conv2"]["kernel"]
    np.testing.assert_array_equal(
        model.module.encoder_q.layer3[4].conv2.weight.detach().numpy(), kernel.transpose(3, 2, 0, 1)
    )


def test_another_programs_checkpoint_becomes_a_state(tmp_path):
    """torch's tensors leaf by leaf; nobody knows which step wrote a row of the queue."""
    made = foreign.trained()
    found = reading.read(foreign.save(tmp_path / "a.pth.tar", made.content))
    state = moco_state.to_state(found, step=12)
    assert int(state.step) == 12 and state.step.dtype == np.int32 and set(state.memory.written) == {-1}
    assert state.memory.written.dtype == np.int32 and int(state.memory.ptr) == 12
    for module, part in ((made.contrast.encoder_q, state.online), (made.contrast.encoder_k, state.target)):
        ours = torch_names.to_torch({"params": part.params, "batch_stats": part.batch_stats})
        theirs = {n: t.numpy() for n, t in module.state_dict().items() if "num_batches" not in n}
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value)
    trace = torch_names.to_torch({"params": moco_state.trace(leaves_as_tree(state))})
    for name, param in made.contrast.encoder_q.named_parameters():
        np.testing.assert_array_equal(trace[name], made.optimizer.state[param]["momentum_buffer"].numpy())


def leaves_as_tree(state):
    """A state's optimizer as `Store.tree` gives it: the trace as a dict."""
    return {"optimizer": [None, {"trace": state.optimizer[1].trace}]}


def test_what_holds_no_state_is_refused(tmp_path):
    """Weights alone, a classifier, a checkpoint without its queue: what is missing, and what to do instead."""
    made = foreign.trained()
    whole = bad_files.good()
    without_queue = {n: t for n, t in whole["state_dict"].items() if "queue" not in n}
    for content, layout in (
        (foreign.tiny(head="linear")().state_dict(), "a ResNet in torchvision's names"),
        (foreign.linear_classifier(foreign.tiny()()).content, "a linear classifier of main_lincls.py"),
        ({**whole, "state_dict": without_queue}, "MoCo checkpoint"),
        ({k: v for k, v in made.content.items() if k != "optimizer"}, "MoCo checkpoint"),
    ):
        found = reading.read(foreign.save(tmp_path / "a.pth", content))
        with pytest.raises(ConfigError, match=rf"{layout}.*, without what training continues from .*init_from"):
            moco_state.to_state(found, step=0)
    found = reading.read(foreign.save(tmp_path / "a.pth", whole))
    with pytest.raises(ConfigError, match=r"written is \(3,\), and the queue holds 24 keys"):
        moco_state.to_state(found, step=0, written=np.zeros(3, np.int32))


def test_other_runs_have_no_such_file():
    """Another mechanism, and an encoder whose layers torchvision does not have."""
    c = config()
    with pytest.raises(ConfigError, match="holds MoCo's state, and the run is of mechanism"):
        moco_state.to_content(tree(), ABOUT, dataclasses.replace(c, moco=None), steps_per_epoch=4)
    state = tree()
    state["online"]["params"]["backbone"]["Conv_0"] = {"kernel": np.ones((1, 1, 1, 1), np.float32)}
    with pytest.raises(ConfigError, match="Conv_0/kernel has no name in torchvision's ResNets"):
        moco_state.to_content(state, ABOUT, c, steps_per_epoch=4)


def test_shapes_are_those_of_the_optimizer(tmp_path):
    """The structure that the step takes: of a state made by the shipped optimizer, not only of equal leaves."""
    found = reading.read(foreign.save(tmp_path / "a.pth.tar", foreign.trained().content))
    state = moco_state.to_state(found, step=0)
    params = weights.network(found.online)["params"]
    made = sgd(lambda step: step, momentum=0.9, weight_decay=1e-4).init(params)
    assert jax.tree.structure(state.optimizer) == jax.tree.structure(made)
