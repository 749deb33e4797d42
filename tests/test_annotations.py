import pickle
from pathlib import Path

import pytest

from videornn.data.annotations import check_labels, load_videos
from videornn.errors import UserError


def _list(folder: Path, text: str, labels: str | None = None) -> str:
    (folder / "list.txt").write_text(text)
    if labels is not None:
        (folder / "labels.txt").write_text(labels)
    return str(folder / "list.txt")


def test_list_paths_may_hold_spaces_and_are_relative_to_the_list_or_the_root(tmp_path: Path) -> None:
    source = _list(tmp_path, "a b/c.mp4 1\n\nd.mp4   0\n/abs/e.mp4 1\n", "zero\none\n")
    table = load_videos(source)
    assert [table[i] for i in range(3)] == [(f"{tmp_path}/a b/c.mp4", 1), (f"{tmp_path}/d.mp4", 0), ("/abs/e.mp4", 1)]
    assert table.class_names == ("zero", "one")
    (tmp_path / "videos").mkdir()
    assert load_videos(source, root=str(tmp_path / "videos")).path(1) == f"{tmp_path}/videos/d.mp4"


def test_class_folders_are_classes_by_name(tmp_path: Path) -> None:
    for name in ("walk/1.mp4", "run/2.AVI", "run/deep/3.webm", "run/notes.txt", ".cache/x.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    table = load_videos(str(tmp_path))
    assert table.class_names == ("run", "walk")
    rows = [(f"{tmp_path}/run/2.AVI", 0), (f"{tmp_path}/run/deep/3.webm", 0), (f"{tmp_path}/walk/1.mp4", 1)]
    assert [table[i] for i in range(3)] == rows


def test_a_large_table_is_a_few_flat_bytes_per_row(tmp_path: Path) -> None:
    rows = 20_000
    table = load_videos(_list(tmp_path, "".join(f"some/class name/video_{i:06d}.mp4 {i % 400}\n" for i in range(rows))))
    assert len(pickle.dumps(table)) < rows * (len(table.path(0)) + 13)
    assert table[rows - 1] == (f"{tmp_path}/some/class name/video_019999.mp4", 399)


@pytest.mark.parametrize(
    ("text", "labels", "parts"),
    [
        ("a.mp4 0\nb.mp4\n", None, ["list.txt:2", "'b.mp4'", "no label"]),
        ("a.mp4 walk\n", None, ["list.txt:1", "'walk'", "whole number"]),
        ("a.mp4 -1\n", None, ["list.txt:1", "'-1'"]),
        ("a.mp4 0\n\nb.mp4 2\n", "x\ny\n", ["list.txt:3", "label 2", "0 to 1"]),
        ("\n", None, ["list.txt", "empty"]),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, text: str, labels: str | None, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_videos(_list(tmp_path, text, labels))
    for part in parts:
        assert part in str(error.value)


def test_missing_and_empty_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.txt does not exist"):
        load_videos(str(tmp_path / "nowhere.txt"))
    with pytest.raises(UserError, match="no class folders"):
        load_videos(str(tmp_path))
    (tmp_path / "walk").mkdir()
    with pytest.raises(UserError, match="walk has no video"):
        load_videos(str(tmp_path))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="not a text file"):
        load_videos(str(tmp_path / "binary.txt"))


def test_labels_are_checked_against_the_number_of_classes(tmp_path: Path) -> None:
    table = load_videos(_list(tmp_path, "a.mp4 0\nb.mp4 7\n"))
    check_labels(table, 8)
    with pytest.raises(UserError, match=r"label 7 of .*b\.mp4 is outside 0\.\.6"):
        check_labels(table, 7)
