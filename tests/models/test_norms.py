import copy
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from videornn.errors import UserError
from videornn.models.batch_norm import BatchNorm3d
from videornn.models.nonlocal_block import AttentionBlock, DisentangledNonLocal
from videornn.models.norms import FrozenBatchNorm, SubBatchNorm, SyncBatchNormOnCpu, freeze_parts, set_batch_norm
from videornn.models.resnet3d import FAMILIES, ResNet3d
from videornn.training import train as job
from videornn.training.precise_bn import statistics_of_all_ranks, update_batch_norm

CPU = torch.device("cpu")
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
KINDS = {"batch": ("batch", None), "sub": ("batch", 2), "sync": ("sync", None), "frozen": ("frozen", None)}


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _norm(ndim: int, channels: int = 6) -> nn.Module:
    """A batch norm in float64 with weights and statistics that are not the initial ones."""
    norm = BATCH_NORM[ndim](channels).double()
    for seed, tensor in enumerate((norm.weight.data, norm.bias.data, norm.running_mean)):
        tensor.copy_(_random(channels, seed=10 + seed))
    norm.running_var.copy_(_random(channels, seed=13).square() + 0.5)
    return norm


def _network(name: str = "slow", depth: int = 10, kind: str = "batch", **options) -> ResNet3d:
    torch.manual_seed(0)
    options = {"dropout": 0.0, "zero_init_residual": False, "width": 8} | options
    block = partial(DisentangledNonLocal, key_pool=(1, 2, 2))
    model = ResNet3d(name, depth, num_classes=5, attention=block, places={"res3": (0,)}, **options)
    for module in model.modules():
        if isinstance(module, AttentionBlock):
            nn.init.ones_(module.norm.weight)
    kind, bn_clips = KINDS[kind]
    return set_batch_norm(model, kind, bn_clips, CPU)


def _clips(batch: int = 4, seed: int = 1) -> Tensor:
    return _random(batch, 3, 4, 32, 32, seed=seed).contiguous(memory_format=torch.channels_last_3d)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits, gradients and buffers of one training step."""
    logits = model(_clips())
    logits.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return logits.detach(), gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}


def _assert_equal(mine: tuple, other: tuple) -> None:
    torch.testing.assert_close(mine, other, rtol=0, atol=0)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_each_group_of_clips_is_normalised_as_if_it_were_the_batch(ndim: int) -> None:
    norm, x = _norm(ndim), _random(6, 6, 4, 3, 2, dtype=torch.float64)[(..., *[0] * (3 - ndim))]
    gain = _random(*x.shape, seed=5, dtype=torch.float64)
    sub, whole = copy.deepcopy(norm), copy.deepcopy(norm)
    sub = set_batch_norm(sub, "batch", 2, CPU)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = sub(mine)
    expected = torch.cat([norm(group) for group in other.split(2)])
    (outputs * gain).sum().backward()
    (expected * gain).sum().backward()
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(mine.grad, other.grad)
    torch.testing.assert_close(sub.weight.grad, norm.weight.grad)
    torch.testing.assert_close(sub.bias.grad, norm.bias.grad)
    # the statistics of a sub-batch norm are those that a plain one has of the whole batch
    whole(x)
    torch.testing.assert_close(sub.state_dict(), whole.state_dict())
    torch.testing.assert_close(sub.eval()(x), whole.eval()(x))


def test_sub_batch_norm_keeps_layout_and_dtype_under_autocast() -> None:
    norm = SubBatchNorm(8, 2)
    with torch.autocast("cpu", torch.bfloat16):
        x = nn.Conv3d(3, 8, 1)(_clips()).contiguous(memory_format=torch.channels_last_3d)
        y = norm(x)
    assert y.dtype == x.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    assert norm.running_mean.dtype == torch.float32
    mean = x.float().mean((0, 2, 3, 4))
    torch.testing.assert_close(norm.running_mean, 0.1 * mean, rtol=1e-4, atol=1e-6)


def test_a_batch_that_does_not_divide_into_groups_is_refused() -> None:
    with pytest.raises(UserError, match=r"groups of 4 clips cannot divide the 6 .* train\.bn_clips to a divisor of 6"):
        SubBatchNorm(3, 4)(_random(6, 3, 2, 2, 2))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_network_trains_with_every_kind(name: str, kind: str) -> None:
    model = _network(name, 10, kind)
    before = _state(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(_clips()).float(), torch.arange(4))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    after = _state(model)
    same = {key for key in before if torch.equal(before[key], after[key])}
    if kind == "frozen":
        in_norms = {key for key in before if ".norm." in key and "attention" not in key}
        assert len(in_norms) > 40
        assert same == in_norms
    else:
        assert not same


@pytest.mark.parametrize("kind", ["sub", "sync", "frozen"])
def test_weights_move_freely_between_the_kinds_and_predict_the_same(kind: str) -> None:
    plain, other = _network(), _network(kind=kind)
    _step(plain)
    assert list(plain.state_dict()) == list(other.state_dict())
    other.load_state_dict(plain.state_dict())
    _assert_equal(plain.eval()(_clips()), other.eval()(_clips()))
    _step(other.train())
    plain.load_state_dict(other.state_dict())
    _assert_equal(plain(_clips()), other.eval()(_clips()))


@pytest.mark.parametrize("kind", list(KINDS))
def test_activation_checkpointing_counts_a_batch_once_and_drops_the_same_paths(kind: str) -> None:
    plain = _network("slow", 18, kind, drop_path=0.5)
    recomputed = _network("slow", 18, kind, drop_path=0.5, recompute_blocks=True)
    for model in (plain, recomputed):
        torch.manual_seed(3)
        model.outcome = _step(model)
    _assert_equal(plain.outcome, recomputed.outcome)


@pytest.mark.slow
@pytest.mark.parametrize("recompute_blocks", [False, True])
def test_compiled_sub_batch_norms_compute_the_same(recompute_blocks: bool) -> None:
    torch.compiler.reset()
    outcomes = []
    for compiled in (False, True):
        stage = _network(kind="sub", recompute_blocks=recompute_blocks).double().res3
        function = torch.compile(stage, backend="aot_eager", fullgraph=True) if compiled else stage
        y = function(_random(4, 8, 2, 8, 8, dtype=torch.float64))
        y.square().mean().backward()
        outcomes.append((y.detach(), {name: p.grad for name, p in stage.named_parameters()}, dict(stage.named_buffers())))
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-11)


def test_on_gpus_torchs_own_norm_is_synchronised() -> None:
    model = set_batch_norm(_network(), "sync", None, torch.device("cuda"))
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm}
    recomputed = set_batch_norm(_network(recompute_blocks=True), "sync", None, torch.device("cuda"))
    # one process: it falls back to the plain norm, and must still be counted once
    _assert_equal(_step(recomputed), _step(model))


def test_one_process_synchronises_with_itself_alone() -> None:
    norm, x = _norm(3), _random(4, 6, 2, 3, 3, dtype=torch.float64)
    sync = set_batch_norm(copy.deepcopy(norm), "sync", None, CPU)
    assert type(sync) is SyncBatchNormOnCpu
    _assert_equal(sync(x), norm(x))
    _assert_equal(sync.state_dict(), norm.state_dict())


def test_a_frozen_norm_normalises_with_its_statistics_and_lets_gradients_through() -> None:
    norm = _norm(3)
    before = _state(norm)
    x = _random(4, 6, 2, 3, 3, dtype=torch.float64).requires_grad_()
    gain = _random(*x.shape, seed=5, dtype=torch.float64)
    frozen = set_batch_norm(norm, "frozen", None, CPU).train()
    y = frozen(x)
    (y * gain).sum().backward()

    def spread(values: Tensor) -> Tensor:
        return values.view(1, 6, 1, 1, 1)

    scale = spread(before["weight"] / (before["running_var"] + 1e-5).sqrt())
    torch.testing.assert_close(y, (x - spread(before["running_mean"])) * scale + spread(before["bias"]))
    torch.testing.assert_close(x.grad, gain * scale)
    assert frozen.weight.grad is None
    torch.testing.assert_close(frozen.state_dict(), before, rtol=0, atol=0)


def test_frozen_norms_stay_frozen_and_those_of_attention_blocks_do_not() -> None:
    model = _network(kind="frozen")
    for trained in (model, copy.deepcopy(model), torch.compile(model, backend="eager")):
        trained.eval()
        trained.train()
        for name, module in trained.named_modules():
            if isinstance(module, nn.BatchNorm3d):
                in_attention = "attention" in name
                assert module.training == in_attention == (type(module) is BatchNorm3d), name
                assert all(parameter.requires_grad == in_attention for parameter in module.parameters())


@pytest.mark.parametrize("blocks_too", [False, True])
def test_frozen_parts_keep_every_bit_and_the_others_train(blocks_too: bool) -> None:
    model = _network(drop_path=0.03)
    freeze_parts(model, ["stem", "res3", *(["attention"] if blocks_too else [])])
    before = _state(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.eval()
    model.train()
    _step(model)
    optimizer.step()
    after = _state(model)
    for name, tensor in before.items():
        frozen = blocks_too if "attention" in name else name.startswith(("stem.", "res3."))
        # without gradient through res3, res2 would not move
        assert torch.equal(tensor, after[name]) == frozen, name
    if blocks_too:
        x = _random(4, 8, 4, 8, 8)
        _assert_equal(model.res3(x), model.eval().res3(x))


def test_a_part_that_is_not_there_cannot_be_frozen() -> None:
    with pytest.raises(ValueError, match="no part 'res6' to freeze; there are stem, res2, res3, res4, res5, attention"):
        freeze_parts(_network(), ["res6"])


def _moments(model: nn.Module) -> dict[str, list[Tensor]]:
    """For every norm that trains, mean and mean square of its inputs [2, C], one entry for each batch from now on."""
    found: dict[str, list[Tensor]] = {}
    for name, norm in model.named_modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and not isinstance(norm, FrozenBatchNorm):

            def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
                x = inputs[0].double().transpose(0, 1).flatten(1)
                found.setdefault(name, []).append(torch.stack([x.mean(1), x.square().mean(1)]))

            norm.register_forward_hook(keep)
    return found


def _assert_statistics(state: dict[str, Tensor], moments: dict[str, list[Tensor]]) -> None:
    assert moments
    for name, batches in moments.items():
        mean, square = torch.stack(batches).mean(0)
        torch.testing.assert_close(state[f"{name}.running_mean"].double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state[f"{name}.running_var"].double(), square - mean**2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_precise_statistics_are_those_of_all_the_inputs_of_a_norm(kind: str, precision: str) -> None:
    model = _network(kind=kind, recompute_blocks=True, drop_path=0.5)
    freeze_parts(model, ["res2"])
    before, buffers, random = _state(model), dict(model.named_buffers()), torch.get_rng_state()
    moments = _moments(model)
    batches = iter([_clips(seed=seed) for seed in range(4)])
    update_batch_norm(model.eval(), batches, num_batches=3, precision=precision)
    after = model.state_dict()
    assert len(list(batches)) == 1
    assert all(len(found) == 3 for found in moments.values())
    _assert_statistics(after, moments)
    if kind != "frozen" and precision == "fp32":
        x = torch.cat([model.stem[0].conv(_clips(seed=seed)) for seed in range(3)]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(after["stem.0.norm.running_mean"], x.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(after["stem.0.norm.running_var"], x.var(1, correction=0), rtol=1e-4, atol=1e-5)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.running_{which}" for name in moments for which in ("mean", "var")}
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(random, torch.get_rng_state()) and not model.training
    assert {norm.momentum for norm in model.modules() if hasattr(norm, "momentum")} == {0.1}


def test_precise_statistics_of_no_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="num_batches must be at least 1, got 0"):
        update_batch_norm(_network(), [], num_batches=0)


def _small(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 2), nn.BatchNorm3d(2)).double()
    return set_batch_norm(model, kind, None, CPU)


def _whole_batch() -> tuple[Tensor, Tensor]:
    return _random(4, 3, 2, 5, 5, dtype=torch.float64) + 3, _random(4, 2, 1, 4, 4, seed=1, dtype=torch.float64)


def _rank(rank: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results = {}
    # 3 clips here and 1 there
    x, gain = (tensor.split([3, 1])[rank].clone().requires_grad_() for tensor in _whole_batch())
    model = nn.parallel.DistributedDataParallel(_small("sync"))
    y = model(x)
    (y * gain).sum().backward()
    gradients = {name: parameter.grad * 2 for name, parameter in model.module.named_parameters()}  # DDP takes the mean
    results["sync"] = {"y": y.detach(), "x": x.grad, "gradients": gradients, "state": model.module.state_dict()}
    frozen = nn.parallel.DistributedDataParallel(_network(kind="frozen"))
    results["frozen"] = any(m.training for m in frozen.train().modules() if isinstance(m, FrozenBatchNorm))
    steps = [_step(_network(kind="sync", recompute_blocks=recompute_blocks)) for recompute_blocks in (False, True)]
    results["recomputed"] = all(
        torch.equal(mine, other)
        for plain, again in zip(steps[0][1:], steps[1][1:], strict=True)
        for mine, other in zip(plain.values(), again.values(), strict=True)
    )
    model = _network()
    moments = _moments(model)
    update_batch_norm(model, (_clips(seed=10 * rank + step) * (1 + rank) for step in range(2)), num_batches=2)
    results["precise"] = (model.state_dict(), moments)
    results["running"] = _running_averages(rank)
    torch.save(results, out / f"{rank}.pt")
    dist.destroy_process_group()


def _running_averages(rank: int) -> list[dict[str, Tensor]]:
    """After two steps of a training's parallel network, whose norm averages all batches: of all ranks, and this rank's."""
    model = nn.Sequential(nn.BatchNorm3d(3, momentum=None), nn.Conv3d(3, 2, 1))
    train = SimpleNamespace(accumulate=1, compile=False)
    parallel = job.parallel_network(SimpleNamespace(model=model, device=CPU, config=SimpleNamespace(train=train)))
    for _ in range(2):
        parallel(_random(4, 3, 8, 9, 9, seed=rank) * (1 + rank) + 3 * rank).sum().backward()
    return [statistics_of_all_ranks(model), {name: buffer.clone() for name, buffer in model.named_buffers()}]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (port, out), nprocs=2)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_synchronised_ranks_compute_what_one_norm_does_of_all_clips(two_ranks: list[dict]) -> None:
    x, gain = _whole_batch()
    model, x = _small("batch"), x.requires_grad_()
    y = model(x)
    (y * gain).sum().backward()
    ranks = [rank["sync"] for rank in two_ranks]
    torch.testing.assert_close(torch.cat([rank["y"] for rank in ranks]), y)
    torch.testing.assert_close(torch.cat([rank["x"] for rank in ranks]), x.grad)
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"], {name: p.grad for name, p in model.named_parameters()})
        torch.testing.assert_close(rank["state"], dict(model.state_dict()))


@pytest.mark.slow
def test_on_two_ranks_checkpointing_counts_once_and_frozen_norms_stay_frozen(two_ranks: list[dict]) -> None:
    assert all(rank["recomputed"] and not rank["frozen"] for rank in two_ranks)


@pytest.mark.slow
def test_precise_statistics_are_those_of_the_inputs_of_all_ranks(two_ranks: list[dict]) -> None:
    (state, moments), (other_state, other_moments) = (rank["precise"] for rank in two_ranks)
    _assert_equal(state, other_state)
    _assert_statistics(state, {name: moments[name] + other_moments[name] for name in moments})


@pytest.mark.slow
def test_every_rank_keeps_its_running_averages_and_together_they_are_those_of_all_clips(two_ranks: list[dict]) -> None:
    clips = [_random(4, 3, 8, 9, 9, seed=rank) * (1 + rank) + 3 * rank for rank in range(2)]
    right = torch.cat(clips).transpose(0, 1).flatten(1)
    for rank, x in enumerate(clips):
        together, own = two_ranks[rank]["running"]
        torch.testing.assert_close(together["0.running_mean"], right.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together["0.running_var"], right.var(1), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(own["0.running_mean"], x.transpose(0, 1).flatten(1).mean(1), rtol=1e-4, atol=1e-5)


def test_statistics_that_all_ranks_have_keep_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videornn.distributed.ranks.num_ranks", lambda: 3)
    monkeypatch.setattr("videornn.distributed.ranks.sum_over_ranks", lambda values: values * 3)
    model = _network()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(_random(*buffer.shape, seed=len(name)).square() * 10)
    found = statistics_of_all_ranks(model)
    assert found and all(torch.equal(value, model.get_buffer(name)) for name, value in found.items())
