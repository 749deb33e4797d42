import itertools

import pytest

from videornn.config import MultigridConfig, TrainConfig
from videornn.data.plan import BatchPlan, BatchShape, Phase
from videornn.errors import UserError
from videornn.training.multigrid import multigrid_phases, norm_clips

KINETICS = BatchShape(64, 32, 224)


def _phases(base: BatchShape, **settings: object) -> tuple[Phase, ...]:
    """The phases of a run by settings of train and of train.multigrid."""
    multigrid = {name: settings.pop(name) for name in tuple(settings) if name in MultigridConfig.model_fields}
    schedule = "step" if settings.get("step_epochs") else "cosine"
    section = TrainConfig(schedule=schedule, warmup_epochs=0.0, multigrid=MultigridConfig(**multigrid), **settings)
    return multigrid_phases(base, section)


def _ends(phases: tuple[Phase, ...]) -> list[int]:
    return list(itertools.accumulate(phase.num_epochs for phase in phases))


def _of(*shapes: tuple[int, int, int]) -> tuple[BatchShape, ...]:
    return tuple(BatchShape(*shape) for shape in shapes)


def test_the_kinetics_schedule_is_the_one_that_slowfast_prints() -> None:
    """SLOWFAST_8x8_R50_stepwise_multigrid.yaml: 239 epochs, steps at 94, 154 and 196, a batch of 64 clips 32 x 224."""
    phases = _phases(KINETICS, epochs=239, step_epochs=(94, 154, 196), long_cycle=True, short_cycle=True)
    # the first ten as in the log of github.com/facebookresearch/SlowFast/issues/231, the others by hand from the shares
    # 32, 16, 14, 7 of 69 of a stage; then half of the 29 epochs of fine-tuning at each of the two last rates
    log = [73, 110, 142, 158, 205, 228, 248, 259, 291, 308]
    assert _ends(phases) == [*log, 322, 329, 343, 358]
    rates = [8, 4, 2, 1, 0.8, 0.4, 0.2, 0.1, 0.08, 0.04, 0.02, 0.01, 0.01, 0.001]
    assert [phase.lr_factor for phase in phases] == pytest.approx(rates, rel=1e-12)
    cycle = [
        _of((1024, 8, 112), (512, 8, 158), (512, 8, 158)),
        _of((512, 16, 112), (256, 16, 158), (256, 16, 158)),
        _of((512, 16, 112), (256, 16, 158), (128, 16, 224)),
        _of((256, 32, 112), (128, 32, 158), (64, 32, 224)),
    ]
    assert [phase.shapes for phase in phases] == [*cycle * 3, cycle[-1], cycle[-1]]


def test_the_long_cycle_alone_gives_every_shape_equally_many_steps() -> None:
    base = BatchShape(8, 8, 224)
    phases = _phases(
        base, epochs=118, step_epochs=(44, 88), step_factor=0.2, long_cycle=True, short_cycle=False, epoch_factor=2.0
    )
    # batches 8, 4, 2, 1 of the base: 44 epochs of 15 parts each, twice, then 30 epochs at 4/15 of the steps, so 8 of 96
    scale = 236 / 96
    shares = [44 * part / 15 for part in (8, 4, 2, 1)] * 2 + [4, 4]
    assert _ends(phases) == pytest.approx([scale * end for end in itertools.accumulate(shares)], abs=1)
    assert _ends(phases)[-1] == 236
    assert [phase.shapes for phase in phases[:4]] == [
        _of(x) for x in ((64, 2, 158), (32, 4, 158), (16, 4, 224), (8, 8, 224))
    ]
    assert [phase.lr_factor for phase in phases] == pytest.approx([8, 4, 2, 1, 1.6, 0.8, 0.4, 0.2, 0.2, 0.04])
    steps = [phase.num_epochs / phase.shapes[0].num_videos for phase in phases[:8]]
    assert max(steps) - min(steps) < 1 / 8  # an epoch of the smallest batch, which rounding moves


def test_the_short_cycle_alone_keeps_the_schedule_over_more_epochs() -> None:
    phases = _phases(KINETICS, epochs=239, step_epochs=(94,), long_cycle=False, short_cycle=True)
    assert phases == (Phase(358, _of((256, 32, 112), (128, 32, 158), (64, 32, 224)), 1.0),)


def test_without_cycles_a_run_stays_as_it_is() -> None:
    assert _phases(KINETICS, epochs=7, long_cycle=False, short_cycle=False) == (Phase(7, (KINETICS,), 1.0),)


@pytest.mark.parametrize("size", [32, 112, 160, 224, 256])
@pytest.mark.parametrize("num_frames", [4, 8, 16, 64])
def test_every_step_costs_as_much_as_one_of_the_base_shape(size: int, num_frames: int) -> None:
    base = BatchShape(24, num_frames, size)
    phases = _phases(base, epochs=30, step_epochs=(9.5, 20), long_cycle=True, short_cycle=True)
    for shape in {shape for phase in phases for shape in phase.shapes}:
        work = shape.num_videos * shape.num_frames * shape.crop_size**2
        assert work == pytest.approx(24 * num_frames * size**2, rel=0.05)  # crops are whole pixels: 23 for 22.6
        assert shape.num_videos % 24 == 0  # divides wherever the base batch does
    assert sum(phase.num_epochs for phase in phases) == 45


def test_a_run_of_both_cycles_has_less_than_a_third_of_the_steps() -> None:
    num_videos, epochs = 240_000, 239
    phases = _phases(KINETICS, epochs=epochs, step_epochs=(94, 154, 196), long_cycle=True, short_cycle=True)
    plan = BatchPlan(num_videos, phases)
    # mean batches 32/3, 16/3, 14/3, 7/3 of the base for equally many steps, 69/12 on average: so many times fewer steps,
    # before the 196 epochs and 43 * 7/3 / (69/12) of fine-tuning are stretched to 1.5 times 239
    plain_steps = epochs * num_videos // 64
    stretch = 1.5 * 239 / (196 + 43 * (7 / 3) / (69 / 12))
    assert plan.num_steps == pytest.approx(plain_steps / (69 / 12) * stretch, rel=0.005)
    assert plan.num_steps < 0.3 * plain_steps


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"step_epochs": ()}, r"long_cycle follows the steps of train.schedule: step; give train.step_epochs"),
        ({"step_epochs": (5.0, 10.0)}, r"train.step_epochs=\[5.0, 10.0\] must end before train.epochs=10"),
        ({"base": BatchShape(4, 2, 224)}, r"data.num_frames=2 cannot be cut to a quarter"),
        ({"epoch_factor": 0.01}, r"epoch_factor=0.01 leaves no epoch"),
        ({"epoch_factor": 0.01, "long_cycle": False, "short_cycle": True}, r"epoch_factor=0.01 leaves no epoch"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(settings: dict, error: str) -> None:
    arguments = {"base": KINETICS, "epochs": 10, "step_epochs": (5.0,), "long_cycle": True, "short_cycle": False} | settings
    with pytest.raises(UserError, match=error):
        _phases(arguments.pop("base"), **arguments)


@pytest.mark.parametrize("seed", range(10))
def test_short_runs_lose_phases_to_rounding_but_no_epochs(seed: int) -> None:
    epochs = seed + 2
    phases = _phases(KINETICS, epochs=epochs, step_epochs=(1,), long_cycle=True, short_cycle=True)
    assert all(phase.num_epochs > 0 for phase in phases)
    assert sum(phase.num_epochs for phase in phases) == round(1.5 * epochs)
    assert [phase.lr_factor for phase in phases][-1] == pytest.approx(0.1)


def test_batch_norm_sees_as_many_clips_as_in_the_base_shape() -> None:
    assert norm_clips(KINETICS, num_ranks=8) == 8  # SlowFast's BN_BASE_SIZE
    assert norm_clips(BatchShape(32, 32, 224), clips_per_video=2, accumulate=2, num_ranks=8) == 4
