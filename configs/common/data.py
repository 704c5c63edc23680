"""Training and test data: names in the catalog (SDMatte.data.catalog) or folder pairs.

dataloader.train.dataset.names=[{image:DIR,alpha:DIR}]

With weights, each training set gets a fraction of an epoch, whatever its size. An epoch is as long
as all sets together. Either all sets must have a weight, or none:

dataloader.train.dataset.names=[{name:Composition-1K,weight:2},{image:DIR,alpha:DIR,weight:1}]

A folder pair may hold out a fraction or a number of its images for test:

dataloader.train.dataset.names=[{image:DIR,alpha:DIR,holdout:0.1}]

SDMatte.data.settings.DataSettings explains the settings of samples. The environment variable
SDMATTE_DATA_ROOT overrides the data root.
"""

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
        timeout=600,  # seconds without a batch after which the run fails
        seed="${.dataset.seed}",
    ),
    test=L(build_test_loader)(
        dataset=L(MattingDataset)(
            names=[dict(name="AIM-500", optional=True)],  # left out if not found in the root
            root="${...train.dataset.root}",
            size=1024,
            training=False,
            seed=0,
            settings=DataSettings().model_dump(),
            prompts_from=None,  # prompt file to read, written by --save-prompts
            perturb=PromptPerturbation().model_dump(),
        ),
        batch_size=1,
        num_workers=4,
        timeout=600,
    ),
)
