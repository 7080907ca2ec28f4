"""The agent: the process on a device that keeps its model answering."""

import sys

# httpx's command line, of no use here, would bring rich and pygments into memory: 4 MB.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: it cannot be imported
