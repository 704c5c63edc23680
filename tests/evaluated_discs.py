"""Tests and batches of the discs in the fixture ``truths``.

A separate module, so that a second process can import it.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from omegaconf import OmegaConf

from SDMatte.data.listing import Sample
from SDMatte.errors import DataError
from SDMatte.evaluation.evaluator import MatteEvaluator
from SDMatte.evaluation.plan import SetTest
from SDMatte.evaluation.progress_log import ProgressLog
from SDMatte.images.io import read_alpha
from SDMatte.prompts.perturb import PromptPerturbation
from SDMatte.prompts.types import get_prompt_type


def make_test(folder, count=5, trimaps=True, done=(), progress_log=None, output=None, **settings):
    """Return a test of the first discs, with ``settings`` of the config's section ``test``."""
    samples = [
        Sample("discs", f"images/t{i}.jpg", f"truth/t{i}.png", f"trimaps/t{i}.png" * trimaps)
        for i in range(count)
    ]
    dataset = SimpleNamespace(
        samples=samples, root=folder, seed=3, frozen=None, perturb=PromptPerturbation()
    )
    defaults = {
        "protocol": "official",
        "use_trimap": False,
        "num_workers": 1,
        "save_mattes": True,
        "error_maps": False,
    }
    return SetTest(
        name="discs",
        prompt=get_prompt_type("box"),
        loader=SimpleNamespace(dataset=dataset),
        config=OmegaConf.create({"test": {**defaults, **settings}}),
        folder=output,
        progress_log=progress_log,
        done={image.name: image for image in done},
    )


def make_batches(folder, indices, size=32):
    """Yield batches of two with slightly wrong predictions."""
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
        paths = [str(folder / "truth" / f"t{i}.png") for i in chosen]
        batch = {"hw": torch.tensor(sizes), "alpha_path": paths}
        yield batch, torch.tensor(np.stack(preds)[:, None], dtype=torch.float32)


def evaluate(folder, indices=range(5), with_metrics=True, **options):
    evaluator = MatteEvaluator(make_test(folder, **options), "toy", with_metrics=with_metrics)
    evaluator.reset()
    for batch, preds in make_batches(folder, indices):
        evaluator.process(batch, preds)
    return evaluator, evaluator.evaluate()


SHARES = (((0, 2, 4), (1, 3)), ((0, 1, 2), (2, 3)), ((0, 1), (3,)))
"""Images of both processes in three evaluations: all, one twice, some missing."""


def run_rank(rank, folder):
    """Evaluate the shares of a process; return scores or error messages.

    The last evaluation resumes the first: t0 is predicted again, t3 scored from its file.
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
            options = {"output": folder / f"out{i}", "progress_log": None if i else progress_log}
            try:
                results.append(evaluate(folder, share[rank], **options)[1])
            except DataError as error:
                results.append(str(error))
        torch.distributed.barrier()
        done = ProgressLog(folder / "out0", {"model": "discs"}).read()
        done["t3"] = replace(done["t3"], scores={})
        del done["t0"]
        options = {"output": folder / "out0", "progress_log": progress_log}
        results.append(evaluate(folder, [[], [0]][rank], done=done.values(), **options)[1])
    finally:
        torch.distributed.destroy_process_group()
    return results


def run_second_rank(folder):
    (folder / "rank1.json").write_text(json.dumps(run_rank(1, folder)))
