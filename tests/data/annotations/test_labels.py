"""Files of class names as people have them."""

from pathlib import Path

import pytest

from videornn.data.annotations.labels import load_labels
from videornn.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "abseiling\nair drumming\n\nzumba",
        "abseiling  \nair drumming\nzumba \n",
        "0 abseiling\n1 air drumming\n2 zumba\n",
        "1 abseiling\r\n2 air drumming\r\n3 zumba\r\n",
        "2,zumba\n0,abseiling\n1,air drumming\n",
        "id,name\n0,abseiling\n1,air drumming\n2,zumba\n",
        'name,id\n"zumba",2\nabseiling,0\nair drumming,1\n',
        '{"zumba": 2, "\\"air drumming\\"": 1, "abseiling": 0}',
        '{"zumba": "2", "air drumming": "1", "abseiling": "0"}',
        '{"0": "abseiling", "1": "air drumming", "2": "zumba"}',
        '["abseiling", "air drumming", "zumba"]',
    ],
)
def test_label_maps_in_all_spellings(tmp_path: Path, text: str) -> None:
    (tmp_path / "names").write_text(text)
    assert load_labels(tmp_path / "names") == ("abseiling", "air drumming", "zumba")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("0 a\n1 b\n3 c\n", "ids must be 0 to 2 or 1 to 3, each once; 3 does not fit"),
        ("5 a\n6 b\n", "5 does not fit"),
        ('{"a": 0, "b": 0}', "0 does not fit"),
        ('{"a": 0', "not valid JSON"),
        ('{"a": {"b": 1}}', "no label map"),
        ("id,name\n0,a,b\n", r"names:2: '0,a,b' does not fit the header"),
        ("0 a\n" + "1" * 5000 + " b\n", "0 does not fit"),
        ('{"a": ' + "1" * 5000 + "}", "thousands of digits"),
        ("[" * 100_000, "nested too deep"),
        ('id,name\n0,"' + "a" * 200_000 + '"\n', "is no CSV"),
        ("a\nb\0\n", "zero byte in line 2"),
        ('{"0": "1", "1": "2", "2": "0"}', "which are the ids and which the names is not clear"),
    ],
)
def test_wrong_label_maps_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "names").write_text(text)
    with pytest.raises(UserError, match=message):
        load_labels(tmp_path / "names")


def test_names_that_are_numbers_are_names(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("0\n1\n2\n")
    assert load_labels(tmp_path / "names") == ("0", "1", "2")
    for text in ('{"0": "10", "1": "11"}', '{"10": 0, "11": 1}', '{"10": "0", "11": "1"}', "0 10\n1 11\n"):
        (tmp_path / "names").write_text(text)
        assert load_labels(tmp_path / "names") == ("10", "11")


def test_real_label_maps_agree(shared_data: Path) -> None:
    lists = shared_data / "annotations"
    k400 = load_labels(lists / "slowfast/kinetics_400_labels.csv")
    assert len(k400) == 400 and k400[:2] == ("abseiling", "air drumming") and k400[-1] == "zumba"
    for name, size in (("k400", 400), ("k600", 600), ("k700", 700)):
        names = load_labels(lists / f"mmaction2/tools_data_kinetics_label_map_{name}.txt")
        assert len(names) == size and (size != 400 or names == k400)
    assert load_labels(lists / "mmaction2/tools_data_sthv2_label_map.txt")[1] == "Attaching something to something"
    ucf = load_labels(lists / "ucf101/classInd.txt")
    assert len(ucf) == 101 and ucf == load_labels(lists / "mmaction2/tools_data_ucf101_label_map.txt")
    hmdb = load_labels(lists / "hmdb51/class_list.txt")
    assert len(hmdb) == 51 and sorted(hmdb) == sorted(load_labels(lists / "mmaction2/tools_data_hmdb51_label_map.txt"))
