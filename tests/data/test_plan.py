import random

import pytest

from videornn.data.plan import BatchPlan, BatchShape, Phase, StepPlan
from videornn.errors import UserError


def _random_plan(seed: int) -> BatchPlan:
    draw = random.Random(seed)
    num_videos = draw.randint(5, 60)
    phases = []
    for _ in range(draw.randint(1, 5)):
        sizes = [draw.randint(1, num_videos) for _ in range(draw.randint(1, 3))]
        phases.append(Phase(draw.randint(0, 3), tuple(BatchShape(size, 4, 16) for size in sizes), draw.random()))
    return BatchPlan(num_videos, [*phases, Phase(1, (BatchShape(1, 8, 32),))])


def _walk(plan: BatchPlan) -> list[StepPlan]:
    """Every step of a plan, by going through it batch after batch."""
    plans, epoch = [], 0
    for phase in plan.phases:
        for _ in range(phase.num_epochs):
            steps, first = [], 0
            while first + (shape := phase.shapes[len(steps) % len(phase.shapes)]).num_videos <= plan.num_videos:
                steps.append((first, shape))
                first += shape.num_videos
            plans += [StepPlan(epoch, step, len(steps), *where, phase) for step, where in enumerate(steps)]
            epoch += 1
    return plans


@pytest.mark.parametrize("seed", range(40))
def test_where_a_step_is_agrees_with_walking_there(seed: int) -> None:
    plan = _random_plan(seed)
    walked = _walk(plan)
    assert [plan.step_at(step) for step in range(plan.num_steps)] == walked
    assert plan.num_epochs == walked[-1].epoch + 1
    for step, place in enumerate(walked):
        assert plan.phase_at(plan.epoch_at(step)) is place.phase
    for outside in (-1, plan.num_steps):
        with pytest.raises(ValueError, match=f"step {outside} is not in a plan of {plan.num_steps} steps"):
            plan.step_at(outside)


@pytest.mark.parametrize("seed", range(20))
def test_epochs_climb_to_a_whole_number_exactly_where_one_ends(seed: int) -> None:
    plan = _random_plan(seed)
    epochs = [plan.epoch_at(step) for step in range(plan.num_steps + 1)]
    assert epochs[0] == 0.0 and epochs[-1] == plan.num_epochs and epochs == sorted(set(epochs))
    last_steps = [step + 1 for step, place in enumerate(_walk(plan)) if place.step == place.num_steps - 1]
    assert [epochs[step] for step in last_steps] == list(range(1, plan.num_epochs + 1))
    assert [step for step in range(plan.num_steps + 1) if plan.ends_epoch(step)] == last_steps


def test_one_shape_leaves_the_incomplete_batch_out() -> None:
    plan = BatchPlan(23, [Phase(3, (BatchShape(5, 8, 224),))])
    assert (plan.num_steps, plan.num_epochs) == (12, 3)
    assert [plan.step_at(step).first for step in range(5)] == [0, 5, 10, 15, 0]
    assert [plan.epoch_at(step) for step in (0, 1, 4, 6, 12)] == [0.0, 0.25, 1.0, 1.5, 3.0]


def test_a_batch_larger_than_the_set_is_refused_with_the_way_out() -> None:
    small, large = BatchShape(4, 8, 224), BatchShape(24, 2, 112)
    with pytest.raises(UserError, match=r"24 videos \(2 frames, 112 pixels\) .* of 20 videos; lower train.batch_size$"):
        BatchPlan(20, [Phase(1, (large,))])
    with pytest.raises(UserError, match=r"lower train.batch_size or turn train.multigrid off$"):
        BatchPlan(20, [Phase(1, (small, large))])
