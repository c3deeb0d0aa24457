import pytest
import torch

from infra.embedded.encoder import AUTOENCODER
from infra.embedded.trainer import Recipe, Trainer


@pytest.fixture(scope="module", autouse=True)
def quick():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the command does on a processor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infra.embedded.trainer.CALIBRATION_SCENES", 2)
        yield
    torch.set_num_threads(threads)


def small(steps):
    return Recipe(steps=steps, size=64, batch=2, fresh=1, pool=8, anchors=16, seed=3)


def weights(trainer):
    return torch.cat([weight.detach().flatten() for weight in trainer.unet.parameters()])


@pytest.fixture(scope="module")
def straight():
    trainer = Trainer(small(4))
    reports = list(trainer.run())
    return trainer, reports


def test_a_run_that_was_stopped_ends_as_one_that_was_not(straight, tmp_path):
    trainer, _ = straight
    first = Trainer(small(4))
    going = first.run()
    for _ in range(2):
        next(going)
    torch.save(first.state(), tmp_path / "state.pt")
    second = Trainer(small(4))
    second.resume(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [report.step for report in second.run()] == [3, 4]
    assert torch.equal(weights(second), weights(trainer))
    assert all(torch.equal(a, b) for a, b in zip(second.average, trainer.average, strict=True))


def test_every_step_reports_both_losses(straight):
    _, reports = straight
    assert [report.step for report in reports] == [1, 2, 3, 4]
    assert all(report.noise > 0 and report.grouping > 0 for report in reports)


def test_what_is_saved_is_the_average_and_loads_as_any_model(straight, tmp_path):
    from diffseg.models.unet.backend import Backend

    trainer, _ = straight
    backend = Backend.load(str(trainer.save(tmp_path / "model", torch.float32)), device="cpu")
    assert torch.equal(next(backend.unet.parameters()), trainer.average[0])
    assert backend.config.timestep == 50
    with torch.no_grad():
        latents = backend.latents(torch.zeros(1, 3, 64, 64))
    assert latents.shape == (1, AUTOENCODER["latent_channels"], 8, 8)


def test_the_prompt_in_training_is_the_prompt_in_labelling(straight, tmp_path):
    from diffseg.models.unet.loading import read_prompt

    trainer, _ = straight
    hidden, *_ = read_prompt(trainer.save(tmp_path / "model", torch.float32), two_encoders=False)
    assert torch.allclose(hidden, trainer.prompt, atol=1e-5)


def test_the_rate_warms_up_stays_and_falls():
    recipe = Recipe(steps=1000, learning_rate=1.0)
    assert [round(recipe.rate(step), 2) for step in (0, 49, 400, 750, 999)] == [0.02, 1.0, 1.0, 0.5, 0.02]


@pytest.mark.parametrize(("wrong", "message"), [({"steps": 0}, "steps"), ({"steps": 1, "size": 100}, "multiple of 64")])
def test_a_recipe_refuses_nonsense(wrong, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**wrong)
