import pytest

from engine.training.errors import ManifestError
from engine.training.manifest import MANIFEST_PATH, load_manifest

PACKAGE = '[[packages]]\nname = "a"\nversion = "1"\nlicence = "{}"\nkind = "pypi"\nsplit = "train"\n'


def test_the_manifest_of_the_starter_model_is_permissive_and_holds_out_whole_projects() -> None:
    packages = load_manifest(MANIFEST_PATH).packages
    assert {package.kind for package in packages} == {"stdlib", "pypi", "npm", "debian"}
    assert {package.kind for package in packages if package.split == "held-out"} == {"pypi", "npm", "debian"}
    assert all(package.version for package in packages)
    names = [(package.kind, package.name) for package in packages]
    assert len(names) == len(set(names))


def test_a_licence_that_is_not_permissive_is_refused(tmp_path) -> None:
    path = tmp_path / "manifest.toml"
    path.write_text(PACKAGE.format("MIT AND LGPL-3.0-only"))
    with pytest.raises(
        ManifestError, match=r"a is under 'MIT AND LGPL-3\.0-only'.*got LGPL-3\.0-only; remove the package"
    ):
        load_manifest(path)


def test_a_misspelt_field_is_refused_with_its_place(tmp_path) -> None:
    path = tmp_path / "manifest.toml"
    path.write_text(PACKAGE.format("MIT") + 'licens = "MIT"\n')
    with pytest.raises(ManifestError, match=r"unknown field `licens`.*packages\[0\]|unknown field `licens`"):
        load_manifest(path)


def test_a_missing_manifest_is_named(tmp_path) -> None:
    with pytest.raises(ManifestError, match=r"nowhere\.toml: cannot be read"):
        load_manifest(tmp_path / "nowhere.toml")
