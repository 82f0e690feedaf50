"""Which files of a project are read: as git would say, within bounds."""

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from server import source_tree
from server.source_tree import FoundFile, find_files, read_source


def plant(root: Path, files: dict[str, str | bytes]) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content.encode() if isinstance(content, str) else content)


def found_in(root: Path) -> tuple[list[str], Counter[str]]:
    left_out = Counter[str]()
    return [found.path for found in find_files(root, left_out)], left_out


def test_ignore_files_hold_as_git_has_them(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            ".gitignore": "build/\n*.gen.py\n/top.py\n!keep.gen.py\n",
            "top.py": "",
            "a.py": "",
            "a.gen.py": "",
            "keep.gen.py": "",
            "build/b.py": "",
            "sub/top.py": "",
            "sub/.gitignore": "local.py\n!wanted.gen.py\n",
            "sub/local.py": "",
            "sub/wanted.gen.py": "",
            "sub/deep/local.py": "",
            "other/local.py": "",
            "build2/.gitignore": "*\n",
            "build2/c.py": "",
        },
    )
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    listed = subprocess.run(
        ["git", "-C", str(tmp_path), "ls-files", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    paths, left_out = found_in(tmp_path)
    assert paths == sorted(path for path in listed if path.endswith(".py"))
    assert left_out == {"ignored": 5}


def test_git_s_own_list_of_ignored_files_holds_too(tmp_path: Path) -> None:
    plant(tmp_path, {".git/info/exclude": "mine.py\n", "mine.py": "", "ours.py": ""})
    assert found_in(tmp_path) == (["ours.py"], {"ignored": 1})


def test_links_are_not_followed_and_other_files_not_read(tmp_path: Path) -> None:
    plant(tmp_path, {"src/a.py": "", "README.md": "", "data.csv": "", "node_modules/x/index.js": ""})
    (tmp_path / "src" / "loop").symlink_to(tmp_path)
    (tmp_path / "src" / "b.py").symlink_to("/etc/hostname")
    assert found_in(tmp_path)[0] == ["src/a.py"]


def test_bounds_are_kept_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_tree, "MAX_FILES", 2)
    plant(tmp_path, {f"{name}.py": "x" for name in "abc"} | {"large.py": "x" * (source_tree.MAX_FILE_BYTES + 1)})
    assert found_in(tmp_path) == (["a.py", "b.py"], {"beyond the first 2 files": 1, "too large": 1})


def test_what_is_no_source_text_is_left_out_and_counted(tmp_path: Path) -> None:
    plant(tmp_path, {"a.py": b"\xff", "b.py": b"a\0b", "c.js": "x" * 1001, "d.py": b"\xef\xbb\xbfx\r\ny\r\n"})
    left_out = Counter[str]()
    assert [read_source(found, left_out) for found in find_files(tmp_path, left_out)] == [None, None, None, "x\ny\n"]
    assert read_source(FoundFile("gone.py", tmp_path / "gone.py", 0, 0), left_out) is None
    assert left_out == {"not UTF-8": 2, "long lines": 1, "unreadable": 1}


def test_a_name_that_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.py")).write_text("")
    assert found_in(tmp_path) == ([], {"name is not UTF-8": 1})
