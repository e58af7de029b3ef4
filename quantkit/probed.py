"""What happens where a plugin of others is tried? Run by `quantkit.probing`, in a process that does nothing else.

Apart from it, because this side needs discovery, and discovery needs the other side.
"""

import faulthandler
import json
import os
import sys
import tempfile
import threading
import time
from contextlib import suppress

from quantkit.discovery import Plugins
from quantkit.probing import Candidate

BUSIEST = 4.0
"""By how much patience grows at most where the machine is busy."""
LONGEST_ANSWER = 2000


def answer(given: dict[str, object], began: float) -> None:
    """Import one plugin, say on stdout what became of it, and leave without running what it put off to the end."""
    busy = min(max((time.perf_counter() - began) / max(time.process_time(), 0.01), 1.0), BUSIEST)
    sink = tempfile.TemporaryFile()  # noqa: SIM115  # for as long as the process lives
    channel = os.dup(1)
    os.dup2(sink.fileno(), 1)
    faulthandler.dump_traceback_later(float(str(given["patience_s"])) * busy, exit=True, file=channel)
    fault = Plugins().fault_of(Candidate(str(given["name"]), str(given["value"]), str(given["distribution"])))
    started = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    if started and not fault:
        fault = f"starts the thread {started[0]!r} when it is imported; start it in a hook"
    faulthandler.cancel_dump_traceback_later()
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    said = {"fault": fault[:LONGEST_ANSWER], "printed": os.fstat(1).st_size}
    os.write(channel, json.dumps(said).encode())
    os._exit(0)
