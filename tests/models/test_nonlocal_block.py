"""Every block against loops written from the equations, in float64, and against PyTorchVideo's layer.

The loops know nothing of softmax_attention, of groups or of memory: one query at a time, one key at a time.
"""

import itertools
import math
from functools import partial

import pytest
import torch
from pytorchvideo.layers.nonlocal_net import create_nonlocal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from videornn.models import softmax_attention
from videornn.models.nonlocal_block import (
    AddedNonLocal,
    AttentionBlock,
    ConcatenationNonLocal,
    DisentangledNonLocal,
    DotProductNonLocal,
    GaussianNonLocal,
    GlobalContext,
    NonLocal,
    OwnMaskNonLocal,
    PairwiseNonLocal,
    UnaryNonLocal,
)

BLOCKS = [
    NonLocal,
    GaussianNonLocal,
    DotProductNonLocal,
    ConcatenationNonLocal,
    PairwiseNonLocal,
    UnaryNonLocal,
    GlobalContext,
    DisentangledNonLocal,
    AddedNonLocal,
    OwnMaskNonLocal,
]
LEARNT = [partial(cls, scale="learnt") for cls in (NonLocal, PairwiseNonLocal, DisentangledNonLocal)]
WITH_SOFTMAX = [
    *(NonLocal, GaussianNonLocal, PairwiseNonLocal, DisentangledNonLocal),
    *(AddedNonLocal, OwnMaskNonLocal),
]
# ndim, size, key_pool, axes: pooled and not, odd sizes, one frame
CASES = [
    (3, (3, 4, 5), (1, 2, 2), "spacetime"),
    (3, (1, 3, 3), None, "spacetime"),
    (3, (2, 3, 4), (1, 2, 2), "space"),
    (3, (4, 2, 3), (2, 1, 1), "time"),
    (3, (3, 2, 2), None, "time"),
    (2, (5, 3), (2, 2), "spacetime"),
    (1, (7,), None, "spacetime"),
]
C, D = 6, 4


def _build(
    cls: type[AttentionBlock] | partial,
    ndim: int = 3,
    key_pool: tuple | None = None,
    axes: str = "spacetime",
    gate: str = "norm",
) -> AttentionBlock:
    torch.manual_seed(0)
    options = {} if cls is GlobalContext else {"gate": gate}
    if cls in (PairwiseNonLocal, DisentangledNonLocal):
        options["temperature"] = 0.5
    block = cls(C, D, ndim=ndim, key_pool=key_pool, axes=axes, **options).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    if gate == "norm" and cls is not GlobalContext:
        block.norm.running_mean.normal_()
        block.norm.running_var.uniform_(0.5, 1.5)
    return block.eval()


def _gates(cls: type[AttentionBlock]) -> list[str]:
    return ["norm"] if cls is GlobalContext else ["norm", "scalar"]


EVERYTHING = [(cls, *case, gate) for cls in [*BLOCKS, *LEARNT] for case in CASES for gate in _gates(cls)]


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution of positions [P, C] as a matrix product."""
    y = x @ layer.weight.flatten(1).T
    return y if layer.bias is None else y + layer.bias


def _loop_pool(sample: Tensor, key_pool: tuple[int, ...] | None) -> Tensor:
    """The largest value of every whole window of a sample [C, *size]; what is left over at the end is dropped."""
    if key_pool is None:
        return sample
    size = [length // window for length, window in zip(sample.shape[1:], key_pool, strict=True)]
    cells = []
    for cell in itertools.product(*(range(length) for length in size)):
        window = tuple(slice(i * w, (i + 1) * w) for i, w in zip(cell, key_pool, strict=True))
        cells.append(sample[(slice(None), *window)].flatten(1).max(dim=1).values)
    return torch.stack(cells, dim=1).unflatten(1, size)


def _softmax(logits: list[Tensor]) -> list[Tensor]:
    exps = [(logit - max(logits)).exp() for logit in logits]
    return [e / sum(exps) for e in exps]


def _loop_weights(
    block: AttentionBlock, x: Tensor, keys_from: Tensor
) -> tuple[list[list[Tensor]] | None, list[Tensor] | None]:
    """Weights of queries x [N, C] over keys_from [M, C] that differ between queries [N][M], and that all share [M]."""
    pairwise, unary = None, None
    num_keys = len(keys_from)
    if isinstance(block, (UnaryNonLocal, DisentangledNonLocal)):
        unary = _softmax(list(_linear(block.mask, keys_from)[:, 0]))
    if isinstance(block, UnaryNonLocal):
        return None, unary
    if isinstance(block, GaussianNonLocal):
        return [_softmax([x[i] @ keys_from[j] for j in range(num_keys)]) for i in range(len(x))], None
    query, key = _linear(block.query, x), _linear(block.query if block.has_learnt_scale else block.key, keys_from)
    if isinstance(block, ConcatenationNonLocal):
        w = block.concat.weight[0]
        rows = [[(w @ torch.cat([query[i], key[j]])).relu() / num_keys for j in range(num_keys)] for i in range(len(x))]
        return rows, None
    if isinstance(block, DotProductNonLocal):
        return [[query[i] @ key[j] / num_keys for j in range(num_keys)] for i in range(len(x))], None
    scale = 1 / math.sqrt(D)
    if isinstance(block, AddedNonLocal):
        mean = sum(query) / len(query)
        unary = _softmax([mean @ k * scale for k in key])
        return [_softmax([(q - mean) @ (k - key.mean(0)) * scale for k in key]) for q in query], unary
    if isinstance(block, OwnMaskNonLocal):
        mask = _linear(block.mask, keys_from)[:, 0]
        rows = [[(q - query.mean(0)) @ (key[j] - key.mean(0)) * scale + mask[j] for j in range(num_keys)] for q in query]
        return [_softmax(row) for row in rows], None
    if isinstance(block, PairwiseNonLocal):
        query, key, scale = query - query.mean(0), key - key.mean(0), scale / 0.5
    if block.has_learnt_scale:
        query, key = (torch.stack([row / (row @ row / D).sqrt() for row in rows]) for rows in (query, key))
        scale = block.sharpness.weight * (1 / math.sqrt(D))
    pairwise = [_softmax([query[i] @ key[j] * scale for j in range(num_keys)]) for i in range(len(x))]
    return pairwise, unary


def _loop_group(block: AttentionBlock, x: Tensor, keys_from: Tensor) -> Tensor:
    """What a block adds to x, up to the norm: queries x [N, C] and the positions that they see, keys_from [M, C]."""
    pairwise, unary = _loop_weights(block, x, keys_from)
    value = keys_from if isinstance(block, GlobalContext) else _linear(block.value, keys_from)
    gated = [0.0] * len(x) if pairwise is None else [sum(w * v for w, v in zip(row, value, strict=True)) for row in pairwise]
    shared = 0.0 if unary is None else sum(w * v for w, v in zip(unary, value, strict=True))
    if isinstance(block, GlobalContext):
        first, norm, _, last = block.bottleneck
        hidden = shared @ first.weight.T + first.bias
        hidden = (hidden - hidden.mean()) / (hidden.var(correction=0) + norm.eps).sqrt() * norm.weight + norm.bias
        return torch.stack([hidden.relu() @ last.weight.T + last.bias] * len(x))
    if isinstance(block.out, nn.Identity):
        gain = 0.0 if isinstance(block, UnaryNonLocal) else block.gain.weight
        return torch.stack([gain * y + shared for y in gated])
    y = _linear(block.out, torch.stack([y + shared for y in gated]))
    norm = block.norm
    return (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def _loop(block: AttentionBlock, x: Tensor, key_pool: tuple[int, ...] | None, axes: str) -> Tensor:
    """z of inputs x [B, C, *size], group by group."""
    outputs = []
    for sample in x:
        pooled = _loop_pool(sample, key_pool)
        groups = {
            "spacetime": [(slice(None), slice(None), slice(None))][:1],
            "space": [(t, slice(None), slice(None)) for t in range(sample.shape[1])],
            "time": [(slice(None), h, w) for h in range(sample.shape[-2]) for w in range(sample.shape[-1])],
        }[axes]
        z = sample.clone()
        for group in groups:
            here = (slice(None), *group[: sample.ndim - 1])
            added = _loop_group(block, sample[here].flatten(1).T, pooled[here].flatten(1).T)
            z[here] = sample[here] + added.T.reshape(sample[here].shape)
        outputs.append(z)
    return torch.stack(outputs)


@pytest.mark.parametrize(("cls", "ndim", "size", "key_pool", "axes", "gate"), EVERYTHING)
def test_values_and_gradients_equal_the_loop(cls, ndim, size, key_pool, axes, gate) -> None:
    block = _build(cls, ndim, key_pool, axes, gate)
    x = torch.randn(2, C, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    ours, theirs = block(x), _loop(block, x, key_pool, axes)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    inputs = [x, *block.parameters()]
    mine = torch.autograd.grad((ours * weight).sum(), inputs)
    other = torch.autograd.grad((theirs * weight).sum(), inputs, allow_unused=True, materialize_grads=True)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    with torch.no_grad():  # another path: no gradient is wanted
        torch.testing.assert_close(block(x), theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cls", [*BLOCKS, *LEARNT])
@pytest.mark.parametrize(("key_pool", "axes"), [((1, 2, 2), "spacetime"), (None, "spacetime"), ((1, 2, 2), "space")])
def test_gradcheck(cls, key_pool, axes) -> None:
    block = _build(cls, 3, key_pool, axes)
    x = torch.randn(1, C, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


def test_chunks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    block = _build(DisentangledNonLocal, key_pool=(1, 2, 2))
    x = torch.randn(2, C, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    whole = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    chunk = 7 * 2 * 12  # 7 of 60 queries at a time: the last one is short
    monkeypatch.setitem(softmax_attention.CHUNK_ENTRIES, "cpu", chunk)
    chunked = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    for a, b in zip(whole, chunked, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_parts_of_a_large_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    block = _build(DisentangledNonLocal, axes="time")
    x = torch.randn(2, C, 3, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        whole = block(x)
        monkeypatch.setattr(softmax_attention, "MAX_BATCH", 7)  # of 40 groups: the last part is short
        torch.testing.assert_close(block(x), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("cls", "ndim", "size", "key_pool", "axes", "gate"), EVERYTHING)
def test_attention_is_what_forward_uses(cls, ndim, size, key_pool, axes, gate) -> None:
    block = _build(cls, ndim, key_pool, axes, gate)
    x = torch.randn(2, C, *size, dtype=torch.float64)
    pairwise, unary = block.attention(x)
    value = block.positions(block.value(block.key_pool(x)))
    y = 0.0
    if pairwise is not None:
        assert pairwise.shape[1:] == (x[0, 0].numel() * 2 // len(pairwise), value.shape[1])
        if cls in [*WITH_SOFTMAX, *LEARNT]:
            torch.testing.assert_close(pairwise.sum(2), torch.ones_like(pairwise[..., 0]))
        y = block.gain(pairwise @ value)
    if unary is not None:
        torch.testing.assert_close(unary.sum(1), torch.ones_like(unary[:, 0]))
        y = y + unary[:, None] @ value
    if axes == "spacetime":
        assert math.prod(block.attention_grid(x)) == value.shape[1]
    if cls is GlobalContext:
        y = block.bottleneck(y)
    if unary is not None and pairwise is None:
        y = y.expand(-1, x[0, 0].numel() * 2 // len(y), -1)
    z = x + block.norm(block.out(_grid(y, x.shape, axes)))
    torch.testing.assert_close(z, block(x), rtol=1e-10, atol=1e-10)


def _grid(y: Tensor, shape: torch.Size, axes: str) -> Tensor:
    """[groups, positions, D] -> [B, D, *size], one element at a time."""
    z = y.new_zeros(shape[0], y.shape[2], *shape[2:])
    positions = list(itertools.product(*(range(length) for length in shape[2:])))
    for b, cell in itertools.product(range(shape[0]), positions):
        if axes == "space":
            group, position = b * shape[2] + cell[0], cell[1] * shape[4] + cell[2]
        elif axes == "time":
            group, position = (b * shape[3] + cell[1]) * shape[4] + cell[2], cell[0]
        else:
            group, position = b, positions.index(cell)
        z[(b, slice(None), *cell)] = y[group, position]
    return z


@pytest.mark.parametrize("key_pool", [None, (1, 2, 2)])
def test_non_local_is_the_softmax_of_the_sum_of_its_two_terms(key_pool) -> None:
    block = _build(NonLocal, key_pool=key_pool)
    x = torch.randn(2, C, 2, 4, 5, dtype=torch.float64)
    query, key = block.query(x).flatten(2), block.key(block.key_pool(x)).flatten(2)  # [B, D, N], [B, D, M]
    mean_q, mean_k = query.mean(2, keepdim=True), key.mean(2, keepdim=True)
    pairwise = torch.einsum("bdn,bdm->bnm", query - mean_q, key - mean_k) / math.sqrt(D)
    unary = torch.einsum("bdo,bdm->bom", mean_q, key)[:, 0] / math.sqrt(D)
    ours = block.split(x)
    torch.testing.assert_close(ours[0], pairwise)
    torch.testing.assert_close(ours[1], unary)
    weights, _ = block.attention(x)
    torch.testing.assert_close(weights, torch.softmax(pairwise + unary[:, None], dim=2))
    product = torch.softmax(pairwise, dim=2) * torch.softmax(unary, dim=1)[:, None]
    torch.testing.assert_close(weights, product / product.sum(2, keepdim=True))


def test_terms_that_are_added_are_those_that_non_local_multiplies() -> None:
    block, added = (_build(cls, key_pool=(1, 2, 2)) for cls in (NonLocal, AddedNonLocal))
    added.load_state_dict(block.state_dict())  # the weights have the same names
    x = torch.randn(2, C, 2, 4, 5, dtype=torch.float64)
    for weights, logits in zip(added.attention(x), block.split(x), strict=True):
        torch.testing.assert_close(weights, torch.softmax(logits, dim=-1))


def test_a_mask_of_its_own_multiplies_the_map_of_a_pairwise_block() -> None:
    block = _build(OwnMaskNonLocal, key_pool=(1, 2, 2))
    pairwise = PairwiseNonLocal(C, D, key_pool=(1, 2, 2), temperature=1.0).double().eval()
    pairwise.load_state_dict({name: block.state_dict()[name] for name in pairwise.state_dict()})
    x = torch.randn(2, C, 2, 4, 5, dtype=torch.float64)
    unary = torch.softmax(block.mask(block.key_pool(x)).flatten(2), dim=2)  # [B, 1, M]
    product = pairwise.attention(x)[0] * unary
    torch.testing.assert_close(block.attention(x)[0], product / product.sum(2, keepdim=True))
    torch.testing.assert_close(torch.softmax(block.split(x)[1], dim=1), unary[:, 0])


@pytest.mark.parametrize("width", [4, 8, 20])
def test_the_rows_that_carry_a_mask_are_as_wide_as_fused_kernels_want(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    widths, real = [], softmax_attention.softmax_attention
    monkeypatch.setattr(
        "videornn.models.nonlocal_block.softmax_attention",
        lambda query, key, value, scale: widths.extend((query.shape[2], key.shape[2])) or real(query, key, value, scale),
    )
    OwnMaskNonLocal(C, width)(torch.randn(1, C, 2, 3, 4))
    assert widths == 2 * [(width // 8 + 1) * 8]


def test_disentangled_is_the_sum_of_the_softmaxes_of_a_pairwise_and_a_unary_block() -> None:
    dnl, pairwise, unary = (
        _build(cls, key_pool=(1, 2, 2)) for cls in (DisentangledNonLocal, PairwiseNonLocal, UnaryNonLocal)
    )
    for half in (pairwise, unary):
        half.load_state_dict({name: dnl.state_dict()[name] for name in half.state_dict()})
    for block in (dnl, pairwise, unary):
        block.norm = nn.Identity()
        nn.init.zeros_(block.out.bias)
    x = torch.randn(2, C, 2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(dnl(x) - x, (pairwise(x) - x) + (unary(x) - x))
    assert not torch.allclose(dnl(x), _softmax_of_the_sum(dnl, x))


def _softmax_of_the_sum(block: DisentangledNonLocal, x: Tensor) -> Tensor:
    pairwise, unary = block.attention(x)
    weights = torch.softmax(pairwise.log() + unary.log()[:, None], dim=2)
    y = weights @ block.positions(block.value(block.key_pool(x)))
    return x + block.out(y.transpose(1, 2).unflatten(2, x.shape[2:]))


@pytest.mark.parametrize(("cls", "instantiation"), [(NonLocal, "softmax"), (DotProductNonLocal, "dot_product")])
@pytest.mark.parametrize("pool", [None, (1, 2, 2)])
def test_equal_to_the_layer_of_pytorchvideo(cls, instantiation, pool) -> None:
    torch.manual_seed(0)
    theirs = create_nonlocal(dim_in=16, dim_inner=8, pool_size=pool, instantiation=instantiation)
    ours = cls(16, 8, key_pool=pool)
    names = {"query": "conv_theta", "key": "conv_phi", "value": "conv_g", "out": "conv_out", "norm": "norm"}
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    for name, their_name in names.items():
        getattr(ours, name).load_state_dict(getattr(theirs, their_name).state_dict())
    gradients = []
    for block in (ours.train(), theirs.train()):
        x = torch.randn(2, 16, 3, 6, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
        z = block(x)
        z.square().mean().backward()
        gradients.append(
            (z.detach(), x.grad, *(dict(block.norm.named_buffers())[n] for n in ("running_mean", "running_var")))
        )
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", [cls for cls in BLOCKS if cls is not UnaryNonLocal])
@pytest.mark.parametrize("gate", ["norm", "scalar"])
def test_a_new_block_is_the_identity(cls, gate) -> None:
    if gate not in _gates(cls):
        pytest.skip("has no gate")
    x = torch.randn(2, 8, 2, 4, 4)
    block = cls(8, key_pool=(1, 2, 2), **({} if cls is GlobalContext else {"gate": gate}))
    if gate == "scalar" and cls in (DisentangledNonLocal, AddedNonLocal):  # the public 2D code leaves the unary half open
        unary = block.attention(x)[1][:, None] @ block.positions(block.value(block.key_pool(x)))
        torch.testing.assert_close(block(x), x + unary.transpose(1, 2)[..., None, None].expand_as(x))
    else:
        assert torch.equal(block(x), x)


@pytest.mark.parametrize("cls", BLOCKS)
@pytest.mark.parametrize("gate", ["norm", "scalar"])
def test_every_parameter_gets_a_gradient(cls, gate) -> None:
    if gate not in _gates(cls):
        pytest.skip("has no gate")
    torch.manual_seed(0)
    block = cls(8, 4, key_pool=(1, 2, 2), **({} if cls is GlobalContext else {"gate": gate}))
    for name, parameter in block.named_parameters():
        if name in ("norm.weight", "gain.weight") or name.startswith("bottleneck.3"):
            nn.init.ones_(parameter)
    block(torch.randn(2, 8, 2, 4, 4)).pow(3).sum().backward()
    for name, parameter in block.named_parameters():
        # q . b is the same for all keys and cancels in the softmax; the original block has this bias all the same
        assert (cls in (NonLocal, AddedNonLocal) and name == "key.bias") or parameter.grad.abs().sum() > 0, name


class _LargestTensor(TorchDispatchMode):
    """Numbers of elements of the largest tensors that any operator makes inside."""

    def __enter__(self):
        self.numel = 0
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("cls", [*WITH_SOFTMAX, DotProductNonLocal, ConcatenationNonLocal])
def test_no_map_is_ever_built(cls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(softmax_attention.CHUNK_ENTRIES, "cpu", 2**13)
    block = cls(4, 4)
    x = torch.randn(1, 4, 4, 16, 16, requires_grad=True)
    num_positions = 4 * 16 * 16
    with _LargestTensor() as largest:
        block(x).sum().backward()
    assert largest.numel <= num_positions * 8 < num_positions**2 / 100
    if cls in WITH_SOFTMAX:  # and this test would see it
        with _LargestTensor() as largest:
            block.attention(x)
        assert largest.numel == num_positions**2


@pytest.mark.parametrize("cls", [*WITH_SOFTMAX, UnaryNonLocal, GlobalContext])
def test_float16_survives_features_whose_products_overflow_it(cls) -> None:
    torch.manual_seed(0)
    block = cls(16, 16)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25)
            if name in ("query.weight", "key.weight"):
                parameter.copy_(torch.eye(16)[:, :, None, None, None])
    block = block.half().eval()
    # a common offset of 200: products of two such features are 16 * 200^2, ten times what float16 can hold
    x = (200 + torch.randn(1, 16, 2, 4, 4)).half()
    assert not torch.isfinite(x.flatten(2).transpose(1, 2) @ x.flatten(2)).all()
    exact = block.double()(x.double()).detach()
    block = block.half()
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            z = block(x)
        assert z.dtype == torch.float16 and torch.isfinite(z).all()
        if cls in (PairwiseNonLocal, UnaryNonLocal, DisentangledNonLocal, OwnMaskNonLocal):
            # the rest is exact up to float16's grain of the features themselves
            torch.testing.assert_close(z.double(), exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [*BLOCKS, *LEARNT])
def test_low_precision_gradients_are_those_of_float32(cls, dtype) -> None:
    torch.manual_seed(0)
    block = cls(32, key_pool=(1, 2, 2)).eval()  # batch statistics of a unary half are those of two vectors: all noise
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.15)
    x = torch.randn(2, 32, 2, 6, 6)
    target = torch.randn_like(x)
    gradients = []
    for enabled in (False, True):
        block.zero_grad()
        with torch.autocast("cpu", dtype, enabled=enabled):
            z = block(x)
        (z.float() * target).mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in block.parameters()]))
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 0.05


def test_logits_are_not_rounded_to_bfloat16() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 64, 32) * 4, torch.randn(1, 64, 32) * 4, torch.eye(64)[None]
    query, key = query.bfloat16(), key.bfloat16()  # exact inputs: what is left is the rounding of products
    exact = torch.softmax(query.double() @ key.double().transpose(1, 2) / math.sqrt(32), dim=2)
    naive = torch.softmax((query @ key.transpose(1, 2)).float() / math.sqrt(32), dim=2)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            ours = softmax_attention.softmax_attention(query, key, value.bfloat16(), 1 / math.sqrt(32))
        error = (ours.double() - exact).abs().sum(2).mean()
        assert error < 0.005 < (naive.double() - exact).abs().sum(2).mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "at least 1"),
        ({"channels": 4, "inner_channels": 0}, "at least 1"),
        ({"channels": 4, "ndim": 4}, "ndim"),
        ({"channels": 4, "key_pool": (2, 2)}, "3 entries"),
        ({"channels": 4, "temperature": 0.0}, "above 0"),
        ({"channels": 4, "ndim": 2, "axes": "time"}, "needs ndim 3"),
        ({"channels": 4, "key_pool": (1, 2, 2), "axes": "time"}, "pools space"),
        ({"channels": 4, "key_pool": (2, 1, 1), "axes": "space"}, "pools time"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DisentangledNonLocal(**arguments)


def test_a_temperature_is_refused_where_there_is_no_softmax_over_pairs() -> None:
    with pytest.raises(ValueError, match="UnaryNonLocal has no temperature"):
        UnaryNonLocal(4, temperature=0.1)


@pytest.mark.parametrize("cls", LEARNT, ids=lambda cls: cls.func.__name__)
def test_with_a_learnt_scale_a_position_sees_itself_first(cls: partial) -> None:
    torch.manual_seed(0)
    pairwise, _ = cls(C, D).attention(torch.randn(2, C, 2, 3, 3))
    assert torch.equal(pairwise.argmax(dim=2), torch.arange(18).expand(2, -1))
