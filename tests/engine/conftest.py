"""What several tests of trainings compare with."""

import pytest
from runs import finish, settings


@pytest.fixture(scope="session")
def stateful(sample_root):
    """Gives a run's settings, with everything on that has a state."""

    def make(output, *more):
        return settings(
            sample_root,
            output,
            "train.amp.enabled=True",
            "train.ema.enabled=True",
            "train.ema.decay=0.5",
            "train.best_metric=AIM-500/box/SAD",
            "dataloader.train.num_workers=1",
            *more,
        )

    return make


@pytest.fixture(scope="session")
def whole(tmp_path_factory, stateful):
    """Such a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    finish(stateful(folder / "run"), folder / "log")
    return folder / "run"
