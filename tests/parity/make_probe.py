"""Write the expected values of the classifiers' parity cases: `python -m tests.parity.make_probe`. Needs torch.

The linear probe as the original's main_lincls.py trains it: the network in evaluation mode, SGD on the classifier
alone, a rate that `adjust_learning_rate` sets before every epoch. Fine-tuning is the same loop with the backbone in
the optimizer too, a parameter group for each stage. Never run it in a commit that changes what it guards.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.parity import probe_cases as cases
from tests.parity.probe_cases import CASES, Case, Tensors
from tests.parity.torch_reference import Encoder


def model_of(case: Case) -> Encoder:
    """The network at its initial values, in the mode it is trained in; batch norm sees the whole batch."""
    model = Encoder(cases.ARCH, cases.STEM, cases.WIDTH, "linear", cases.CLASSES, cases.BATCH).double()
    given = cases.initial({n: tuple(t.shape) for n, t in model.state_dict().items()})
    model.load_state_dict({n: torch.from_numpy(t) for n, t in given.items()})
    if case.body is None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name in ("fc.weight", "fc.bias")
    return model.train() if case.batch_norm == "train" else model.eval()


def groups(model: Encoder, case: Case) -> list[dict[str, Any]]:
    """Parameter groups with their rates: the classifier's, and the stages' with the stem below the first."""
    out = [{"params": list(model.fc.parameters()), "lr": case.head}]
    rate = case.body
    if rate is not None:
        for stage in (model.layer3, model.layer2, model.layer1, nn.ModuleList([model.conv1, model.bn1])):
            out.append({"params": list(stage.parameters()), "lr": rate})
            rate *= case.decay
        assert sum(len(g["params"]) for g in out) == len(list(model.parameters()))
    return out


def adjust_learning_rate(optimizer: torch.optim.SGD, initial: list[float], epoch: int) -> None:
    """A tenth of the initial rates from each milestone on."""
    for group, lr in zip(optimizer.param_groups, initial, strict=True):
        for milestone in cases.MILESTONES:
            lr *= 0.1 if epoch >= milestone else 1.0
        group["lr"] = lr


def run(name: str) -> Iterator[Tensors]:
    """What is known after every step: the state_dict, and the loss of the step."""
    case = CASES[name]
    model = model_of(case)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(groups(model, case), case.head, momentum=cases.MOMENTUM, weight_decay=case.weight_decay)
    initial = [g["lr"] for g in optimizer.param_groups]
    images, labels = torch.from_numpy(cases.images()), torch.from_numpy(cases.labels())
    for step in range(cases.STEPS):
        if step % cases.STEPS_PER_EPOCH == 0:
            adjust_learning_rate(optimizer, initial, step // cases.STEPS_PER_EPOCH)
        records, real = cases.batch(step)
        output = model(images[records if case.filled else records[:real]])
        loss = criterion(output[:real], labels[records[:real]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        left = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
        yield {n: t.detach().numpy().copy() for n, t in (left | {"loss": loss}).items()}


def main() -> None:
    """All cases into one file."""
    torch.set_num_threads(1)
    arrays = {}
    for name in CASES:
        steps = [cases.kept(name, seen) for seen in run(name)]
        arrays |= {f"{name}/{n}": np.stack([s[n] for s in steps]) for n in steps[0]}
    np.savez_compressed(cases.STORED, **arrays)


if __name__ == "__main__":
    main()
