import argparse
import errno
import hashlib
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from videornn.checkpoints.checkpoint import damage, load_checkpoint, save_checkpoint
from videornn.errors import UserError


def _content(step: int = 1) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"weight": torch.randn(8, 8, generator=generator), "bias": torch.randn(5, generator=generator)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.randn(8, 8, generator=generator)}}},
        "step": step,
        "class_names": ["swim", "run"],
    }


def test_a_checkpoint_is_an_archive_of_torch_save_with_a_sha256_as_its_comment(tmp_path: Path) -> None:
    path = tmp_path / "deep/down/last.pt"
    save_checkpoint(path, _content(7))
    for loaded in (torch.load(path, weights_only=True), load_checkpoint(path)):
        assert loaded["step"] == 7 and loaded["class_names"] == ["swim", "run"]
        assert torch.equal(loaded["model"]["weight"], _content(7)["model"]["weight"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        comment = archive.comment
    assert path.read_bytes().endswith(comment)
    before = path.read_bytes()[: -len(comment)]
    assert comment.decode() == f"videornn sha256 {hashlib.sha256(before).hexdigest()}"
    assert damage(path) is None and list(path.parent.iterdir()) == [path]


def _mutants(raw: bytes) -> dict[str, list[bytes]]:
    """A file changed in many places, by how."""
    rng, length = random.Random(0), len(raw)

    def flipped(place: int, mask: int) -> bytes:
        return raw[:place] + bytes([raw[place] ^ mask]) + raw[place + 1 :]

    return {
        "a bit of every fifth byte": [flipped(place, 1 << rng.randrange(8)) for place in range(rng.randrange(5), length, 5)],
        "every bit of the archive's end": [
            flipped(place, 1 << bit) for place in range(raw.rindex(b"PK\5\6"), length) for bit in range(8)
        ],
        "cut": [raw[:size] for size in (*range(0, length, 13), *range(length - 150, length))],
        "a hole": [raw[:at] + bytes(64) + raw[at + 64 :] for at in range(0, length - 64, 16)],
        "nothing but zeros from somewhere on": [raw[:at] + bytes(length - at) for at in range(0, length, 16)],
        "more at the end": [raw + rng.randbytes(size) for size in range(1, 200)],
        "more at the start": [rng.randbytes(size) + raw for size in range(1, 200)],
    }


def test_no_change_of_a_checkpoint_stays_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, _content())
    raw = path.read_bytes()
    for kind, mutants in _mutants(raw).items():
        mutants = [mutant for mutant in mutants if mutant != raw]  # zeros over zeros
        assert len(mutants) > 100
        for number, mutant in enumerate(mutants):
            path.write_bytes(mutant)
            assert damage(path) is not None, f"{kind}, number {number}"
        with pytest.raises(UserError, match=r"last\.pt is not a checkpoint of videornn, or no longer as it was written: "):
            load_checkpoint(path)


def _flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def test_damage_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    weight = _content()["model"]["weight"].numpy().tobytes()

    def words(change: Callable[[bytes], None]) -> str | None:
        save_checkpoint(path, _content())
        change(path.read_bytes())
        return damage(path)

    assert words(lambda raw: _flip(path, raw.index(weight) + 9)) == "record data/0 fails its checksum"
    assert words(lambda raw: path.write_bytes(raw[:1000])) == "it is cut short, or no checkpoint at all"
    assert words(lambda raw: _flip(path, raw.rindex(b"PK\1\2"))) == "its list of records is damaged"
    assert words(lambda raw: _flip(path, len(raw) - 1)) == "it fails its SHA-256"
    assert words(lambda raw: path.unlink()) == "there is no such file"


def test_an_archive_without_our_checksum_is_judged_by_its_records(tmp_path: Path) -> None:
    """Checkpoints of before, and those that somebody loaded, changed and saved with torch.save."""
    path = tmp_path / "old.pt"
    torch.save({"format": "videornn-1", **_content()}, path)
    assert damage(path) is None and load_checkpoint(path)["step"] == 1
    weight = _content()["model"]["weight"].numpy().tobytes()
    _flip(path, path.read_bytes().index(weight))
    assert damage(path) == "record data/0 fails its checksum"


@pytest.mark.parametrize("room", [1, 300, 2000, 40_000])
def test_a_full_disk_is_a_sentence_and_the_old_checkpoint_stays(
    room: int, tmp_path: Path, room_for_files: Callable[[int], object]
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, _content(1))
    for large in ({"tensor": torch.zeros(500_000)}, {str(number): torch.zeros(9) for number in range(400)}):
        with room_for_files(room), pytest.raises(UserError) as caught:
            save_checkpoint(path, large, training=True)
        assert list(tmp_path.iterdir()) == [path] and load_checkpoint(path)["step"] == 1
        message = str(caught.value)
        assert message.startswith(f"{path} cannot be written: File too large")
        assert f"{path} stands as it was; make room, then give the same command with --resume" in message
    with room_for_files(room), pytest.raises(UserError, match=r"it takes about 2\.0 MB\); .*last\.pt stands as it was"):
        save_checkpoint(tmp_path / "step_00000002.pt", {"tensor": torch.zeros(500_000)}, training=True)
    for folder in (tmp_path, tmp_path / "other"):  # a last.pt beside it has nothing to do with what is no training
        with room_for_files(room), pytest.raises(UserError, match=r"nothing of it was left behind; make room, .* again$"):
            save_checkpoint(folder / "converted.pt", {"tensor": torch.zeros(500_000)})
    assert not any((tmp_path / "other").iterdir())


def test_a_disk_that_is_full_only_when_it_syncs_keeps_the_old_checkpoint_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match=r"No space left on device \(it takes about 1\.\d kB, [\d.]+ MB are free\)"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path)["step"] == 1 and list(tmp_path.iterdir()) == [path]


def test_other_failures_to_write_are_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        save_checkpoint(tmp_path / "last.pt", {"step": 2})


def test_what_is_no_checkpoint_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    torch.save({"format": "videornn-1", "args": argparse.Namespace(x=1)}, tmp_path / "objects.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": 1}))
    for name in ("text", "half", "foreign", "objects", "pickle", "missing"):
        with pytest.raises(UserError, match=rf"{name}\.pt"):
            load_checkpoint(tmp_path / f"{name}.pt")


def test_a_run_folder_given_as_a_checkpoint_is_called_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; give a file, such as RUN/checkpoints/best"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_that_may_not_be_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").write_bytes(b"")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may read everything
    with pytest.raises(UserError, match=r"a\.pt may not be read"):
        load_checkpoint(tmp_path / "a.pt")
