"""Will something break in this environment, before anything is run in it? (`quantkit doctor`)

One module per place to look: what the machine offers (`machine`), which libraries are installed and whether they want each
other (`libraries`), pairs of versions that are known to break (`pairs`, with a source each), folders and caches (`places`), and
what only shows when it is tried (`trials`, in processes of their own). All but the trials read metadata and device files:
importing torch to find out whether torch can be imported takes seconds and may take the process with it.
"""

from quantkit.doctor.findings import SEVERITIES, Finding

__all__ = ["SEVERITIES", "Finding"]
