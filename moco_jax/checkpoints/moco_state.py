"""MoCo's whole train state as a checkpoint of the released PyTorch code, and back, without loss.

That code's file holds `{epoch, arch, state_dict, optimizer}`. What it has no place for stands in one key more, which
it does not read: the step, which step wrote each row of the queue, and the run's own description.
"""

import json
from typing import Any

import jax
import numpy as np

from moco_jax.checkpoints import pytorch, recognise, torch_names, weights
from moco_jax.checkpoints.training import OURS, Training
from moco_jax.checkpoints.weights import Encoder, Tensors
from moco_jax.config import Config, ConfigError
from moco_jax.core.optimizers import sgd
from moco_jax.core.queue import Queue
from moco_jax.core.schedules import learning_rate
from moco_jax.state import Network, State

TO_NOTEBOOK = {name: f"net.{number}" for number, name in recognise.NOTEBOOK.items()}


def check(config: Config) -> None:
    """ConfigError for the run of another mechanism, whose state such a file does not hold."""
    if config.moco is None:
        raise ConfigError(f"a .pth.tar holds MoCo's state, and the run is of mechanism {config.mechanism!r}")
    if config.moco.loss != "infonce":
        raise ConfigError(
            f"a .pth.tar holds nothing of moco.loss={config.moco.loss!r}: the code that reads it knows infonce alone"
        )


def to_content(tree: dict[str, Any], about: dict[str, Any], config: Config, *, steps_per_epoch: int) -> dict[str, Any]:
    """The content of a `.pth.tar` of a state as `Store.tree` gives it, in the layout of the code that reads it.

    That is the released code's, and for the stem of CIFAR its notebook's. Raises ConfigError as `check`, and for an
    encoder of a user's own, whose layers have no name there.
    """
    check(config)
    assert config.moco is not None
    step, notebook = int(tree["step"]), config.model.stem == "cifar"
    momentum = torch_names.to_torch({"params": trace(tree)})
    named = {part: torch_names.to_torch(tree[part]) for part in ("online", "target")}
    order = torch_names.in_order(named["online"])
    params = [n for n in order if not n.endswith(torch_names.STATISTICS)]
    prefix, forwards = "" if notebook else "module.", np.asarray(step * (2 if config.moco.symmetric else 1), np.int64)
    memory = tree["memory"]
    state_dict: Tensors = {
        f"{prefix}queue": memory["queue"].T,
        f"{prefix}queue_ptr": np.asarray(memory["ptr"], np.int64).reshape(1),
    }
    for part, called in (("online", "encoder_q"), ("target", "encoder_k")):
        for name in order:
            as_there = _notebook_name(name) if notebook else name
            state_dict[f"{prefix}{called}.{as_there}"] = named[part][name]
            if name.endswith("running_var"):
                count = as_there.removesuffix("running_var") + torch_names.BATCH_COUNT
                state_dict[f"{prefix}{called}.{count}"] = forwards
    rate = learning_rate(
        config.optimizer, batch_size=config.batch_size, epochs=config.train.epochs, steps_per_epoch=steps_per_epoch
    )
    optimizer = pytorch.sgd_state(
        [named[part][n].shape for part in ("online", "target") for n in params],
        [momentum[n] for n in params],
        learning_rate=float(rate(jax.numpy.asarray(max(step - 1, 0)))),
        momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
    )
    ours = {"step": step, "written": memory["written"], "about": json.dumps(about)}
    arch = {} if notebook else {"arch": config.model.arch}
    return {
        "epoch": step // steps_per_epoch,
        **arch,
        "state_dict": state_dict,
        "optimizer": optimizer,
        OURS: ours,
    }


def to_state(found: recognise.Found, *, step: int, written: np.ndarray | None = None) -> State:
    """The state, of numpy arrays, that training continues from; `written` None: no row of the queue is known.

    Raises ConfigError where the file holds no whole state.
    """
    training, target = training_of(found), found.target
    assert target is not None
    size = len(training.queue)
    written = np.full((size,), -1, np.int32) if written is None else written
    if written.shape != (size,):
        raise ConfigError(f"written is {written.shape}, and the queue holds {size} keys")
    return State(
        step=np.asarray(step, np.int32),  # type: ignore[arg-type]  # numpy's, to be saved
        online=Network(**weights.network(found.online)),
        target=Network(**weights.network(target)),
        optimizer=_optimizer(found.online, training.momentum),
        memory=Queue(training.queue, np.asarray(training.ptr, np.int32), written),  # type: ignore[arg-type]
    )


def training_of(found: recognise.Found) -> Training:
    """What training continues from; ConfigError where a file holds no whole state."""
    if found.training is None or found.target is None:
        raise ConfigError(
            f"{found.layout}, without what training continues from (target encoder, queue, momentum and epoch); start "
            "a new run from its weights by --config.train.init_from"
        )
    return found.training


def _notebook_name(name: str) -> str:
    """layer1.0.conv1.weight -> net.3.0.conv1.weight."""
    first, rest = name.split(".", 1)
    return f"{TO_NOTEBOOK[first]}.{rest}"


def trace(tree: dict[str, Any]) -> Any:
    """The momentum buffers of a stored optimizer: a tree like the parameters."""
    return next(part["trace"] for part in tree["optimizer"] if part is not None and "trace" in part)


def _optimizer(online: Encoder, momentum: Tensors) -> Any:
    """The optimizer's state, in the structure that `core.optimizers.sgd` makes."""
    params = weights.shapes(online.model, online.channels, with_head=True)["params"]
    trace = torch_names.from_torch(momentum, {"params": params})["params"]
    made = jax.eval_shape(sgd(lambda step: step, momentum=0, weight_decay=0).init, params)
    return jax.tree.unflatten(jax.tree.structure(made), jax.tree.leaves(trace))
