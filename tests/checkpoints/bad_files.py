"""Files that are no weights, or no longer, or more than that, each made into a folder: what readers must explain.

Those of CODE leave a file at `marker` when anything in them runs. Needs torch.
"""

import argparse
import copy
import functools
import pathlib
import pickle
import random
import subprocess
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import torch
from torch import nn
from torch.fx import graph_module

from tests.checkpoints import foreign

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(64)
Q = "module.encoder_q."
PLACES = ("top", "beside", "epoch", "tensor", "optimizer")  # where in a file something stands that should not


@functools.cache
def _whole() -> foreign.Trained:
    return foreign.trained()


def good() -> dict[str, Any]:
    """The content of a checkpoint that is whole, to be spoiled."""
    return copy.deepcopy(_whole().content)


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.how = function, args

    def __reduce__(self) -> Any:
        return self.how


def code(marker: Path) -> dict[str, Any]:
    """Objects that touch `marker` when they are unpickled."""
    touch = f"open({str(marker)!r}, 'w').close()"
    inner = pickle.dumps(Call(eval, touch))
    return {
        "os.system": Call(__import__("os").system, f"touch {marker}"),
        "builtins.eval": Call(eval, touch),
        "builtins.exec": Call(exec, touch),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "pathlib.Path.touch": Call(pathlib.Path.touch, marker),
        "pickle.loads": Call(pickle.loads, inner),
        "torch.fx reducer": Call(graph_module.reduce_graph_module, {"_code": touch}, touch),
        "torch.serialization.load": Call(torch.load, str(marker.with_name("other.pt")), None, None),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "timeit": Call(__import__("timeit").timeit, touch, "pass"),
        "numpy runstring": Call(__import__("numpy.testing", fromlist=["x"]).runstring, touch, {}),
    }


def _spoiled(place: str, value: Any) -> dict[str, Any]:
    content = good()
    if place == "top":
        return value
    if place == "beside":
        content["args"] = value
    elif place == "epoch":
        content["epoch"] = value
    elif place == "tensor":
        content["state_dict"][Q + "conv1.weight"] = value
    elif place == "optimizer":
        content["optimizer"]["state"][0]["momentum_buffer"] = value
    return content


def executing(marker: Path) -> Iterator[tuple[str, Any]]:
    """(name, content): every object of `code`, in every place where a reader could come across it."""
    for name, value in code(marker).items():
        for place in PLACES:
            yield f"{name}, {place}", _spoiled(place, value)


def _itself() -> list[Any]:
    out: list[Any] = []
    out.append(out)
    return out


def _nested(depth: int) -> list[Any]:
    out: list[Any] = []
    for _ in range(depth):
        out = [out]
    return out


def _many_times() -> list[Any]:
    out: list[Any] = [0]
    for _ in range(10):
        out = [out] * 100
    return out


class Mine:
    """A class of a program's own."""


def others() -> Iterator[tuple[str, Any]]:
    """(name, content): values that are neither tensors nor plain."""
    config = ml_collections.ConfigDict({"lr": 0.1})
    values = {
        "numpy scalar": np.float64(3),
        "numpy array": np.ones(3),
        "argparse.Namespace": argparse.Namespace(lr=0.1),
        "ConfigDict": config,
        "set": {1, 2},
        "path": Path("x"),
        "class": Mine,
        "instance": Mine(),
        "module": nn.Linear(2, 2),
        "complex": 1j,
        "bytes": b"123",
        "bytearray": bytearray(b"12"),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "number of 100,000 bits": 1 << 100_000,
        "tuple as key": {(1, 2): 3},
    }
    for name, value in values.items():
        for place in PLACES:
            yield f"{name}, {place}", _spoiled(place, value)
    yield "a list that holds itself", _spoiled("epoch", _itself())
    yield "lists in lists", _spoiled("epoch", _nested(200))
    yield "one number in lists, 10^20 times", _spoiled("epoch", _many_times())


def tensors() -> Iterator[tuple[str, Any]]:
    """(name, content): tensors of kinds that no weights are, as a weight, as momentum and as the queue."""
    for place, name in {"weight": Q + "conv1.weight", "queue": "module.queue", "momentum": ""}.items():
        shape = (8, 24) if place == "queue" else (4, 3, 7, 7)
        plain = torch.ones(shape)
        kinds = {
            "sparse": plain.to_sparse(),
            "quantised": _quantised(plain),
            "complex": plain.to(torch.complex64),
            "int64": plain.long(),
            "uint8": plain.byte(),
            "bool": plain.bool(),
            "float8": plain.to(torch.float8_e4m3fn),
            "meta": plain.to("meta"),
            "empty": torch.ones(0),
            "scalar": torch.tensor(1.0),
            "one number many times": torch.ones(1).expand(shape),
            "claims a terabyte": torch.ones(1).expand(2**38),
            "nan": torch.full(shape, float("nan")),
            "infinite": torch.full(shape, float("inf")),
            "of another shape": torch.ones(3, 3),
        }
        for kind, value in kinds.items():
            content = good()
            if name:
                content["state_dict"][name] = value
            else:
                content["optimizer"]["state"][0]["momentum_buffer"] = value
            yield f"{kind}, {place}", content


def _quantised(plain: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # deprecated, and in files that exist
        return torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8)


def _changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content = good()
    change(content)
    return content


def _state(**changes: Any) -> dict[str, Any]:
    """A checkpoint with tensors changed, added or, where None, left out; names as `encoder_q__conv1__weight`."""
    content = good()
    for name, value in changes.items():
        content["state_dict"]["module." + name.replace("__", ".")] = value
    content["state_dict"] = {n: t for n, t in content["state_dict"].items() if t is not None}
    return content


def _renamed(old: str, new: str) -> dict[str, Any]:
    content = good()
    content["state_dict"] = {n.replace(old, new): t for n, t in content["state_dict"].items()}
    return content


def _optimizer(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> dict[str, Any]:
    """A checkpoint whose optimizer `change(whole, its group)` spoils."""
    return _changed(lambda c: change(c["optimizer"], c["optimizer"]["param_groups"][0]))


def _adam() -> dict[str, Any]:
    made = foreign.trained(steps=1)
    adam = torch.optim.Adam(made.contrast.encoder_q.parameters())
    adam.step()
    return {**made.content, "optimizer": adam.state_dict()}


def structures() -> Iterator[tuple[str, Any]]:
    """(name, content): plain tensors and values, and no checkpoint that makes sense."""
    one = torch.ones
    yield from {
        "a list": [one(2)],
        "a tensor": one(2),
        "a text": "weights",
        "nothing": None,
        "no names": {},
        "numbered tensors": {0: one(2), 1: one(3)},
        "numbered state_dict": {"state_dict": {0: one(2)}},
        "state_dict of texts": {"state_dict": {"conv1.weight": "x"}},
        "state_dict a list": {"state_dict": [one(2)]},
        "empty state_dict": {"state_dict": {}},
        "newlines and escapes in names": {"a\n" * 200 + "\x1b[31m": one(2), "b" * 100_000: one(2)},
        "names that are only prefixes": {"module.": one(2), "module.encoder_q": one(2)},
        "encoder_q. alone": {"encoder_q.": one(2)},
        "MoCo v3": _renamed("encoder_q.", "base_encoder."),
        "backbone. before names": {f"backbone.{n}": t for n, t in foreign.tiny()().state_dict().items()},
        "module. twice": _renamed("module.", "module.module."),
        "module. on one alone": {"module.conv1.weight": one(2), **foreign.tiny()().state_dict()},
        "lightning": {"state_dict": good()["state_dict"], "pytorch-lightning_version": "2.0", "callbacks": {}},
        "extra tensor": _state(scale=one(1)),
        "extra layer": _state(encoder_q__layer9__0__conv1__weight=one(2)),
        "extra count of batches": _state(encoder_q__layer9__0__bn1__num_batches_tracked=torch.tensor(1)),
        "layer of thousands of digits": {**foreign.tiny()().state_dict(), f"layer{'9' * 5000}.0.conv1.weight": one(2)},
        "layer of odd digits": {**foreign.tiny()().state_dict(), "layer²._.x": one(2), "layer².²": one(2)},
        "missing weight": _state(encoder_q__conv1__weight=None),
        "missing statistics": _state(encoder_q__bn1__running_var=None),
        "missing in the target": _state(encoder_k__bn1__weight=None),
        "missing bias of the head": _state(encoder_q__fc__2__bias=None),
        "no head": _changed(
            lambda c: c.update(state_dict={n: t for n, t in c["state_dict"].items() if ".fc." not in n})
        ),
        "head of v1 in the target alone": foreign_target(),
        "head of three layers": _state(encoder_q__fc__4__weight=one(8, 8)),
        "head without size": _state(encoder_q__fc__2__bias=torch.tensor(1.0)),
        "another width": _state(encoder_q__conv1__weight=one(8, 3, 7, 7)),
        "no channels": _state(encoder_q__conv1__weight=one(4, 0, 7, 7)),
        "no width": _state(encoder_q__conv1__weight=one(0, 3, 7, 7)),
        "other channels in the target": _state(encoder_k__conv1__weight=one(4, 1, 7, 7)),
        "kernel of 5": _state(encoder_q__conv1__weight=one(4, 3, 5, 5)),
        "kernel not square": _state(encoder_q__conv1__weight=one(4, 3, 7, 3)),
        "conv1 of two axes": _state(encoder_q__conv1__weight=one(4, 3)),
        "running_mean without axes": _state(encoder_q__bn1__running_mean=torch.tensor(0.0)),
        "wrong arch": {**good(), "arch": "resnet50"},
        "arch a number": {**good(), "arch": 50},
        "arch of a million characters": {**good(), "arch": "r" * 1_000_000},
        "arch a list": {**good(), "arch": ["resnet_tiny"] * 1000},
        "arch a tensor": {**good(), "arch": one(3)},
        "queue of other features": _state(queue=one(9, 24)),
        "queue of one axis": _state(queue=one(24)),
        "queue turned": _state(queue=one(24, 8)),
        "queue without keys": _state(queue=one(8, 0)),
        "queue_ptr at the end": _state(queue_ptr=torch.tensor([24])),
        "queue_ptr negative": _state(queue_ptr=torch.tensor([-1])),
        "queue_ptr without axes": _state(queue_ptr=torch.tensor(3)),
        "queue_ptr of two": _state(queue_ptr=torch.tensor([3, 4])),
        "queue_ptr of many": _state(queue_ptr=torch.zeros(100_000).long()),
        "queue_ptr nan": _state(queue_ptr=torch.tensor([float("nan")])),
        "epoch negative": {**good(), "epoch": -1},
        "epoch a text": {**good(), "epoch": "3\n" * 1000},
        "epoch a fraction": {**good(), "epoch": 3.5},
        "epoch true": {**good(), "epoch": True},
        "epoch a tensor": {**good(), "epoch": torch.tensor(3)},
        "epoch none": {**good(), "epoch": None},
        "epoch of 62 bits": {**good(), "epoch": 2**62},
        "momentum missing": _optimizer(lambda o, g: o["state"].pop(3)),
        "momentum none": _optimizer(lambda o, g: o["state"].update({3: {"momentum_buffer": None}})),
        "momentum no dict": _optimizer(lambda o, g: o["state"].update({3: 4})),
        "no momentum yet": _optimizer(lambda o, g: o["state"].clear()),
        "momentum of another shape": _optimizer(lambda o, g: o["state"][3].update(momentum_buffer=one(2))),
        "momentum of a stranger": _optimizer(lambda o, g: o["state"].update({999: {"momentum_buffer": one(2)}})),
        "momentum of the target": _optimizer(lambda o, g: o["state"].update({g["params"][-1]: o["state"][0]})),
        "two groups": _optimizer(lambda o, g: o["param_groups"].append(g)),
        "no group": _optimizer(lambda o, g: o["param_groups"].clear()),
        "group a number": _optimizer(lambda o, g: o.update(param_groups=[3])),
        "groups a text": _optimizer(lambda o, g: o.update(param_groups="x")),
        "group without params": _optimizer(lambda o, g: g.pop("params")),
        "params a number": _optimizer(lambda o, g: g.update(params=3)),
        "params lists": _optimizer(lambda o, g: g.update(params=[[n] for n in g["params"]])),
        "params one number": _optimizer(lambda o, g: g.update(params=[0] * len(g["params"]))),
        "too few params": _optimizer(lambda o, g: g.update(params=g["params"][:-1])),
        "state a list": _optimizer(lambda o, g: o.update(state=[1])),
        "no state": _optimizer(lambda o, g: o.pop("state")),
        "Adam": _adam(),
    }.items()
    yield "classifier of three axes", {**foreign.tiny(head="linear")().state_dict(), "fc.weight": one(2, 2, 2)}
    yield "classifier without bias", _without(foreign.tiny(head="linear")().state_dict(), "fc.bias")
    yield "classifier of another width", {**foreign.tiny(head="linear")().state_dict(), "fc.weight": one(8, 9)}
    yield "classifier with nan", {**foreign.tiny(head="linear")().state_dict(), "fc.bias": one(8) * float("nan")}
    made = foreign.notebook(steps=1).content
    for name, new in {"number": "net.12.", "no number": "net.", "letters": "net.x.", "another": "conv1."}.items():
        state = {n.replace("encoder_q.net.0.", f"encoder_q.{new}"): t for n, t in made["state_dict"].items()}
        yield f"notebook with {name}", {**made, "state_dict": state}
    vit = {"cls_token": one(1, 1, 4), "patch_embed.proj.weight": one(4, 3, 2, 2), "blocks.0.norm1.weight": one(4)}
    yield "a transformer", vit


def foreign_target() -> dict[str, Any]:
    """An online encoder of v2 beside a target of v1."""
    state = foreign.tiny(head="linear")().state_dict()
    content = good()
    kept = {n: t for n, t in content["state_dict"].items() if "encoder_k." not in n}
    content["state_dict"] = kept | {f"module.encoder_k.{n}": t for n, t in state.items()}
    return content


def _without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {n: t for n, t in state.items() if n != name}


def no_weights(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path): what is no file of PyTorch's."""
    contents = {
        "page.html": b"<!DOCTYPE html>\n<html>\n<title>404</title>\n" * 50,
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
        "notes.txt": b"weights\n" * 100,
        "picture.png": PICTURE,
        "two.pth": b"PK",
        "zip_header.pth": b"PK\x03\x04" + bytes(100),
        "legacy_header.pth": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
        "plain.pkl": pickle.dumps({"conv1.weight": np.ones(3)}),
        "nul.pth": bytes(1000),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield name, folder / name
    (folder / "folder").mkdir()
    yield "a folder", folder / "folder"
    yield "a missing path", folder / "missing.pth"
    (folder / "link.pth").symlink_to(folder / "nowhere")
    yield "a link to nothing", folder / "link.pth"
    np.savez(folder / "arrays.npz", conv1=np.ones(3))
    yield "arrays.npz", folder / "arrays.npz"
    np.savez_compressed(folder / "packed.npz", conv1=np.ones(3))
    yield "packed.npz", folder / "packed.npz"
    for name, entries in {
        "others.zip": {"readme.txt": b"hello"},
        "empty.zip": {},
        "damaged_pickle.zip": {"archive/data.pkl": b"\x80\x02garbage", "archive/version": b"3"},
        "no_version.zip": {"archive/data.pkl": pickle.dumps({}, protocol=2)},
        "two_archives.zip": {"a/data.pkl": b"x", "b/data.pkl": b"y"},
        "odd_names.zip": {"../\n\x1b[31m" + "x" * 5000: b"x"},
    }.items():
        with zipfile.ZipFile(folder / name, "w") as archive:
            for entry, content in entries.items():
                archive.writestr(entry, content)
        yield name, folder / name
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 28))
    yield "a bomb of 256 MiB", folder / "bomb.zip"
    with warnings.catch_warnings(action="ignore"):  # deprecated, and in files that exist
        torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(folder / "script.pt"))
    yield "TorchScript", folder / "script.pt"


def cut(path: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of the file without its end."""
    whole = path.read_bytes()
    for percent in (0, 10, 50, 90, 99):
        part = path.with_name(f"{percent}_{path.name}")
        part.write_bytes(whole[: len(whole) * percent // 100])
        yield f"{percent} % of it", part
    part = path.with_name(f"last_{path.name}")
    part.write_bytes(whole[:-1])
    yield "all but a byte", part


def flipped(path: Path, bits: Iterable[int]) -> Iterator[Path]:
    """The file with one of its bits changed, for each of `bits`, under one name."""
    whole, changed = path.read_bytes(), path.with_name(f"flipped_{path.name}")
    for bit in bits:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        changed.write_bytes(content)
        yield changed


def some_bits(path: Path, times: int, seed: int = 0) -> list[int]:
    """Random places in a file."""
    draw = random.Random(seed)
    return [draw.randrange(8 * path.stat().st_size) for _ in range(times)]
