"""Training and test data.

Names are those of SDMatte.data.catalog, or folder pairs. With weights, each set has its fraction of
an epoch, whatever its size; either all sets have one or none. A held-out part (a fraction or a
number of images) is left out of the training and tested on in addition to the test sets:

    dataloader.train.dataset.names=[{image:DIR,alpha:DIR}]
    dataloader.train.dataset.names=[{name:Composition-1K,weight:2},{image:DIR,alpha:DIR,weight:1}]
    dataloader.train.dataset.names=[{image:DIR,alpha:DIR,holdout:0.1}]

SDMatte.data.settings.DataSettings documents the settings of samples; its defaults are the published
ones. SDMATTE_DATA_ROOT overrides the root.
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
            names=[dict(name="AIM-500", optional=True)],  # left out if it is not in the root
            root="${...train.dataset.root}",
            size=1024,
            training=False,
            seed=0,
            settings=DataSettings().model_dump(),
            prompts_from=None,  # a file of --save-prompts to read prompts from
            perturb=PromptPerturbation().model_dump(),
        ),
        batch_size=1,
        num_workers=4,
        timeout=600,
    ),
)
