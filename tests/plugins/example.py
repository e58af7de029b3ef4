"""The MyRTN package of plugins/README.md, built as a wheel of its own and put on the path like an installed one."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

README = Path(__file__).parents[2] / "plugins" / "README.md"


def readme_blocks(language: str) -> list[str]:
    """Return the fenced blocks of one language in plugins/README.md, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def readme_block(language: str, mark: str) -> str:
    """Return the one block of a language that contains `mark`."""
    (block,) = [text for text in readme_blocks(language) if mark in text]
    return block


def build_distribution(folder: Path) -> Path:
    """Build the package with its own build backend, without a network, and return a folder to put on `sys.path`."""
    project, site = folder / "project", folder / "site"
    project.mkdir(parents=True)
    (project / "pyproject.toml").write_text(readme_block("toml", "quantkit-myrtn"))
    (project / "quantkit_myrtn.py").write_text(readme_block("python", "class RtnOptions"))
    build = "from hatchling.build import build_wheel; print(build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(project.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site
