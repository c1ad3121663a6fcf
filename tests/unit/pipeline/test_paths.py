"""Paths of params.yaml."""

import os
from pathlib import Path

import pytest

from vision.pipeline.errors import UserError
from vision.pipeline.paths import ROOT, resolve_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/raw", ROOT / "data/raw"),
        ("../photos", ROOT.parent / "photos"),
        ("data/../../photos/./new/", ROOT.parent / "photos/new"),
        ("..", ROOT.parent),
        ("/photos/../archive", Path("/archive")),
        ("~/photos", Path.home().resolve() / "photos"),
    ],
)
def test_a_path_is_absolute_and_normalized(path: str, expected: Path) -> None:
    assert str(resolve_path(path)) == str(expected)


def test_links_are_followed_except_the_last(tmp_path: Path) -> None:
    (tmp_path / "disk/photos").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk/photos")
    assert resolve_path(f"{tmp_path}/link/../new") == tmp_path.resolve() / "disk/new"
    assert resolve_path(f"{tmp_path}/link") == tmp_path.resolve() / "link"


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(UserError, match=r"^~no-such-user-here: there is no such user$"):
        resolve_path(os.path.join("~no-such-user-here", "photos"))
