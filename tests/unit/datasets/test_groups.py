from pathlib import Path

import pytest

from vision.datasets.groups import read_groups
from vision.pipeline.errors import UserError

NAMES = [f"train/cat/{number}.png" for number in range(6)]


def write(path: Path, *rows: str, header: str = "group,split,image") -> Path:
    path.write_text("\n".join([header, *rows, ""]))
    return path


def test_the_images_of_a_group_have_the_index_of_its_first_row(tmp_path: Path) -> None:
    rows = ["1,train,train/cat/4.png", "2,val,train/cat/1.png", "1,val,train/cat/0.png", "2,test,train/cat/5.png"]
    path = write(tmp_path / "a.csv", *rows)
    assert read_groups(path, NAMES, has_test_split=False).tolist() == [4, 1, 2, 3, 4, 1]
    assert read_groups(path, NAMES, has_test_split=True).tolist() == [4, 1, 2, 3, 4, 5]
    assert read_groups(write(path), NAMES, has_test_split=True).tolist() == list(range(6))


def test_the_column_of_the_split_may_be_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "1,a", "2,a", header="image,group")
    assert read_groups(path, ["0", "1", "2"], has_test_split=True).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("rows", "header", "says"),
    [
        (["1,train,train/cat/9.png"], "group,split,image", "line 2: data/raw has no training image train/cat/9.png; "),
        (["1,train,../\x07"], "group,split,image", r"line 2: data/raw has no training image ../\x07; "),
        (["1,val,train/cat/1.png"] * 2, "group,split,image", "line 3: image train/cat/1.png is in the file twice; "),
        (["train/cat/1.png"], "image", "line 2: has no image or no group; expected the columns image, group"),
        (["1,train"], "group,split,image", "line 2: has no image or no group; expected the columns image, group"),
        (["1,train,a\xff"], "group,split,image", "not a table ("),
    ],
    ids=["unknown image", "control character", "twice", "no group", "short row", "binary"],
)
def test_a_file_of_other_content_is_refused_in_one_line(
    tmp_path: Path, rows: list[str], header: str, says: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\n".join([header, *rows, ""]).encode("latin-1"))
    with pytest.raises(UserError) as error:
        read_groups(path, NAMES, has_test_split=True)
    assert str(error.value).startswith(f"params.yaml: preprocess.groups: {path}: {says}")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"preprocess.groups: .*/no.csv: No such file or directory; `python tools/aud"):
        read_groups(tmp_path / "no.csv", NAMES, has_test_split=True)
