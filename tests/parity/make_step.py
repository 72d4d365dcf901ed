"""Write the expected values of the step's parity cases: `python -m tests.parity.make_step [CASE ...]`. Needs torch.

The PyTorch reference in float64. Never run this in a commit that changes the step: what it wrote before is the proof.
"""

import sys
from collections.abc import Iterator

import numpy as np
import torch

from tests.parity.step_cases import CASES, GOLDEN, Tensors, images, initial, permutations, rates, summary
from tests.parity.torch_reference import Encoder, Moco


def start(name: str) -> Moco:
    """The reference at a case's initial values."""
    case = CASES[name]
    encoders = [Encoder(case.arch, case.stem, case.width, case.head, case.dim, case.group).double() for _ in range(2)]
    moco = Moco(
        *encoders,
        dim=case.dim,
        queue_size=case.queue_size,
        momentum=case.momentum,
        temperature=case.temperature,
        symmetric=case.symmetric,
        weight_decay=case.weight_decay,
    )
    given = initial(name, {n: tuple(t.shape) for n, t in moco.online.state_dict().items()})
    for side, encoder in (("encoder_q.", moco.online), ("encoder_k.", moco.target)):
        mine = {n.removeprefix(side): torch.from_numpy(t) for n, t in given.items() if n.startswith(side)}
        encoder.load_state_dict(mine)
    moco.queue = torch.from_numpy(given["queue"].T.copy())
    return moco


def tensors(moco: Moco) -> Tensors:
    """The state as a state_dict with queue (C, K), pointer and SGD's buffers."""
    out = {"queue": moco.queue.T, "queue_ptr": torch.tensor([moco.pointer])}
    for side, encoder in (("encoder_q.", moco.online), ("encoder_k.", moco.target)):
        out |= {side + n: t for n, t in encoder.state_dict().items() if not n.endswith("num_batches_tracked")}
    for n, p in moco.online.named_parameters():
        out[f"momentum/encoder_q.{n}"] = moco.optimizer.state[p]["momentum_buffer"]
    return {n: t.detach().numpy().copy() for n, t in out.items()}


def run(name: str) -> Iterator[Tensors]:
    """What is known after every step: the tensors, and the logits and loss of the step."""
    moco = start(name)
    shuffles = torch.from_numpy(permutations(name))
    for step, rate in enumerate(rates(name)):
        seen = moco.step([torch.from_numpy(x) for x in images(name, step)], list(shuffles[step]), float(rate))
        yield tensors(moco) | {"loss": seen["loss"].numpy(), "logits": torch.stack(seen["logits"]).numpy()}


def main() -> None:
    """Write the cases named, or all."""
    GOLDEN.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CASES:
        steps = [summary(name, seen) for seen in run(name)]
        np.savez_compressed(GOLDEN / f"step_{name}.npz", **{n: np.stack([s[n] for s in steps]) for n in steps[0]})
        print(GOLDEN / f"step_{name}.npz")


if __name__ == "__main__":
    main()
