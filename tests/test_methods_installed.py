"""Are methods of installed distributions found, added and left out, and does a broken one cost only itself?"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from quantkit.errors import UnknownMethodError
from quantkit.methods import Methods, installed_methods

ROOT = Path(__file__).parent.parent


def install(site: Path, distribution: str, entry_points: dict[str, str], **modules: str) -> None:
    """Write a fake installed distribution: dist-info and modules."""
    info = site / f"{distribution.replace('-', '_')}-2.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.5\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[quantkit]", *lines]) + "\n")
    for name, text in modules.items():
        (site / f"{name}.py").write_text(textwrap.dedent(text))


TOY_MODULE = """
    from dataclasses import dataclass
    from quantkit import MethodInfo, hookimpl

    @dataclass(frozen=True)
    class Options:
        pass

    @hookimpl
    def declare_method():
        return MethodInfo(name={name!r}, summary="a toy", options=Options)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed distributions, first on the path; modules loaded from it are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("toy_"):
            del sys.modules[name]


def test_an_installed_distribution_adds_its_method_after_the_shipped_ones(site):
    install(site, "toy-dist", {"TOY": "toy_good"}, toy_good=TOY_MODULE.format(name="TOY"))
    methods = Methods.discover()
    assert methods.names[-1] == "TOY"
    assert str(methods.source("TOY")) == "plugin 'TOY' of toy-dist 2.5"


def test_an_import_that_fails_costs_only_its_own_method(site):
    install(site, "toy-dist", {"TOY": "toy_bad"}, toy_bad="import a_package_that_is_not_there")
    methods = Methods.discover()
    assert "QLORA" in methods.names
    text = "plugin 'TOY' of toy-dist 2.5 does not import: ModuleNotFoundError: No module named 'a_package_that_is_not_there'"
    assert methods.broken == {"TOY": text}
    with pytest.raises(UnknownMethodError, match="method 'TOY' is not available: plugin 'TOY' of toy-dist"):
        methods.info("TOY")


def test_a_shipped_method_is_not_taken_over(site):
    install(site, "a-dist", {"QLORA": "toy_thief"}, toy_thief=TOY_MODULE.format(name="QLORA"))
    methods = Methods.discover()
    assert methods.source("QLORA").distribution.startswith("quantkit ")
    assert "two plugins own the method 'QLORA'" in methods.broken["QLORA"]
    assert "a-dist 2.5" in methods.broken["QLORA"]


@pytest.mark.parametrize("disabled", ["TOY", "toy-dist", "other, TOY"])
def test_a_plugin_is_left_out_by_name_or_distribution(site, monkeypatch, disabled):
    install(site, "toy-dist", {"TOY": "toy_off"}, toy_off=TOY_MODULE.format(name="TOY"))
    monkeypatch.setenv("QUANTKIT_DISABLE_PLUGINS", disabled)
    assert "TOY" not in Methods.discover().names


def test_removing_one_module_and_one_entry_point_removes_a_shipped_method(tmp_path):
    """The tree without QLORA still plans, names and lists everything else."""
    import shutil
    import tomllib

    for source in ("quantkit", "plugins/quantkit_plugins", "registry/quantkit_registry", "tools/quantkit_tools"):
        shutil.copytree(ROOT / source, tmp_path / Path(source).name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "quantkit_plugins" / "qlora.py").unlink()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = {name: value for name, value in project["entry-points"]["quantkit"].items() if name != "QLORA"}
    install(tmp_path, "quantkit", points)
    script = """
        from quantkit.methods import installed_methods
        from quantkit import PlanContext
        from quantkit_tools.cli import main
        methods = installed_methods()
        assert "QLORA" not in methods.names
        assert {"BNB4BIT", "INT8", "NoQuant", "RTN"} <= set(methods.names), methods.names
        assert not methods.broken, methods.broken
        assert methods.plan("BNB4BIT", {}, PlanContext()).spec.weights_bits == 4
        assert main(["methods", "--json"]) == 0
        assert main(["methods", "QLORA"]) == 2
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no method is called 'QLORA'" in done.stderr


def test_methods_are_discovered_once_per_process():
    assert installed_methods() is installed_methods()
