"""Training and test data. Names are of the catalogue (SDMatte.data.catalog) or folder pairs:

dataloader.train.dataset.names=[{image:DIR,alpha:DIR}]

With weights each training set gets its share of an epoch, whatever its size; without, each sample
comes once. All sets have a weight or none has, and an epoch is as long as all sets together:

dataloader.train.dataset.names=[{name:Composition-1K,weight:2},{image:DIR,alpha:DIR,weight:1}]

A folder pair may hold out a part (a fraction, or a number of images) for test: training leaves it
out, and what is held out is tested on, beside the test sets that are named:

dataloader.train.dataset.names=[{image:DIR,alpha:DIR,holdout:0.1}]

The settings of samples are explained in SDMatte.data.settings.DataSettings; these, the defaults,
are the official preset. Loading this file touches no disk; the data root may be overridden by
SDMATTE_DATA_ROOT.
"""

from dataclasses import asdict

from detectron2.config import LazyCall as L

from SDMatte.data import DataSettings, MattingDataset, build_test_loader, build_train_loader
from SDMatte.prompts.perturb import PromptPerturbation

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(MattingDataset)(
            names=["Composition-1K", "DIS-646", "AM-2K", "RefMatte", "UHRSD"],
            root="data/datasets",
            size=512,
            training=True,
            seed=0,
            settings=DataSettings().model_dump(),
            max_bad_samples=100,
        ),
        batch_size=1,
        num_workers=4,
        timeout=600,  # seconds without a batch after which the workers count as hanging
        seed="${.dataset.seed}",
    ),
    test=L(build_test_loader)(
        dataset=L(MattingDataset)(
            names=[dict(name="AIM-500", optional=True)],  # left out where it is not there
            root="${...train.dataset.root}",
            size=1024,
            training=False,
            seed=0,
            settings=DataSettings().model_dump(),
            prompts_from=None,  # a file of --save-prompts, in place of prompts drawn by the seed
            perturb=PromptPerturbation().model_dump(),  # how prompts are made worse: by nothing
        ),
        batch_size=1,
        num_workers=4,
        timeout=600,
    ),
)
