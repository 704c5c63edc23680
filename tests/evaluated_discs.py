"""Batches made of the pictures of tests/evaluation/conftest.py, and what evaluates them.

A module of its own, so that a second process can import it.
"""

import json

import numpy as np
import torch

from SDMatte.errors import DataError
from SDMatte.evaluation.evaluator import MatteEvaluator
from SDMatte.evaluation.progress_log import ProgressLog
from SDMatte.images.io import read_alpha
from SDMatte.scoring.workers import Target


def make_batches(folder, indices, size=32, trimaps=True):
    """Batches of two with predictions that are a little off."""
    indices = list(indices)
    for first in range(0, len(indices), 2):
        chosen = indices[first : first + 2]
        preds, sizes = [], []
        for i in chosen:
            alpha = read_alpha(folder / "truth" / f"t{i}.png")
            sizes.append(alpha.shape)
            rows = np.linspace(0, alpha.shape[0] - 1, size).astype(int)
            columns = np.linspace(0, alpha.shape[1] - 1, size).astype(int)
            noise = np.random.default_rng(i).normal(0, 0.02, (size, size))
            preds.append(np.clip(alpha[np.ix_(rows, columns)] + noise, 0, 1))
        batch = {
            "hw": torch.tensor(sizes),
            "image_name": [f"t{i}.png" for i in chosen],
            "alpha_path": [str(folder / "truth" / f"t{i}.png") for i in chosen],
            "trimap_path": [
                str(folder / "trimaps" / f"t{i}.png") if trimaps else "" for i in chosen
            ],
            "image_path": [str(folder / "images" / f"t{i}.jpg") for i in chosen],
            "dataset": ["discs"] * len(chosen),
        }
        yield batch, torch.tensor(np.stack(preds)[:, None], dtype=torch.float32)


def evaluate(folder, indices=range(5), trimaps=True, **options):
    evaluator = MatteEvaluator("discs", "box", **options)
    evaluator.reset()
    for batch, preds in make_batches(folder, indices, trimaps=trimaps):
        evaluator.process(batch, preds)
    return evaluator, evaluator.evaluate()


SHARES = (((0, 2, 4), (1, 3)), ((0, 1, 2), (2, 3)), ((0, 1), (3,)))
"""Pictures of both processes, in three evaluations: all, one twice, some missing."""


def run_rank(rank, folder):
    """Evaluates the shares of a process; gives results, or messages where there are none.

    The last evaluation goes on with the first: t0 is predicted again, t3 scored from its file.
    """
    results = []
    progress_log = ProgressLog(folder / "out0", {"model": "discs"})
    if rank == 0:
        progress_log.begin([])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    try:
        torch.distributed.barrier()
        for i, share in enumerate(SHARES):
            try:
                options = {"output_dir": folder / f"out{i}", "num_images": 5}
                options["progress_log"] = None if i else progress_log
                results.append(evaluate(folder, share[rank], **options)[1])
            except DataError as error:
                results.append(str(error))
        torch.distributed.barrier()
        done = ProgressLog(folder / "out0", {"model": "discs"}).read()
        file = Target(str(folder / "truth" / "t3.png")), done.pop("t3").pred_path
        del done["t0"]
        options = {"output_dir": folder / "out0", "num_images": 5, "progress_log": progress_log}
        options |= {"done": done.values(), "written": [file]}
        results.append(evaluate(folder, [[], [0]][rank], **options)[1])
    finally:
        torch.distributed.destroy_process_group()
    return results


def run_second_rank(folder):
    (folder / "rank1.json").write_text(json.dumps(run_rank(1, folder)))
