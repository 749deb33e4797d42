"""Scores of a test in progress: whatever a killed process leaves, what is read is what was kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from videornn.errors import UserError
from videornn.evaluation.unfinished import MAGIC, KeptScores

LOGITS = torch.randn(10, 3, 4, generator=torch.Generator().manual_seed(0))


def _kept(folder: Path, **changed: object) -> KeptScores:
    fingerprint = {"weights": "abc", "views": {"num_clips": (3, 1)}, **changed}
    return KeptScores(folder / "unfinished", fingerprint, num_videos=10, num_views=3, num_classes=4)


def _keep(kept: KeptScores, rank: int, indices: list[int]) -> None:
    with kept.appending(rank) as file:
        for index in indices:
            file.append(index, LOGITS[index])


def test_what_several_ranks_and_lives_have_kept_is_read_in_the_order_of_the_table(tmp_path: Path) -> None:
    kept = _kept(tmp_path)
    assert kept.prepare_folder() is None and kept.indices() == []
    _keep(kept, 1, [7, 3])
    _keep(kept, 0, [8])
    again = _kept(tmp_path)
    assert again.prepare_folder() is None
    _keep(again, 0, [0, 7])  # a video that is there twice is one
    indices, logits = again.read()
    assert indices == again.indices() == [0, 3, 7, 8] and torch.equal(logits, LOGITS[indices])
    again.remove()
    assert not any(tmp_path.iterdir())


def test_a_file_cut_anywhere_loses_only_the_record_that_is_cut(tmp_path: Path) -> None:
    kept = _kept(tmp_path)
    kept.prepare_folder()
    _keep(kept, 0, [])
    path = tmp_path / "unfinished/rank_0.scores"
    start = path.stat().st_size
    _keep(kept, 0, [5, 2, 9])
    whole = path.read_bytes()
    record = (len(whole) - start) // 3
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        again = _kept(tmp_path)
        assert again.prepare_folder() is None  # a header that is cut is not worth a word
        expected = [5, 2, 9][: max(size - start, 0) // record]
        assert again.indices() == sorted(expected)
        if size % 7 == 0:  # and the rest goes where it belongs
            _keep(again, 0, [1])
            indices, logits = again.read()
            assert indices == sorted([*expected, 1]) and torch.equal(logits, LOGITS[indices])


def test_no_flipped_bit_becomes_a_score(tmp_path: Path) -> None:
    kept = _kept(tmp_path)
    kept.prepare_folder()
    _keep(kept, 0, [5, 2])
    path = tmp_path / "unfinished/rank_0.scores"
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        indices, logits = kept.read()
        assert indices in ([], [2], [5]) and torch.equal(logits, LOGITS[indices])


def test_scores_of_another_test_are_put_away_and_the_reason_said(tmp_path: Path) -> None:
    kept = _kept(tmp_path)
    kept.prepare_folder()
    _keep(kept, 3, [5])
    other = _kept(tmp_path, weights="abd", precision="fp32")
    assert other.indices() == []
    sentence = other.prepare_folder()
    assert sentence == (
        f"the scores kept in {tmp_path}/unfinished are not of this test (different: precision, weights): starting anew"
    )
    assert not any((tmp_path / "unfinished").iterdir())
    for content in (b"something else", MAGIC + b"[" * 100_000 + b"\n"):
        (tmp_path / "unfinished/rank_0.scores").write_bytes(content)
        assert "a file of them is damaged" in _kept(tmp_path).prepare_folder()


def test_a_full_disk_is_one_sentence_and_keeps_what_is_there(tmp_path: Path, room_for_files) -> None:
    kept = _kept(tmp_path)
    kept.prepare_folder()
    _keep(kept, 0, [5])
    size = (tmp_path / "unfinished/rank_0.scores").stat().st_size
    with room_for_files(size + 20), pytest.raises(UserError, match=r"rank_0\.scores cannot.*kB.* command again$"):
        _keep(kept, 0, [6])
    _keep(kept, 0, [7])
    assert kept.indices() == [5, 7]
