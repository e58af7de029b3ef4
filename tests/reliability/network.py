"""No network: a namespace of its own without interfaces where the system allows that, and a socket that raises everywhere."""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

INTERNET = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto")


@cache
def without_network() -> tuple[str, ...]:
    """Return what is put before a command to take its network away; empty where the system allows no namespace."""
    command = ("unshare", "--map-root-user", "--net")
    if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
        return command
    return ()


def forbid_network() -> list[str]:
    """Make every attempt to reach a host raise; return the list that attempts are written to."""
    tried: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        reaches_host = event == "socket.connect" and isinstance(arguments[1], tuple)  # a text is a socket of this machine
        if event in INTERNET or reaches_host:
            tried.append(f"{event} {arguments[-4:]}")
            raise ConnectionError(f"{event}: there is no network here")

    sys.addaudithook(watch)
    return tried


def road(model: str, rows: str, out: Path) -> dict[str, Any]:
    """Carry out what the demo does, with a tiny model; return each verb's exit code."""
    from quantkit_tools import cli

    name, root = "Tiny-Llama-openmath_SFT_LoRa2_QLORA_w4_headbf16", str(out / "artifacts")
    data = f"openmath:{rows}"
    training = ["--model-name-or-path", model, "--dataset-name", data, "--quant-method", "QLORA", "--lora-r", "2"]
    merged = f"{root}/{name}_mergedbf16"
    steps = {
        "preflight": ["--model-name-or-path", model, "--dataset-name", data],
        "train": [*training, "--max-steps", "2", "--merge-after-train", "false", "--output-dir", root],
        "merge": [f"{root}/{name}", "--dst", root],
        "quantize": ["--src", merged, "--quant-method", "RTN", "--dst", root],
        "evaluate": [merged, "--data", data, "--registry", root, "--max-new-tokens", "8", "--limit", "4"],
        "report": ["--registry", root, "--html", str(out / "report.html")],
        "registry": ["ls", "--root", root],
        "audit": [root],
    }
    return {verb: cli.run_verb(verb, arguments) for verb, arguments in steps.items()}


if __name__ == "__main__":
    attempts = forbid_network()
    done = road(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    Path(sys.argv[3], "told.json").write_text(json.dumps({"codes": done, "tried": attempts}))
