"""`cloudcomplete index`: a project on disk becomes an index that a server finds."""

import json
from pathlib import Path

from server.repository_snapshot import read_snapshot
from tests.cloudcomplete.shell import Shell


def numbers(out: str) -> dict[str, str]:
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()}


def test_a_project_is_indexed_brought_up_to_date_and_forgotten(shell: Shell, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / ".gitignore").write_text("secret.py\n")
    for name in ("a.py", "b.py", "secret.py"):
        (project / name).write_text(f"name = {name!r}\n")
    command = ("index", project, "--set", f"server.repository_directory={tmp_path / 'kept'}")
    done = shell(*command, "--json", tmp_path / "out.json")
    assert (done.code, done.err) == (0, "")
    shown = numbers(done.out)
    assert (shown["files"], shown["new"], shown["left"]) == ("2", "2", "out            1 x ignored")
    assert json.loads((tmp_path / "out.json").read_text())["left_out"] == {"ignored": 1}
    place = Path(shown["index"])
    assert [file.path for file in read_snapshot(place).files] == ["a.py", "b.py"]

    (project / "a.py").write_text("name = 3\n")
    shown = numbers(shell(*command).out)
    assert (shown["new"], shown["changed"], shown["same"]) == ("0", "1", "1")
    place.write_bytes(place.read_bytes()[:-5])  # cut off: read all of it again
    assert numbers(shell(*command).out)["new"] == "2"

    assert numbers(shell(*command, "--tenant", "t").out)["new"] == "2"
    assert numbers(shell(*command, "--forget").out)["forgotten"] == "1"
    assert numbers(shell(*command, "--forget").out)["forgotten"] == "0"
    assert not place.exists()
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_what_is_no_directory_is_refused(shell: Shell, tmp_path: Path) -> None:
    where = ("--set", f"server.repository_directory={tmp_path / 'kept'}")
    done = shell("index", tmp_path / "gone", *where)
    assert done.code == 1
    assert "gone: No such file or directory; expected a project's directory; name another one" in done.err
