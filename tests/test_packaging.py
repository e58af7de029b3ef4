"""The wheel installs and works outside the checkout, and brings no package whose name others use."""

import subprocess
import sys
import tomllib
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from quantkit.methods import installed_methods

ROOT = Path(__file__).parent.parent
PACKAGES = {"quantkit", "quantkit_plugins", "quantkit_registry", "quantkit_tools"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_four_packages_and_nothing_else(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    info = {name for name in names if name.endswith(".dist-info")}
    assert names - info == PACKAGES


def test_the_wheel_carries_licence_and_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for package in PACKAGES:
        assert f"{package}/py.typed" in names


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Not inside functions either: what two modules need of each other belongs into a third."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=True)
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


def test_every_method_works_after_a_plain_install_but_the_two_that_name_their_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = {Requirement(text).name for text in project["dependencies"]}
    needs = {name: installed_methods().info(name).requirements for name in project["entry-points"]["quantkit"]}
    lacking = {name for name, texts in needs.items() if not {Requirement(text).name for text in texts} <= installed}
    assert lacking == {"TorchAO", "AutoRound"}
    assert {"torchao", "autoround"} <= set(project["optional-dependencies"])


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Installed into a folder of its own, ahead of the checkout's packages, with the dependencies of this environment."""
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        f"import sys; sys.path[:] = [{str(site)!r}] + [item for item in sys.path if not item.startswith({str(ROOT)!r})"
        " or 'site-packages' in item]\n"
        "import quantkit, quantkit_tools.cli as cli\n"
        f"assert quantkit.__file__.startswith({str(site)!r}), quantkit.__file__\n"
        "sys.exit(cli.main(['methods']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "QLORA" in done.stdout
    assert "does not import" not in done.stdout + done.stderr


def test_version_is_written_once() -> None:
    """pyproject.toml and the package state the same version."""
    import tomllib

    from quantkit import __version__

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
