"""Lists as people have them: a few lines of every format, what they mean by hand, and what wrong ones are told."""

import json
from pathlib import Path

import pytest

from videornn.data.annotations.load import VideoTable, check_labels, load_labels, load_videos
from videornn.errors import UserError


def _list(folder: Path, text: str, labels: str | None = None, name: str = "list.txt") -> str:
    (folder / name).write_text(text)
    if labels is not None:
        (folder / "labels.txt").write_text(labels)
    return str(folder / name)


def _rows(table: VideoTable, root: Path) -> list[tuple[str, int]]:
    """All rows, paths relative to the root where they are under it."""
    return [(path.removeprefix(f"{root}/"), label) for path, label in (table[i] for i in range(len(table)))]


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_list_paths_may_hold_spaces_and_are_relative_to_the_list_or_the_root(tmp_path: Path) -> None:
    source = _list(tmp_path, "a b/c.mp4 1\n\nd.mp4   0\n/abs/e.mp4 1\n", "zero\none\n")
    table = load_videos(source)
    assert [table[i] for i in range(3)] == [(f"{tmp_path}/a b/c.mp4", 1), (f"{tmp_path}/d.mp4", 0), ("/abs/e.mp4", 1)]
    assert table.class_names == ("zero", "one")
    (tmp_path / "videos").mkdir()
    assert load_videos(source, root=str(tmp_path / "videos")).path(1) == f"{tmp_path}/videos/d.mp4"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("train/-aU_000061_000071.mp4 0\r\ntrain/0x.mp4 12\r\n", [("train/-aU_000061_000071.mp4", 0), ("train/0x.mp4", 12)]),
        ("a,b.mp4,3\nc d.mp4, 4\n", [("a,b.mp4", 3), ("c d.mp4", 4)]),  # SlowFast with PATH_LABEL_SEPARATOR ","
        ("a,b.mp4 3\nc.mp4 4\n", [("a,b.mp4", 3), ("c.mp4", 4)]),
        ("a b.mp4\t3\nfolder 12\t4\n", [("a b.mp4", 3), ("folder 12", 4)]),
        ('"a b.mp4" 3\n"c ""d"".mp4" 4\n', [("a b.mp4", 3), ('c "d".mp4', 4)]),
        ('"a, b.mp4",3\n', [("a, b.mp4", 3)]),
        ("\ufeffa.mp4 3\n", [("a.mp4", 3)]),  # as Windows' editors begin a file
        ("path label\na.mp4 3\n", [("a.mp4", 3)]),
        ("Path,Label\na b.mp4,3\n", [("a b.mp4", 3)]),
        ("id,label,video_path,split\n7,3,a b.mp4,x\n", [("a b.mp4", 3)]),
        ("label,path\n3,a b.mp4\n", [("a b.mp4", 3)]),
        ("path,label\na, b.mp4,3\n", [("a, b.mp4", 3)]),
        ("path num_frames label\nimgs 5 127\n", [("imgs", 127)]),
        ("test.mp4 0\ntest.mp4 0\n", [("test.mp4", 0), ("test.mp4", 0)]),  # MMAction2
        ("imgs 5 127\nimgs 5 127\n", [("imgs", 127), ("imgs", 127)]),  # MMAction2: folder, number of frames, label
        ("v_ApplyEyeMakeup_g08_c01 119 0\n", [("v_ApplyEyeMakeup_g08_c01", 0)]),
        ("train/-aU.mp4 0 0 -1\ntrain/-wj.mp4 3 0 -1\n", [("train/-aU.mp4", 0), ("train/-wj.mp4", 3)]),  # DALI
        ("/x/val_256/abseiling/0wR5jVB-WPk.mp4 0\n", [("/x/val_256/abseiling/0wR5jVB-WPk.mp4", 0)]),  # Non-local
        ("#20_Rhythm_clap.avi 1\n", [("#20_Rhythm_clap.avi", 1)]),
        ("x.mp4.parts/y.AVI 2\n", [("x.mp4.parts/y.AVI", 2)]),
        ("0.mp4\na 1.mp4\n", [("0.mp4", -1), ("a 1.mp4", -1)]),  # no labels at all
    ],
)
def test_lists_of_paths_and_labels_in_all_spellings(tmp_path: Path, text: str, rows: list[tuple[str, int]]) -> None:
    assert _rows(load_videos(_list(tmp_path, text)), tmp_path) == rows


def test_a_folder_of_frames_whose_name_ends_in_a_number_is_known_by_being_there(tmp_path: Path) -> None:
    (tmp_path / "clip 12").mkdir()
    assert _rows(load_videos(_list(tmp_path, "clip 12 3\nclip 13 4\n")), tmp_path) == [("clip 12", 3), ("clip 13", 4)]


def test_labels_may_be_class_names(tmp_path: Path) -> None:
    text = "a.mp4 wave\nb c.mp4 air drumming\nd.mp4 wave\n"
    table = load_videos(_list(tmp_path, text))
    assert table.class_names == ("air drumming", "wave")
    assert table.labels.tolist() == [1, 0, 1]
    for spelling in ("wave\nair drumming\n", 'Wave\nAir_Drumming\n"jump"\n'):
        table = load_videos(_list(tmp_path, text, spelling))
        assert table.labels.tolist() == [0, 1, 0]
    assert _rows(load_videos(_list(tmp_path, "a.mp4,Wave\nb,Air_Drumming\n")), tmp_path) == [("a.mp4", 0), ("b", 1)]


def test_class_folders_are_classes_by_name(tmp_path: Path) -> None:
    _touch(tmp_path, "walk/1.mp4", "run/2.AVI", "run/deep/3.webm", "run/notes.txt", ".cache/x.mp4")
    _touch(tmp_path, "walk/frames/img_00001.jpg", "walk/frames/img_00002.jpg", "walk/thumbs.jpg")
    table = load_videos(str(tmp_path))
    assert table.class_names == ("run", "walk")
    assert _rows(table, tmp_path) == [("run/2.AVI", 0), ("run/deep/3.webm", 0), ("walk/1.mp4", 1), ("walk/frames", 1)]
    (tmp_path / "walk/loop").symlink_to(tmp_path)
    names = _list(tmp_path / "run", "Walk\njump\nrun\n", name="names.txt")
    assert load_videos(str(tmp_path), labels=names).labels.tolist()[:2] == [2, 2]
    assert load_videos(str(tmp_path), labels=names).class_names == ("Walk", "jump", "run")


KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
"air drumming",--nQbRBEz2s,104,114,val,0
abseiling,0wR5jVB-WPk,417,427,val,0
abseiling,3caPS4FHFF8,36,46,val,1
zumba,ZVDR2od1gn8,37,47,val,0
zumba,w5hbJLVhZDI,93,103,train,0
"""


def test_kinetics_lists_find_their_files_anywhere_under_the_root(tmp_path: Path) -> None:
    _touch(tmp_path, "val/--nQbRBEz2s_000104_000114.mp4", "val/abseiling/0wR5jVB-WPk_417_427.mkv")
    _touch(tmp_path, "frames/zumba/ZVDR2od1gn8_000037_000047/000001.jpg", "val/3caPS4FHFF8_000037_000047.mp4")
    _touch(tmp_path, "w5hbJLVhZDI.webm", "val/other_000001_000002.mp4")
    (tmp_path / "lists").mkdir()
    table = load_videos(_list(tmp_path / "lists", KINETICS, name="k.csv"), root=str(tmp_path))
    assert table.class_names == ("abseiling", "air drumming", "zumba")
    assert _rows(table, tmp_path) == [
        ("val/--nQbRBEz2s_000104_000114.mp4", 1),
        ("val/abseiling/0wR5jVB-WPk_417_427.mkv", 0),
        ("frames/zumba/ZVDR2od1gn8_000037_000047", 2),
        ("w5hbJLVhZDI.webm", 2),
    ]
    assert (table.num_listed, list(table.missing), table.missing_labels.tolist()) == (5, ["3caPS4FHFF8_000036_000046"], [0])
    assert "4 of 5 listed videos" in table.remarks()[0] and "3caPS4FHFF8_000036_000046" in table.remarks()[0]
    train = load_videos(str(tmp_path / "lists/k.csv"), root=str(tmp_path), split="train")
    assert _rows(train, tmp_path) == [("w5hbJLVhZDI.webm", 2)] and train.remarks() == []
    with pytest.raises(UserError, match=r"k\.csv has no videos of the split 'test'; it has train, val"):
        load_videos(str(tmp_path / "lists/k.csv"), root=str(tmp_path), split="test")
    with pytest.raises(UserError, match=r"none of its 5 videos is under .*lists .*0 videos are.*data\.root"):
        load_videos(str(tmp_path / "lists/k.csv"))


def test_of_several_files_of_a_kinetics_video_the_replacement_and_the_right_class_win(tmp_path: Path) -> None:
    name = "0wR5jVB-WPk_000417_000427.mp4"
    _touch(tmp_path, f"a/{name}", f"abseiling/{name}", f"b/{name}")
    source = _list(tmp_path, "label,youtube_id,time_start,time_end,split\nabseiling,0wR5jVB-WPk,417,427,val\n", name="k.csv")
    table = load_videos(source)
    assert _rows(table, tmp_path) == [(f"abseiling/{name}", 0)] and "several times" in table.remarks()[0]
    _touch(tmp_path, f"replacement_for_corrupted_k400/{name}")
    assert load_videos(source).path(0) == f"{tmp_path}/replacement_for_corrupted_k400/{name}"


def test_an_id_that_a_kinetics_list_has_twice_is_no_key(tmp_path: Path) -> None:
    _touch(tmp_path, "0wR5jVB-WPk.mp4", "3caPS4FHFF8.mp4")
    header = "youtube_id,time_start,time_end,split\n"
    source = _list(
        tmp_path, header + "0wR5jVB-WPk,0,10,test\n0wR5jVB-WPk,50,60,test\n3caPS4FHFF8,7.0,17.0,test\n", name="k.csv"
    )
    table = load_videos(source)
    assert _rows(table, tmp_path) == [("3caPS4FHFF8.mp4", -1)]
    assert list(table.missing) == ["0wR5jVB-WPk_000000_000010", "0wR5jVB-WPk_000050_000060"]
    with pytest.raises(UserError, match=r"k\.csv has no labels"):
        check_labels(table, 400)


UCF_NAMES = "1 ApplyEyeMakeup\r\n2 ApplyLipstick\r\n3 Archery\r\n"


def test_ucf101_lists_take_the_class_from_the_folder(tmp_path: Path) -> None:
    _touch(tmp_path, "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "UCF-101/Archery/v_Archery_g01_c02.mp4")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text(UCF_NAMES)
    train = "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\nApplyLipstick/v_ApplyLipstick_g08_c01.avi 2\r\n"
    (lists / "trainlist01.txt").write_text(train)
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c02.avi\r\n")
    for source in (lists, lists / "trainlist01.txt"):
        table = load_videos(str(source), root=str(tmp_path), split="train")
        assert table.class_names == ("ApplyEyeMakeup", "ApplyLipstick", "Archery")
        assert _rows(table, tmp_path) == [("UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", 0)]
        assert list(table.missing) == ["ApplyLipstick/v_ApplyLipstick_g08_c01.avi"]
    table = load_videos(str(lists), root=str(tmp_path), split="val")
    assert _rows(table, tmp_path) == [("UCF-101/Archery/v_Archery_g01_c02.mp4", 2)]
    with pytest.raises(UserError, match="split train or test"):
        load_videos(str(lists), root=str(tmp_path))
    with pytest.raises(UserError, match=r"trainlist03\.txt does not exist"):
        load_videos(str(lists), root=str(tmp_path), split="train", fold=3)
    with pytest.raises(UserError, match="split 'all' is not one of train, val, test"):
        load_videos(str(lists), root=str(tmp_path), split="all")


def test_hmdb51_splits_take_the_class_from_the_file(tmp_path: Path) -> None:
    lists, videos = tmp_path / "splits", tmp_path / "hmdb51"
    lists.mkdir()
    (lists / "clap_test_split1.txt").write_text("#20_Rhythm_clap_u_goo_0.avi 1 \na_clap_1.avi 2 \nb_clap_2.avi 0 \n")
    (lists / "wave_test_split1.txt").write_text("c_wave_1.avi 1 \n(d)_wave!_2.avi 2 \n")
    (lists / "clap_test_split2.txt").write_text("b_clap_2.avi 1 \n")
    _touch(videos, *[f"clap/{name}.avi" for name in ("#20_Rhythm_clap_u_goo_0", "a_clap_1", "b_clap_2")])
    _touch(videos, "wave/c_wave_1.avi", "wave/(d)_wave!_2.avi")
    train = load_videos(str(lists), root=str(videos), split="train")
    assert train.class_names == ("clap", "wave")
    assert _rows(train, videos) == [("clap/#20_Rhythm_clap_u_goo_0.avi", 0), ("wave/c_wave_1.avi", 1)]
    assert _rows(load_videos(str(lists), root=str(videos), split="test"), videos) == [
        ("clap/a_clap_1.avi", 0),
        ("wave/(d)_wave!_2.avi", 1),
    ]
    second = load_videos(str(lists), root=str(videos), split="train", fold=2)
    assert _rows(second, videos) == [("clap/b_clap_2.avi", 0)]
    with pytest.raises(UserError, match="one class of HMDB51: give its folder"):
        load_videos(str(lists / "wave_test_split1.txt"), root=str(videos))
    with pytest.raises(UserError, match="no files of split 3"):
        load_videos(str(lists), root=str(videos), split="train", fold=3)


def test_something_something_lists_take_the_template_as_class(tmp_path: Path) -> None:
    _touch(tmp_path, "20bn/78687.webm", "20bn/42326.webm", "20bn/5.webm")
    entries = [
        {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
        {"id": "42326", "label": "a cup moves", "template": "Moving [something] up", "placeholders": ["a cup"]},
        {"id": "1", "label": "x", "template": "Holding [something]", "placeholders": ["x"]},
    ]
    entries += [{"id": str(i), "template": "Holding [something]"} for i in range(1000)]  # some lists are one long line
    source = _list(tmp_path, json.dumps(entries), name="train.json")
    table = load_videos(source)
    assert table.class_names == ("Holding something", "Moving something up")
    assert _rows(table, tmp_path) == [("20bn/78687.webm", 0), ("20bn/42326.webm", 1), ("20bn/5.webm", 0)]
    assert table.missing[0] == "1" and len(table.missing) == 1000
    names = {"Moving something up": "0", "Poking": "1", "Holding something": "2"}
    (tmp_path / "something-labels.json").write_text(json.dumps(names))
    assert load_videos(source).labels.tolist() == [2, 0, 2]
    test = load_videos(_list(tmp_path, '[{"id": "5"}]', name="test.json"))
    assert _rows(test, tmp_path) == [("20bn/5.webm", -1)]
    _list(tmp_path, '[{"video_dir": "a", "label": 1}]', name="other.json")
    with pytest.raises(UserError, match=r"other\.json: this JSON is no list of videos"):
        load_videos(str(tmp_path / "other.json"))


@pytest.mark.parametrize(
    ("text", "labels", "parts"),
    [
        ("a.mp4 0\nb.mp4\n", None, ["list.txt:2", "'b.mp4'", "no label"]),
        ("a.mp4 0\nb.mp4 walk\n", None, ["list.txt:2", "'walk'", "whole number"]),
        ("a.mp4 walk\nb.mp4 0\n", None, ["list.txt:2", "'0' is a number where lines before", "'walk'"]),
        ("a.mp4 walk\n", "run\njump\n", ["list.txt:1", "'walk'", "nor one of the 2 class names"]),
        ("a.mp4 -1\n", None, ["list.txt:1", "'-1'"]),
        ("a.mp4 1.5\n", None, ["list.txt:1", "'1.5'", "whole number"]),
        ("a.mp4 0\n\nb.mp4 2\n", "x\ny\n", ["list.txt:3", "label 2", "0 to 1"]),
        ("test.mp4 0 3\ntest.mp4 0 2 4\n", None, ["list.txt:1", "2 numbers follow", "list.txt:2", "3 numbers"]),
        ("imgs 2 5 127\n", None, ["list.txt:1", "3 numbers follow the path", "`folder num_frames label`"]),
        ("a.mp4 0 25 50\n", None, ["list.txt:1", "a part of a video"]),
        ("a.mp4\nb.mp4\nc.mp4 7\n", None, ["list.txt:1: 'a.mp4'", "list.txt:2", "no label"]),
        ("path,label,x\na.mp4,0\n", None, ["list.txt:2", "2 columns where the header has 3"]),
        ("\n", None, ["list.txt", "empty"]),
        ("path label\n", None, ["list.txt", "no lines"]),
        ("a.mp4 0\n", "x\nx\n", ["labels.txt", "'x' is there more than once"]),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, text: str, labels: str | None, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_videos(_list(tmp_path, text, labels))
    for part in parts:
        assert part in str(error.value)


def test_the_first_ten_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_videos(_list(tmp_path, "ok.mp4 1\n" + "".join(f"{i}.mp4 1 {i}\n" for i in range(13))))
    lines = str(error.value).splitlines()
    assert [line.split(":")[1] for line in lines[:10]] == [str(number) for number in range(2, 12)]
    assert lines[10:] == ["... and 3 more"]
    wrong = KINETICS + "zumba,short\nzumba,abcdefghijk,inf,later,val,0\n"
    with pytest.raises(UserError) as error:
        load_videos(_list(tmp_path, wrong, name="k.csv"))
    first, second = str(error.value).splitlines()
    assert "k.csv:7: 'zumba,short': there are 2 columns" in first and "k.csv:8" in second and "'inf' is not a time" in second


def test_missing_and_empty_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.txt does not exist"):
        load_videos(str(tmp_path / "nowhere.txt"))
    with pytest.raises(UserError, match="no class folders"):
        load_videos(str(tmp_path))
    (tmp_path / "walk").mkdir()
    with pytest.raises(UserError, match="walk has no video"):
        load_videos(str(tmp_path))
    (tmp_path / "walk").rename(tmp_path / "train")
    with pytest.raises(UserError, match=r"holds splits, not classes \(train\): give .*/train"):
        load_videos(str(tmp_path))
    with pytest.raises(UserError, match=r"data\.root .*none is not a folder"):
        load_videos(_list(tmp_path, "a.mp4 0\n"), root=str(tmp_path / "none"))


def test_labels_are_checked_against_the_number_of_classes(tmp_path: Path) -> None:
    table = load_videos(_list(tmp_path, "a.mp4 0\nb.mp4 7\n"))
    check_labels(table, 8)
    with pytest.raises(UserError, match=r"label 7 of .*b\.mp4 is outside 0\.\.6"):
        check_labels(table, 7)


def test_labels_are_remapped_by_class_name(tmp_path: Path) -> None:
    table = load_videos(_list(tmp_path, "a.mp4 0\nb.mp4 1\nc.mp4 1\n", "wave\nair drumming\nunused\n"))
    other = table.with_classes(("jump", "Air_Drumming", "wave"))
    assert _rows(other, tmp_path) == [("a.mp4", 2), ("b.mp4", 1), ("c.mp4", 1)]
    assert other.class_names == ("jump", "Air_Drumming", "wave")
    assert table.labels.tolist() == [0, 1, 1]
    with pytest.raises(UserError, match=r"list\.txt: class 'air drumming' is not among the 2 classes .*\(jump, wave\)"):
        table.with_classes(("jump", "wave"))
    # numbers in the place of names are no names: labels mean what they meant
    assert table.with_classes(("class 0", "class 1", "class 2")).labels.tolist() == [0, 1, 1]
    assert table.with_classes(("0", "1", "2")).labels.tolist() == [0, 1, 1]
    with pytest.raises(UserError, match="2 classes"):
        table.with_classes(("0", "1"))
    (tmp_path / "labels.txt").unlink()
    unnamed = load_videos(_list(tmp_path, "a.mp4 1\n"))
    assert unnamed.with_classes(("x", "y", "z")).labels.tolist() == [1]


def _hand_written(lines: list[str], separator: str, root: str = "") -> list[tuple[str, int]]:
    """Rows of a simple list, taken apart in another way."""
    return [(root + line.split(separator)[0], int(line.strip().split(separator)[1])) for line in lines]


def test_real_lists_load_as_they_are(shared_data: Path) -> None:
    lists = shared_data / "annotations"
    for name, separator in (
        ("slowfast/train.head200.csv", " "),
        ("slowfast/test.head200.csv", " "),
        ("slowfast/dali_train.head200.txt", " "),
        ("nonlocal/vallist.head200.txt", " "),
        ("mmaction2/tests/data/annotations/video_test_list.txt", " "),
    ):
        table = load_videos(str(lists / name))
        folder = "" if "test_list" not in name else f"{lists / name}".rpartition("/")[0] + "/"
        assert [table[i] for i in range(len(table))] == _hand_written((lists / name).open().readlines(), separator, folder)
    frames = load_videos(str(lists / "ucf101/tsn_train_rgb_split1.head200.txt"))
    assert len(frames) == 200 and frames[1] == (f"{lists}/ucf101/v_ApplyEyeMakeup_g08_c02", 0)
    table = load_videos(str(lists / "mmaction2/tests/data/annotations/rawframe_test_list.txt"))
    assert table.labels.tolist() == [127, 127] and table.path(0).endswith("/imgs")
    for name in (
        "rawframe_test_list_multi_label.txt",
        "rawframe_test_list_with_offset.txt",
        "video_test_list_multi_label.txt",
    ):
        with pytest.raises(UserError, match="numbers follow the path"):
            load_videos(str(lists / "mmaction2/tests/data/annotations" / name))
    for name in ("action_test_anno.json", "rawvideo_test_anno.json"):
        with pytest.raises(UserError, match="no list of videos"):
            load_videos(str(lists / "mmaction2/tests/data/annotations" / name))
    for name in ("weizmann4/splits/person_train.txt", "ut_interaction/splits/seq_test.txt"):
        source = shared_data / "actions" / name
        table = load_videos(str(source), root=str(source.parents[1]))
        rows = [(path, label) for path, label in (table[i] for i in range(len(table)))]
        assert rows == _hand_written(source.open().readlines(), " ", f"{source.parents[1]}/")
        assert all(Path(path).exists() for path, _ in rows)
    by_name = load_videos(str(shared_data / "actions/ut_interaction/splits/all.csv"))
    assert by_name.labels[:3].tolist() == [4, 2, 1] and by_name.class_names[4] == "punch"


def test_real_kinetics_ucf101_and_hmdb51_lists_find_their_videos(shared_data: Path, tmp_path: Path) -> None:
    lists = shared_data / "annotations"
    csv_lines = (lists / "deepmind_activitynet/kinetics-400_val.full.csv").read_text().splitlines()[1:]
    fields = [line.replace('"', "").rsplit(",", 5) for line in csv_lines]
    for label, video, start, end, *_ in fields[::100]:
        _touch(tmp_path, f"{label}/{video}_{int(start):06d}_{int(end):06d}.mp4")
    table = load_videos(str(lists / "deepmind_activitynet/kinetics-400_val.full.csv"), root=str(tmp_path))
    names = load_labels(lists / "slowfast/kinetics_400_labels.csv")
    assert len(table) == len(fields[::100]) and table.num_listed == len(fields) == 19906
    assert [table.class_names[label] for label in table.labels] == [row[0] for row in fields[::100]]
    for other in ("slowfast/kinetics_400_labels.csv", "nonlocal/classids.json", "paddlevideo/Kinetics-400_label_list.txt"):
        remapped = table.with_classes(load_labels(lists / other))
        assert [names[label] for label in remapped.labels] == [row[0] for row in fields[::100]]
    _touch(tmp_path, "--6bJUbfpnQ_000017_000027.mp4")
    test = load_videos(str(lists / "deepmind_activitynet/kinetics-400_test.head200.csv"), root=str(tmp_path))
    assert [test[0]] == [(f"{tmp_path}/--6bJUbfpnQ_000017_000027.mp4", -1)] and test.num_listed == 199
    train = (lists / "ucf101/trainlist01.txt").read_text().split("\n")[:-1]
    for line in train[::50]:
        _touch(tmp_path, line.split()[0])
    table = load_videos(str(lists / "ucf101"), root=str(tmp_path), split="train")
    assert table.labels.tolist() == [int(line.split()[1]) - 1 for line in train[::50]] and table.num_listed == 9537
    _touch(tmp_path, "HandstandPushups/v_HandStandPushups_g01_c01.avi")
    test = load_videos(str(lists / "ucf101/testlist01.txt"), root=str(tmp_path))
    assert (len(test), test.num_listed, test.class_names[test.labels[0]]) == (1, 3783, "HandstandPushups")
    _touch(tmp_path, "wave/20060723sfjffbartsinger_wave_f_cm_np1_ba_med_0.avi", "x/#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi")
    names = str(lists / "hmdb51/class_list.txt")
    for split, label, listed in (("train", "clap", 280), ("test", "wave", 120)):
        table = load_videos(str(lists / "hmdb51"), root=str(tmp_path), labels=names, split=split)
        assert len(table) == 1 and table.class_names[table.labels[0]] == label
        assert (table.num_listed, len(table.class_names)) == (listed, 51)
