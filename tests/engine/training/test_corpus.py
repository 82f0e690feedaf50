import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from engine.training import corpus
from engine.training.corpus import (
    Deduplicator,
    fetch,
    gather,
    language_of,
    load_documents,
    read_debian,
    reason_to_leave_out,
    thin_out,
)
from engine.training.errors import CorpusError
from engine.training.manifest import Manifest, Package

SOURCE = "\n".join(f"def function_{i}(value):\n    return value + {i}\n" for i in range(20))
WHEEL = Package(name="fruit", version="1.0", licence="MIT", kind="pypi")
ARCHIVE = Package(name="@scope/nuts", version="2.0", licence="ISC", kind="npm", split="held-out")


def other_source(word: str) -> str:
    return "\n".join(f"class {word}{i}:\n    {word} = '{word}'\n    size_of_{word} = {i}\n" for i in range(20))


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """Downloads of both packages, as a complete run leaves them."""
    wheel = tmp_path / "downloads" / "pypi" / "fruit-1.0"
    wheel.mkdir(parents=True)
    with zipfile.ZipFile(wheel / "fruit-1.0-py3-none-any.whl", "w") as file:
        file.writestr("fruit/apple.py", SOURCE)
        file.writestr("fruit/copy_of_apple.py", SOURCE.replace("    ", "\t"))
        file.writestr("fruit/latin.py", (SOURCE + "# größe").encode("latin-1"))
        file.writestr("fruit/copy_of_index.py", other_source("nut"))
    archive = tmp_path / "downloads" / "npm" / "@scope__nuts-2.0"
    archive.mkdir(parents=True)
    with tarfile.open(archive / "scope-nuts-2.0.tgz", "w:gz") as file:
        for name, text in (("package/src/index.ts", other_source("nut")), ("package/README.md", SOURCE)):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            file.addfile(member, io.BytesIO(text.encode()))
    return tmp_path / "downloads"


def test_gathering_keeps_good_files_once_and_counts_the_rest(downloads, tmp_path) -> None:
    manifest = Manifest(packages=(WHEEL, ARCHIVE))
    report = gather(manifest, tmp_path, allow_missing=False, console=Console(quiet=True))
    documents = load_documents(tmp_path)
    assert [(document.project, document.path, document.split) for document in documents] == [
        ("npm:@scope/nuts", "src/index.ts", "held-out"),
        ("pypi:fruit", "fruit/apple.py", "train"),
    ]
    assert report.num_documents == 2
    assert report.left_out == {"exact copy": 2, "not UTF-8": 1, "project already large": 0}
    assert report.bytes_by_language.keys() == {"typescript", "python"}


def test_a_package_that_cannot_be_had_fails_the_command_unless_allowed(downloads, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(corpus.DOWNLOADERS, "pypi", lambda package: [sys.executable, "-c", "raise SystemExit('gone')"])
    lost = Package(name="lost", version="1", licence="MIT", kind="pypi")
    manifest = Manifest(packages=(WHEEL, lost))
    with pytest.raises(CorpusError, match=r"1 of 2 packages could not be had: lost; .*pass --allow-missing"):
        gather(manifest, tmp_path, allow_missing=False, console=Console(quiet=True))
    report = gather(manifest, tmp_path, allow_missing=True, console=Console(quiet=True))
    assert "gone" in report.missing["lost"]


def test_an_interrupted_download_is_begun_again(tmp_path, monkeypatch) -> None:
    write = "import pathlib; pathlib.Path('a.whl').write_text('whole')"
    monkeypatch.setitem(corpus.DOWNLOADERS, "pypi", lambda package: [sys.executable, "-c", write])
    partial = tmp_path / "pypi" / "fruit-1.0.partial"
    partial.mkdir(parents=True)
    (partial / "half.whl").write_text("half")
    assert fetch(WHEEL, tmp_path).read_text() == "whole"
    assert not partial.exists()
    monkeypatch.setitem(corpus.DOWNLOADERS, "pypi", lambda package: ["/nowhere/at/all"])
    assert fetch(WHEEL, tmp_path).read_text() == "whole", "what is there is not downloaded again"


def test_a_download_folder_without_its_archive_is_named(tmp_path) -> None:
    (tmp_path / "pypi" / "fruit-1.0").mkdir(parents=True)
    with pytest.raises(CorpusError, match="holds 0 archives; expected 1; remove the folder and run again"):
        fetch(WHEEL, tmp_path)


def test_a_damaged_archive_counts_as_missing(downloads, tmp_path) -> None:
    (downloads / "pypi" / "fruit-1.0" / "fruit-1.0-py3-none-any.whl").write_bytes(b"PK nothing")
    report = gather(Manifest(packages=(WHEEL, ARCHIVE)), tmp_path, allow_missing=True, console=Console(quiet=True))
    assert list(report.missing) == ["fruit"]


@pytest.fixture
def debian(tmp_path: Path) -> Package:
    """A Debian package as apt-get leaves it: `dpkg-deb` packs it, so the test needs a Debian machine."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not here")
    root = tmp_path / "root"
    files = {
        "usr/share/gocode/src/example.org/nut/nut.go": SOURCE,
        "usr/share/cargo/registry/nut-1.0/src/lib.rs": other_source("rust"),
        "usr/include/nut/nut.hpp": other_source("header"),
        "usr/share/doc/nut/README": SOURCE,
        "DEBIAN/control": "Package: nut\nVersion: 1:2.0-1\nArchitecture: all\nMaintainer: N\nDescription: n\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    folder = tmp_path / "downloads" / "debian" / "nut-1:2.0-1"
    folder.mkdir(parents=True)
    command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(folder / "nut_2.0-1_all.deb")]
    subprocess.run(command, check=True, capture_output=True)
    return Package(name="nut", version="1:2.0-1", licence="MIT", kind="debian")


def test_a_debian_package_gives_its_source_by_the_paths_people_know(debian, tmp_path) -> None:
    gather(Manifest(packages=(debian,)), tmp_path, allow_missing=False, console=Console(quiet=True))
    found = {document.path: document.language for document in load_documents(tmp_path)}
    assert found == {"example.org/nut/nut.go": "go", "src/lib.rs": "rust", "nut/nut.hpp": "cpp"}


def test_a_damaged_debian_package_counts_as_missing(debian, tmp_path) -> None:
    (archive,) = (tmp_path / "downloads" / "debian" / "nut-1:2.0-1").iterdir()
    archive.write_bytes(b"!<arch>")
    with pytest.raises(CorpusError, match="dpkg-deb could not unpack it"):
        list(read_debian(debian, tmp_path / "downloads"))


def test_a_header_is_cpp_when_it_uses_words_of_cpp() -> None:
    assert language_of("a/b.h", "struct point { int x; };\n") == "c"
    assert language_of("a/b.h", "template <typename T> struct point { T x; };\n") == "cpp"
    assert language_of("a/b.c", "int class = 0;\n") == "c"


def test_a_full_disk_is_named_and_leaves_no_half_a_corpus(downloads, tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(
        CorpusError, match=r"documents.msgpack cannot be written \(No space left on device\); expected room"
    ):
        gather(Manifest(packages=(WHEEL, ARCHIVE)), tmp_path, allow_missing=False, console=Console(quiet=True))
    assert not (tmp_path / "documents.msgpack").exists()


def test_an_empty_corpus_is_refused(tmp_path) -> None:
    with pytest.raises(CorpusError, match="the corpus is empty"):
        gather(Manifest(packages=()), tmp_path, allow_missing=True, console=Console(quiet=True))


def test_a_missing_and_a_damaged_corpus_are_named(tmp_path) -> None:
    with pytest.raises(CorpusError, match=r"run `python -m engine\.training corpus`"):
        load_documents(tmp_path)
    (tmp_path / "documents.msgpack").write_bytes(b"\xc1")
    with pytest.raises(CorpusError, match="is damaged"):
        load_documents(tmp_path)


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("a/b.py", SOURCE, None),
        ("a/_vendor/b.py", SOURCE, "vendored or data folder"),
        ("dist/b.js", SOURCE, "vendored or data folder"),
        ("a/b_pb2.py", SOURCE, "generated"),
        ("a/b.min.js", SOURCE, "generated"),
        ("a/b.py", "# Generated by a tool. Do not edit.\n" + SOURCE, "generated"),
        ("a/b.js", 'Object.defineProperty(exports, "__esModule", {});\n' + SOURCE, "generated"),
        ("a/b.py", SOURCE + "x = '" + "y" * 2000 + "'\n", "long lines"),
        ("a/b.py", "1, 2, 3, 4, 5, 6\n" * 50, "mostly data"),
        ("a/b.py", "x = 1\n", "too short"),
        ("a/b.py", SOURCE + "\0", "not UTF-8"),
        ("a/b.py", SOURCE * 500, "too large"),
        ("a/b.pb.go", SOURCE, "generated"),
        ("a/b.h", "#import <UIKit/UIKit.h>\n" + SOURCE, "another language"),
        ("a/b.py", SOURCE + "# as in HumanEval\n", "mentions an evaluation set"),
    ],
)
def test_files_that_teach_nothing_are_left_out(path, text, reason) -> None:
    assert reason_to_leave_out(path, text.encode()) == reason


def test_most_test_files_are_left_out() -> None:
    reasons = [reason_to_leave_out(f"a/tests/test_{i}.py", SOURCE.encode()) for i in range(200)]
    assert 20 < reasons.count(None) < 80


def test_near_copies_are_recognised_and_different_files_are_not() -> None:
    deduplicator = Deduplicator()
    assert deduplicator.reason_to_leave_out(SOURCE) is None
    assert deduplicator.reason_to_leave_out(SOURCE + "# one more line here\n") == "near copy"
    assert deduplicator.reason_to_leave_out(other_source("pear")) is None


def test_large_projects_are_thinned_out_the_same_way_every_time(documents) -> None:
    budget = sum(len(document.text) for document in documents) // 2
    kept = thin_out(documents, budget)
    assert 0 < sum(len(document.text) for document in kept) <= budget
    assert kept == thin_out(documents, budget)
    assert kept == [document for document in documents if document in kept]
