"""Plugins that are broken in one way each, and what a command must say about it."""

import textwrap
from pathlib import Path

HEAD = """
from dataclasses import dataclass
from quantkit import AdapterPlan, MethodInfo, QuantizationPlan, QuantizationSpec, Stage, hookimpl

@dataclass(frozen=True)
class Options:
    group_size: int = 64
"""
DECLARED = """
@hookimpl
def declare_method():
    return MethodInfo(name="TOY", summary="a toy", options=Options)
"""
GOOD = f"{HEAD}{DECLARED}"

BROKEN: dict[str, tuple[str, str]] = {
    "raises": (f"{GOOD}\nraise RuntimeError('no licence')", "does not import: RuntimeError: no licence"),
    "needs what is not there": (f"import a_package_of_nobody\n{GOOD}", "No module named 'a_package_of_nobody'"),
    "sleeps": (
        f"import time\ntime.sleep(3600)\n{GOOD}",
        "takes longer than 0.5 s to import (it stood in toy_plugin.py line 2)",
    ),
    "computes without end": (f"sum(iter(int, 1))\n{GOOD}", "takes longer than 0.5 s to import"),
    "makes huge things": (f"things = [[0] * 1000 for _ in iter(int, 1)]\n{GOOD}", "takes longer than 0.5 s to import"),
    "sys.exit": (f"import sys\nsys.exit(3)\n{GOOD}", "calls sys.exit(3) when it is imported"),
    "os._exit": (f"import os\nos._exit(0)\n{GOOD}", "ends the process when it is imported (exit code 0)"),
    "aborts": (f"import os\nos.abort()\n{GOOD}", "ends the process when it is imported (by SIGABRT)"),
    "recursion": (f"def f():\n    return f()\nf()\n{GOOD}", "does not import: RecursionError"),
    "starts a thread": (
        f"import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), name='mine').start()\n{GOOD}",
        "starts the thread 'mine' when it is imported",
    ),
    "asks for the methods": (
        f"from quantkit.methods import installed_methods\ninstalled_methods()\n{GOOD}",
        "a plugin asks for the installed methods while it is imported",
    ),
    "runs quantkit": (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'quantkit_tools.cli', 'methods'], check=True, capture_output=True)\n" + GOOD,
        "does not import: CalledProcessError",
    ),
    "prints": (
        f"import os\nprint('hello')\nos.write(1, b'hello from below')\n{GOOD}",
        "prints 22 bytes when it is imported; they go to stderr",
    ),
    "misspelt hook": (
        f"{GOOD}\n@hookimpl\ndef quantise_model(plan, model):\n    return model",
        "implements the unknown hook 'quantise_model'. Did you mean 'quantize_model'?",
    ),
    "wrong signature": (f"{GOOD}\n@hookimpl\ndef prepare_model(model, lora_rank):\n    return model", "lora_rank"),
    "wrong return type": (
        f"{HEAD}\n@hookimpl\ndef declare_method():\n    return {{'name': 'TOY'}}",
        "declare_method returned dict, not a MethodInfo",
    ),
    "declares without end": (
        f"{HEAD}\n@hookimpl\ndef declare_method():\n    while True: pass",
        "takes longer than 0.5 s to import (it stood in toy_plugin.py line",
    ),
    "options that are none": (
        GOOD.replace("options=Options", "options=dict"),
        "MethodInfo.options of TOY is <class 'dict'>, not a dataclass",
    ),
    "options with unknown types": (
        GOOD.replace("group_size: int", "group_size: 'Tensor'"),
        "has an annotation that cannot be read: NameError: name 'Tensor' is not defined",
    ),
    "options without plain defaults": (
        GOOD.replace("group_size: int = 64", "where: object = object()"),
        "the default of where is no plain value: TypeError",
    ),
    "requirements that are none": (
        GOOD.replace("options=Options", "options=Options, requirements=('a toy, or two',)"),
        "holds 'a toy, or two', which is no requirement",
    ),
    "takes a shipped method": (GOOD.replace("TOY", "QLORA"), "two plugins own the method 'QLORA'"),
    "takes a shipped format": (
        GOOD.replace("options=Options", "options=Options, claims=('dense',)"),
        "claims dense checkpoints, which NoQuant of plugin 'NoQuant' of quantkit",
    ),
    "points to nothing": ("", "does not import: AttributeError"),
}
"""How it is broken → its module, and words of the one line that names it."""
WORKS = ("prints",)
"""What is named and still works."""


def install(site: Path, how: str, module: str = "toy_plugin") -> Path:
    """Install one broken plugin as a distribution of its own in a new folder, which is returned."""
    source, _ = BROKEN[how]
    name = "QLORA" if how == "takes a shipped method" else "TOY"
    info = site / f"{module}-2.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 2.5\n")
    value = f"{module}:nothing" if how == "points to nothing" else module
    (info / "entry_points.txt").write_text(f"[quantkit]\n{name} = {value}\n")
    (site / f"{module}.py").write_text(textwrap.dedent(source))
    return site
