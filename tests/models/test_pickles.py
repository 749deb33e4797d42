"""Files of tensors that are made to bring their reader down: none does, and none takes more memory than it holds."""

import gc
import io
import multiprocessing
import pickle
import resource
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import mutated_pickles
import numpy as np
import pytest
import torch
from torch import Tensor

from videornn.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from videornn.errors import UserError
from videornn.models.tensor_files import read_archive, read_tensors

RECONSTRUCT = np.empty(0).__reduce__()[0]


def _in_process_of_its_own(work: Callable[[], None]) -> None:
    """Fails if the process ends in any way but well, as by a segmentation fault."""
    process = multiprocessing.get_context("fork").Process(target=work)
    gc.freeze()  # a fork that collected this process's garbage would wait for ever for the threads of a filter in it
    try:
        process.start()
    finally:
        gc.unfreeze()
    process.join()
    assert process.exitcode == 0


def _limited(work: Callable[[], object]) -> None:
    """Work that needs no gigabyte of memory."""

    def run() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))
        work()

    _in_process_of_its_own(run)


def _refused(path: Path, match: str, reader: Callable[[Path], object] = read_tensors) -> None:
    """Reading a file is refused in a sentence."""

    def read() -> None:
        with pytest.raises(UserError, match=match):
            reader(path)

    _limited(read)


class Reduced:
    """An object that is pickled as the call of a function, and perhaps a state."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple:
        return self.parts


@pytest.mark.parametrize("code", ["f8", "V8"])
@pytest.mark.parametrize("zipped", [False, True])
def test_flags_of_a_dtype_make_no_pointers_of_numbers(zipped: bool, code: str, tmp_path: Path) -> None:
    state = (3, "<", None, None, None, 8, 1, 63) if code == "V8" else (3, "<", None, None, None, -1, -1, 63)
    dtype = Reduced(np.dtype, (code, False, True), state)
    array = Reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (4,), dtype, False, np.full(4, 0.5).tobytes()))
    path = tmp_path / "weights"
    torch.save({"a": array}, path) if zipped else path.write_bytes(pickle.dumps({"a": array}, 2))

    def read() -> None:
        if code == "f8":
            assert read_tensors(path)["a"].tolist() == [0.5] * 4
        else:
            with pytest.raises(UserError, match=r"\(an array of V8\); nothing of it was run"):
                read_tensors(path)

    _in_process_of_its_own(read)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_key_of_nested_tuples_does_not_overflow_the_stack(zipped: bool, tmp_path: Path) -> None:
    content = b"\x80\x02}()" + b"\x85" * 150_000 + b"K\x01u."
    path = tmp_path / "weights"
    if zipped:
        torch.save({}, path)
        content = mutated_pickles.with_pickle(path.read_bytes(), lambda _: content)
    path.write_bytes(content)
    _refused(path, r"\(a key that is a tuple\)")
    if zipped:  # torch.load itself dies of it, also with weights_only
        _refused(path, r"is not a checkpoint of videornn \(a key that is a tuple\)", load_checkpoint)


ENCODE, HEX = b"c_codecs\nencode\n", b"X\x03\x00\x00\x00hex\x86R"
ARRAY = b"(h\x00cnumpy\ndtype\n(X\x02\x00\x00\x00i1\x89\x88tRJ@B\x0f\x00\x85X\x01\x00\x00\x00CtR"
BOMBS = {
    "hexadecimal digits of hexadecimal digits": (
        b"\x80\x03" + ENCODE * 30 + b"C\x80" + bytes(128) + HEX * 30 + b".",
        r"\(_codecs.encode to more than latin1\)",
    ),
    "arrays of the same million bytes": (
        b"\x80\x03(B@B\x0f\x00"
        + bytes(10**6)
        + b"q\x00"
        + b"cnumpy.core.numeric\n_frombuffer\n".join([b"", *[ARRAY] * 2000])
        + b"t.",
        "is damaged",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_few_bytes_do_not_become_many(bomb: str, tmp_path: Path) -> None:
    content, match = BOMBS[bomb]
    (tmp_path / "weights").write_bytes(content)
    _refused(tmp_path / "weights", match)


def test_a_high_slot_of_the_memo_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"\x80\x02}r\xff\xff\xff\x1f.")
    _limited(lambda: read_tensors(tmp_path / "weights"))


def test_a_tensor_is_not_larger_than_its_storage(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "weights")
    _refused(tmp_path / "weights", "is damaged")


def _archive(tmp_path: Path, compression: int) -> Path:
    """What torch.save wrote, in an archive made by somebody else; its pickle has a hundred million zeros after its end."""
    torch.save({"stem": torch.ones(3)}, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(tmp_path / "weights", "w", compression) as other:
        for record in whole.infolist():
            other.writestr(record.filename, whole.read(record) + bytes(10**8 * record.filename.endswith("data.pkl")))
    return tmp_path / "weights"


def test_compressed_records_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = _archive(tmp_path, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**6
    _refused(path, "its records are compressed, which neither torch.save nor np.savez does; nothing of it was loaded")
    with pytest.raises(UserError, match="its records are compressed"):
        load_checkpoint(path)


@pytest.mark.parametrize("fault", ["name", "place", "size"])
def test_records_that_are_twice_there_or_share_their_bytes_are_refused(fault: str, tmp_path: Path) -> None:
    torch.save({"stem": torch.ones(3), "head": torch.ones(3)}, tmp_path / "weights")
    content = (tmp_path / "weights").read_bytes()
    if fault == "name":
        content = content.replace(b"data/1", b"data/0")
    else:  # of the second tensor, as the list of records at the end has it
        entries = content.split(b"PK\1\2")
        first, second = (next(i for i, entry in enumerate(entries) if name in entry[:60]) for name in (b"data/0", b"data/1"))
        entry = bytearray(entries[second])
        if fault == "place":
            entry[38:42] = entries[first][38:42]
        else:
            entry[16:24] = 2 * (10**9).to_bytes(4, "little")
        entries[second] = bytes(entry)
        content = b"PK\1\2".join(entries)
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(UserError, match="two of its records have one name" if fault == "name" else "its records overlap"):
        read_tensors(tmp_path / "weights")


def test_an_archive_that_is_another_one_to_torch_is_refused(tmp_path: Path) -> None:
    """Of two lists of records zipfile reads the one right before the end, and torch the one that the end names."""
    torch.save({"format": "videornn-1", "name": "harmless"}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    one, other = (
        mutated_pickles.with_pickle(whole, lambda content, name=name: content.replace(b"harmless", name))
        for name in (b"harmful!", b"harmless")
    )
    end = bytearray(other[-22:])
    end[16:20] = one[-6:-2]
    (tmp_path / "two.pt").write_bytes(one[:-22] + other[:-22] + end)
    with zipfile.ZipFile(tmp_path / "two.pt") as seen:
        assert b"harmless" in seen.read(next(name for name in seen.namelist() if name.endswith("data.pkl")))
    assert torch.load(tmp_path / "two.pt", weights_only=True)["name"] == "harmful!"
    for read in (read_tensors, load_checkpoint):
        with pytest.raises(UserError, match=r"two\.pt.*: it is two archives in one, .*; nothing of it was loaded"):
            read(tmp_path / "two.pt")


def test_hundreds_of_changed_files_are_read_or_refused() -> None:
    def read() -> None:
        ends = mutated_pickles.read_mutants(400, seed=1)
        assert sum(ends.values()) == 400 and len(ends) > 3 and ends["read"]

    _in_process_of_its_own(read)


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        places = [(t.dtype, t.shape, t.stride(), t.storage_offset(), t.data_ptr() % 64) for t in (one, other)]
        return places[0] == places[1] and bytes(one.untyped_storage()) == bytes(other.untyped_storage())
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(_same, one.values(), other.values()))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other and type(one) is type(other)


def test_an_archive_holds_what_torch_reads_of_it(tmp_path: Path) -> None:
    numbers = torch.arange(24.0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views": [numbers[2:12:2], numbers.view(4, 6).t()],
        "kinds": [torch.ones(3).to(kind) for kind in (torch.bfloat16, torch.half, torch.uint16, torch.int8, torch.bool)],
        "random": torch.get_rng_state(),
        "empty": (torch.empty(0, 3), [], {}, (), ""),
        "plain": (1, -2.5, None, True, 2**70, "ü\udc80", OrderedDict(a=1), float("inf"), (1, (2, (3,)))),
    }
    save_checkpoint(tmp_path / "a.pt", content)
    loaded = read_archive(tmp_path / "a.pt")
    assert _same(torch.load(tmp_path / "a.pt", weights_only=True), loaded)
    one, other = loaded["views"]
    assert one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_tied_and_wrapped_tensors_are_read(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "a tensor with attributes"
    file = io.BytesIO()
    torch.save(
        {"a": parameter, "b": torch.nn.Parameter(torch.zeros(2)), "size": torch.Size([1]), "at": torch.device("cpu")}, file
    )
    (tmp_path / "weights").write_bytes(file.getvalue())
    found = read_tensors(tmp_path / "weights")
    assert found["a"].tolist() == [1, 1] and found["b"].tolist() == [0, 0] and len(found) == 2
