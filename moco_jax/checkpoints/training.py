"""What a checkpoint of another program holds to continue from, and what moco_jax wrote beside that."""

import json
from typing import Any, NamedTuple

import numpy as np

from moco_jax.checkpoints import messages, torch_names, weights
from moco_jax.checkpoints.torch_names import BATCH_COUNT, STATISTICS
from moco_jax.checkpoints.weights import Tensors
from moco_jax.config import Config, ConfigError, read_stored

OURS = "moco_jax"  # the key beside the released code's own four, which that code does not read
KEYS = ("step", "written", "about")  # below it
VALUES = {"channels", "dtype", "low", "high"}  # of what stored values mean, in a run's description
SETTINGS = {"lr", "momentum", "dampening", "weight_decay", "nesterov"}  # of SGD, in every version of torch
SETTINGS |= {"maximize", "foreach", "differentiable", "fused", "initial_lr"}  # in some, or left by a scheduler


class Training(NamedTuple):
    """What a file holds beside its encoders, to continue from."""

    epoch: int  # epochs that are done
    momentum: Tensors  # the optimizer's buffers, by the names of the online encoder's parameters
    settings: dict[str, Any]  # the optimizer's, as torch names them
    queue: np.ndarray  # (K, C)
    ptr: int  # the next row to be written


class Ours(NamedTuple):
    """What moco_jax wrote beside what the released code's file has a place for."""

    step: int
    written: np.ndarray  # (K,) int32: the step that wrote each row of the queue, -1 for none
    about: dict[str, Any]  # the run's description, as its checkpoints hold it

    @property
    def config(self) -> Config:
        """The run's config."""
        return read_stored(self.about["config"])


def of(content: dict[str, Any], parts: dict[str, Tensors]) -> Training | None:
    """What training continues from, or None where any of it is missing."""
    memory, optimizer, epoch = parts[""], content.get("optimizer"), content.get("epoch")
    if not (parts["encoder_k"] and memory.keys() == {"queue", "queue_ptr"} and isinstance(optimizer, dict)):
        return None
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch < 2**31:
        raise ConfigError(f"epoch is {_shown(epoch)}; it must be a whole number from 0 on")
    queue, ptr = weights.floats({"queue": memory["queue"]})["queue"], memory["queue_ptr"]
    dim = next((t.shape[0] for n, t in parts["encoder_q"].items() if n in ("fc.bias", "fc.2.bias")), None)
    if dim is None:
        raise ConfigError("it holds a queue, and an encoder without the head that makes its keys")
    if queue.ndim != 2 or queue.shape[0] != dim:
        raise ConfigError(f"queue is {queue.shape}, and the head gives {dim} features: (C, K) is needed")
    if ptr.shape != (1,) or ptr.dtype.kind not in "iu" or not 0 <= int(ptr[0]) < queue.shape[1]:
        said = f"{ptr.dtype}{ptr.shape}" if ptr.size > 1 else f"{ptr.tolist()}"
        raise ConfigError(f"queue_ptr is {said}, which is no place in a queue of {queue.shape[1]}")
    names = [n for n in parts["encoder_q"] if n.rpartition(".")[2] not in (*STATISTICS, BATCH_COUNT)]
    if names != torch_names.in_order(names):
        raise ConfigError("its tensors are in another order than torch's modules give: momentum goes by that order")
    try:
        momentum, settings = _momentum(optimizer, {n: parts["encoder_q"][n] for n in names})
    except ConfigError as error:
        raise ConfigError(f"{error}; save it without 'optimizer' to use its weights alone") from None
    return Training(epoch, momentum, settings, queue.T, int(ptr[0]))


def _momentum(optimizer: dict[str, Any], params: Tensors) -> tuple[Tensors, dict[str, Any]]:
    """Buffers by parameter name, and the settings, of an SGD state over both encoders or the online one.

    Parameters are numbered by their place; before torch 1.6 by what their memory address was, in the same order.
    """
    groups, state = optimizer.get("param_groups"), optimizer.get("state")
    if extra := optimizer.keys() - {"param_groups", "state"}:
        raise ConfigError(f"its optimizer holds {messages.listed(extra)}, which no SGD does")
    one = isinstance(groups, (list, tuple)) and len(groups) == 1 and isinstance(groups[0], dict)
    numbers = groups[0].get("params") if one else None  # type: ignore[index]  # it is one dict
    if not isinstance(numbers, (list, tuple)) or not isinstance(state, dict):
        raise ConfigError("its optimizer is no SGD with one group of parameters, as the original's")
    if not all(isinstance(n, int) for n in numbers) or len(set(numbers)) != len(numbers):
        raise ConfigError("its optimizer numbers its parameters by something else, or one number twice")
    if len(numbers) not in (len(params), 2 * len(params)):
        raise ConfigError(
            f"its optimizer holds {len(numbers)} parameters; {len(params)} of the online encoder are needed, or "
            f"{2 * len(params)} of both"
        )
    out = {}
    for number, (name, param) in zip(numbers, params.items(), strict=False):
        of = state.get(number, {})
        if isinstance(of, dict) and "exp_avg" in of:
            raise ConfigError("its optimizer is an Adam, and SGD with momentum trains here")
        if isinstance(of, dict) and (extra := of.keys() - {"momentum_buffer"}):
            raise ConfigError(f"its optimizer holds {messages.listed(extra)} of {name}, which no SGD does")
        buffer = of.get("momentum_buffer") if isinstance(of, dict) else None
        if not isinstance(buffer, np.ndarray) or buffer.shape != param.shape:
            have = "none" if not isinstance(buffer, np.ndarray) else str(buffer.shape)
            raise ConfigError(f"the momentum of {name} {param.shape} is {have}: it is no checkpoint to continue from")
        out[name] = buffer
    if strangers := state.keys() - set(numbers[: len(params)]):
        raise ConfigError(
            f"its optimizer holds momentum of {len(strangers)} parameters that are none of the online encoder's"
        )
    settings = _settings({k: v for k, v in groups[0].items() if k != "params"})  # type: ignore[index]
    try:
        return weights.floats(out), settings
    except ConfigError as error:
        raise ConfigError(f"in its momentum, {error}") from None


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """An SGD's settings; ConfigError for another optimizer's, and for values that are neither numbers nor switches."""
    if extra := group.keys() - SETTINGS:
        raise ConfigError(f"its optimizer is set to {messages.listed(extra)}, which no SGD knows")
    scalars = {k: v.item() if isinstance(v, np.ndarray) and v.ndim == 0 else v for k, v in group.items()}
    for name, value in scalars.items():
        if not isinstance(value, bool | int | float | None):
            raise ConfigError(f"its optimizer has {name} {_shown(value)}, where an SGD has a number or a switch")
    return scalars


def _shown(value: object) -> str:
    many = isinstance(value, dict | list | tuple | np.ndarray)
    return messages.one_line(f"of type {type(value).__name__}" if many else repr(value), 60)


def ours(content: dict[str, Any]) -> Ours | None:
    """What moco_jax wrote beside; ConfigError where it is not what it writes."""
    found = content.get(OURS)
    if found is None:
        return None
    step, written, about = (found.get(k) if isinstance(found, dict) else None for k in KEYS)
    try:
        about = json.loads(about) if isinstance(about, str) else None
    except (ValueError, RecursionError):
        about = None
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**31:
        wrong = "step"
    elif not isinstance(written, np.ndarray) or written.dtype != np.int32:
        wrong = "written"
    elif written.max(initial=-1) >= step:
        wrong = "written, of keys that come after its step,"
    elif not isinstance(about, dict) or not _whole(about):
        wrong = "about"
    elif found.keys() != set(KEYS):
        wrong = "one key more"
    else:
        return Ours(step, written, about)
    raise ConfigError(f"its key {OURS!r} is not what moco_jax writes: {wrong} is missing or of another kind")


def _whole(about: dict[str, Any]) -> bool:
    """Whether a description is that of a run, as each of our checkpoints holds one."""
    try:
        config, values = read_stored(about["config"]), about["values"]
        numbers = [values["channels"], about["total_steps"], about["total_steps"] // config.train.epochs]
        texts = [values["dtype"], about["objects"]["source"], about["objects"]["encoder"]]
        bounds = [float(values["low"]), float(values["high"])]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return False
    return (
        set(values) == VALUES
        and all(type(n) is int and n > 0 for n in numbers)
        and all(type(t) is str for t in texts)
        and bounds[0] < bounds[1]
    )
