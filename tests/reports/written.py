"""A run's folder without a run: config.json and log.jsonl as the loop writes them, of a loss that is a function."""

import dataclasses
import json

import numpy as np

from moco_jax import config, logs, pages

PER_EPOCH, EVERY = 10, 4  # steps; most epochs end inside a line
CHANCE = float(np.log(513))  # of the queue of `of`


def of(epochs, rate=0.06):
    """A config of `epochs` epochs."""
    c = config.read(pages.load("digits"))
    optimizer = dataclasses.replace(c.optimizer, learning_rate=rate)
    return dataclasses.replace(c, optimizer=optimizer, train=config.Train(epochs=epochs))


def folder(workdir, c):
    """config.json of a run of `c`."""
    workdir.mkdir(exist_ok=True)
    about = {"config": config.to_json(c), "objects": {}, "total_steps": c.train.epochs * PER_EPOCH}
    (workdir / "config.json").write_text(json.dumps(about))
    return workdir


def stretch(workdir, first, last, *, loss, knn=lambda epoch: 0.5, knn_every=1):
    """Steps first + 1 to last: the loss of a step is loss(step, from 1), kNN a share after an epoch."""
    with logs.RunLog(workdir, total_steps=0, first_step=first, batch_size=1) as log:
        log.write({"event": "start", "step": first, "chance": CHANCE})
        pending = []
        for step in range(first + 1, last + 1):
            pending.append(loss(step))
            if step == first + 1 or step % EVERY == 0:
                log.metrics(step, {"loss": float(np.mean(pending)), "pretext_accuracy": 0.1})
                pending = []
            if step % (knn_every * PER_EPOCH) == 0:
                log.write({"step": step, "knn_top1": knn(step // PER_EPOCH)})


def cut(workdir, text):
    """What is being written, or was when the run was killed: `text` without the end of its line."""
    with (workdir / "log.jsonl").open("a") as log:
        log.write(text)
