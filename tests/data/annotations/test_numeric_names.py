"""Classes whose names are numbers: a label is the class of that name, or the one with that id, and never a guess."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from videornn.data.annotations.load import VideoTable, check_labels, load_labels, load_videos
from videornn.data.annotations.make_lists import make_lists
from videornn.errors import UserError

TWELVE = [str(number) for number in range(12)]  # by text: 0, 1, 10, 11, 2, ...


def _folders(place: Path, names: Sequence[str]) -> VideoTable:
    for name in names:
        (place / name).mkdir(parents=True)
        (place / name / f"{name}.mp4").touch()
    return load_videos(str(place))


def _list(place: Path, labels: Sequence[str], *, header: str = "", names: str | None = None) -> VideoTable:
    place.mkdir()
    (place / "list.txt").write_text(header + "".join(f"{int(label)}.mp4 {label}\n" for label in labels))
    if names is not None:
        (place / "labels.txt").write_text(names)
    return load_videos(str(place / "list.txt"))


def _named(table: VideoTable, class_names: Sequence[str]) -> list[str]:
    """The class of every video."""
    check_labels(table, len(class_names))
    return [class_names[label] for label in table.labels]


def test_a_list_of_numbers_tests_a_network_of_numbered_folders_only_if_it_says_what_they_are(tmp_path: Path) -> None:
    network = _folders(tmp_path / "twelve", TWELVE).class_names
    assert network == tuple(sorted(TWELVE))
    with pytest.raises(
        UserError, match=r"list\.txt: label 2 can be the class named '2' or the class with id 2, .* '10': say"
    ):
        _list(tmp_path / "unsaid", TWELVE).with_classes(network)
    by_name = _list(tmp_path / "names", TWELVE, header="path class_name\n")
    assert _named(by_name.with_classes(network), network) == TWELVE
    by_id = _list(tmp_path / "ids", TWELVE, header="path class_id\n")
    assert _named(by_id.with_classes(network), network) == list(network)


@pytest.mark.parametrize(
    ("network", "labels", "found"),
    [
        (["1", "2", "3", "4"], ["1", "2", "3", "4"], ["1", "2", "3", "4"]),  # 4 is no id
        (["1", "2", "3", "4"], ["0", "1", "3"], ["1", "2", "4"]),  # 0 is no name
        (["01", "02", "03"], ["01", "03"], ["01", "03"]),
        (["01", "02", "03"], ["1", "3"], ["01", "03"]),  # spreadsheets drop the zero
        (["10", "walk", "wave"], ["0", "2"], ["10", "wave"]),
        (["class 0", "class 1"], ["1", "0"], ["class 1", "class 0"]),
        (["walk", "wave"], ["1", "0"], ["wave", "walk"]),
        (TWELVE, TWELVE, TWELVE),
    ],
)
def test_a_number_is_read_in_the_way_that_finds_a_class_for_all_of_them(
    tmp_path: Path, network: list[str], labels: list[str], found: list[str]
) -> None:
    assert _named(_list(tmp_path / "new", labels).with_classes(tuple(network)), network) == found
    table = _list(tmp_path / "own", labels, names="".join(f"{index} {name}\n" for index, name in enumerate(network)))
    assert _named(table, network) == found and table.class_names == tuple(network)


@pytest.mark.parametrize(
    ("network", "labels"),
    [(["1", "2", "3", "4"], ["1", "2", "3"]), (["class 1", "class 2"], ["1"]), (["2", "1", "0"], ["2"])],
)
def test_numbers_that_both_ways_find_a_class_for_are_refused_where_the_classes_differ(
    tmp_path: Path, network: list[str], labels: list[str]
) -> None:
    with pytest.raises(UserError, match=r"can be the class named .* say which by a first line `path class_name`"):
        _list(tmp_path / "new", labels).with_classes(tuple(network))
    with pytest.raises(UserError, match="can be the class named"):
        _list(tmp_path / "own", labels, names="\n".join(network))


def test_numbers_of_which_some_are_no_ids_and_some_no_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"list\.txt: label 4 is no class id, and other labels are no class names"):
        _list(tmp_path / "own", ["0", "4"], names="1\n2\n3\n4\n")
    with pytest.raises(UserError, match=r"label 4 of .*4\.mp4 is outside 0\.\.3"):
        _named(_list(tmp_path / "new", ["0", "4"]).with_classes(("1", "2", "3", "4")), ["1", "2", "3", "4"])


def test_numbered_folders_test_a_network_trained_on_ids(tmp_path: Path) -> None:
    table = _folders(tmp_path / "twelve", TWELVE)
    for network in ([f"class {number}" for number in range(12)], TWELVE):
        found = table.with_classes(tuple(network))
        assert [network[label] for label in found.labels] == [network[int(name)] for name in table.class_names]
    with pytest.raises(UserError, match=r"class '4' is not among the 4 classes of the network \(class 0, "):
        _folders(tmp_path / "four", ["1", "2", "3", "4"]).with_classes(tuple(f"class {number}" for number in range(4)))


def test_lists_made_of_numbered_folders_say_that_their_labels_are_ids(tmp_path: Path) -> None:
    folders = _folders(tmp_path / "twelve", TWELVE)
    make_lists(str(tmp_path / "twelve"), tmp_path / "lists")
    again = load_videos(str(tmp_path / "lists/twelve.txt"))
    assert load_labels(tmp_path / "lists/labels.txt") == again.class_names == folders.class_names
    assert [again[row] for row in range(12)] == [folders[row] for row in range(12)]
    (tmp_path / "lists/labels.txt").unlink()
    alone = load_videos(str(tmp_path / "lists/twelve.txt")).with_classes(folders.class_names)
    assert alone.labels.tolist() == folders.labels.tolist()
