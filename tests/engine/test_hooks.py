"""The moving average of the weights: its formula, its use and its state."""

import pytest
import torch
from models import tiny_model
from runs import CONFIG, settings

from SDMatte.cli.main import main
from SDMatte.engine.checkpoint import MatteCheckpointer, read_run
from SDMatte.engine.hooks import WeightAverage


def trained(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def move(model):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += torch.randn_like(parameter)


def test_the_formula_of_the_average():
    model = tiny_model()
    hook, expected = WeightAverage(model, decay=0.75), None
    for _ in range(3):
        move(model)
        hook.after_step()
        now = trained(model)
        expected = now if expected is None else {n: 0.75 * expected[n] + 0.25 * now[n] for n in now}
    before = trained(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with hook.applied():
        torch.testing.assert_close(trained(model), expected)
        changed = {n for n, value in model.state_dict().items() if not torch.equal(value, state[n])}
    assert changed and all(name.startswith("unet.") for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in trained(model).items())


def test_checkpoints_hold_the_average_and_resume_both(tmp_path):
    torch.manual_seed(0)
    model = tiny_model()
    hook = WeightAverage(model, decay=0.5)

    def checkpointer(model, hook):
        return MatteCheckpointer(model, tmp_path, weights_in_use=hook.applied, average=hook)

    for _ in range(2):
        move(model)
        hook.after_step()
    checkpointer(model, hook).save_run(1)
    with hook.applied():
        average = trained(model)
    saved = read_run(tmp_path / "model_0000001.pth")["model"]
    assert all(torch.equal(saved[name], value) for name, value in average.items())

    other = tiny_model(seed=1)
    other_hook = WeightAverage(other, decay=0.5)
    assert checkpointer(other, other_hook).resume()
    random = torch.get_rng_state()
    for each, its_hook in ((model, hook), (other, other_hook)):
        torch.set_rng_state(random)
        move(each)
        its_hook.after_step()
    pairs = [(trained(model), trained(other))]
    with hook.applied(), other_hook.applied():
        pairs.append((trained(model), trained(other)))
    for one, two in pairs:
        assert all(torch.equal(two[name], value) for name, value in one.items())


def test_final_weights_are_the_average(whole):
    run = read_run(whole / "model_0000005.pth")
    final = torch.load(whole / "model_final.pth", weights_only=True)
    assert all(torch.equal(final[name], value) for name, value in run["model"].items())
    own = run["trainer"]["hooks"]["WeightAverage"]["trained"]
    names = [name for name in final if name.startswith("unet.")]
    assert len(names) == len(own)
    assert any(not torch.equal(final[name], value) for name, value in zip(names, own, strict=True))


def test_resuming_without_the_average_is_refused(whole, sample_root, capsys):
    def contents(run):
        return {p.name: p.read_bytes() for p in run.iterdir() if not p.name.startswith("log.txt")}

    before = contents(whole)
    words = settings(sample_root, whole, "train.max_iter=8", "--resume")
    assert main(["train", CONFIG, *words]) == 2
    assert "train.ema.enabled=True" in capsys.readouterr().err.splitlines()[-1]
    assert contents(whole) == before


def test_the_average_of_other_weights_is_refused():
    model = torch.nn.Linear(2, 2)
    state = WeightAverage(torch.nn.Linear(2, 3), decay=0.5).state_dict()
    with pytest.raises(ValueError, match="other weights are trained"):
        WeightAverage(model, decay=0.5).load_state_dict(state)
