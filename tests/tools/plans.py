"""What `quantkit plan` answers, as data."""

import json
from typing import Any

from quantkit_tools.plan import main


def answered(capsys: Any, *arguments: str, code: int = 0) -> Any:
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)
