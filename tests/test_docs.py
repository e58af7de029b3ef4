"""Does what the documentation says hold: every hook with its signature, every block of it runs, every name exists?"""

import ast
import doctest
import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from quantkit import hookspecs
from quantkit.discovery import DECLARED
from quantkit.methods import DISPATCHED, Methods, Source
from tests.plugins.example import README, readme_block, readme_blocks

ROOT = Path(__file__).parent.parent
HOOKS = (*DECLARED, *DISPATCHED)
PACKAGES = ("quantkit", "plugins/quantkit_plugins", "registry/quantkit_registry", "tools/quantkit_tools")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def signature(hook: str) -> str:
    """Return the hook as `def name(parameters) -> type`, as hookspecs.py has it."""
    function = ast.parse(inspect.getsource(getattr(hookspecs, hook))).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert function.returns is not None
    return f"def {hook}({ast.unparse(function.args)}) -> {ast.unparse(function.returns)}"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_stands_in_the_readme_with_its_exact_signature(hook):
    assert signature(hook) in [block.strip() for block in readme_blocks("python")]


def test_the_readme_names_no_hook_that_does_not_exist_and_keeps_their_order():
    written = re.findall(r"^def (\w+)\(.*\) -> .*$", "\n".join(b for b in readme_blocks("python") if b.count("\n") == 1), re.M)
    assert tuple(written) == HOOKS


def test_the_hooks_are_those_that_can_be_dispatched():
    specified = [name for name, item in vars(hookspecs).items() if hasattr(item, "quantkit_spec")]
    assert tuple(specified) == HOOKS


def test_the_readmes_entry_point_names_the_readmes_method():
    points = tomllib.loads(readme_block("toml", "quantkit-myrtn"))["project"]["entry-points"]["quantkit"]
    assert points == {"MyRTN": "quantkit_myrtn"}
    assert 'name="MyRTN"' in readme_block("python", "class RtnOptions")


def test_the_readmes_wrapper_is_a_plugin_and_wraps_every_method(capsys):
    from torch import nn

    from quantkit import AdapterPlan, PlanContext
    from quantkit.methods import installed_methods

    watcher = ModuleType("watcher")
    exec(readme_block("python", "wrapper=True"), vars(watcher))
    methods = Methods()
    known = installed_methods()
    methods.register(known._owners["NoQuant"], Source("NoQuant", "quantkit 0"))
    methods.register(watcher, Source("Watcher", "watcher 1"))
    assert methods.broken == {}
    plan = methods.plan("NoQuant", {}, PlanContext(adapter=AdapterPlan()))
    methods.quantize_model(plan, nn.Linear(1, 1))
    assert re.fullmatch(r"NoQuant took 0\.\d s\n", capsys.readouterr().out)


def test_what_the_readme_mentions_exists():
    for dotted in re.findall(r"`(quantkit(?:\.\w+)+)`", README.read_text()):
        module, _, name = dotted.rpartition(".")
        try:
            assert hasattr(import_module(module), name) or import_module(dotted), dotted
        except ModuleNotFoundError:
            import_module(dotted)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_answers_and_is_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text)) or not text.strip()


def test_every_public_function_and_class_has_a_docstring():
    without = []
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                without.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert without == []


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if re.search(r"^\s+>>> ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_examples_in_docstrings_hold(path):
    module = import_module(
        ".".join(path.relative_to(ROOT).with_suffix("").parts[path.relative_to(ROOT).parts[0] != "quantkit" :])
    )
    assert doctest.testmod(module).failed == 0


def test_no_path_of_one_machine_stands_in_the_sources():
    for path in SOURCES:
        assert not re.search(r"(?<![\w.])/(work|home|root|mnt|tmp)/", path.read_text(encoding="utf-8")), path
