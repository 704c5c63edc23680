"""Training and test data. Names are of the catalogue (SDMatte.data.catalog) or folder pairs:

dataloader.train.dataset.names=[{image:DIR,alpha:DIR}]

Loading this file touches no disk; the data root may be overridden by SDMATTE_DATA_ROOT.
"""

from detectron2.config import LazyCall as L

from SDMatte.data import MattingDataset, build_test_loader, build_train_loader

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(MattingDataset)(
            names=["Composition-1K", "DIS-646", "AM-2K", "RefMatte", "UHRSD"],
            root="data/datasets",
            size=512,
            training=True,
            seed=0,
            settings={},  # see SDMatte.data.settings.DataSettings; empty is the official preset
            max_bad_samples=100,
        ),
        batch_size=1,
        num_workers=4,
        seed="${.dataset.seed}",
    ),
    test=L(build_test_loader)(
        dataset=L(MattingDataset)(
            names=["AIM-500"],
            root="${...train.dataset.root}",
            size=1024,
            training=False,
            seed=0,
            settings={},
        ),
        batch_size=1,
        num_workers=4,
    ),
)
