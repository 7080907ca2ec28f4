"""Looks at a process's resident memory a thousand times a second, until a line is read; prints [[time s, bytes], ...].

python _edge_watch.py PID; times are of the system's monotonic clock.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

_PAUSE_S, _AFTER_S = 0.001, 0.1


def main() -> None:
    statm, page = Path(f"/proc/{int(sys.argv[1])}/statm"), os.sysconf("SC_PAGE_SIZE")
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), over.set()), daemon=True).start()
    print("looks", flush=True)
    rows, end_s = [], float("inf")
    while time.monotonic() < end_s:
        rows.append((time.monotonic(), int(statm.read_text().split()[1]) * page))
        if over.is_set() and end_s == float("inf"):
            end_s = time.monotonic() + _AFTER_S
        time.sleep(_PAUSE_S)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
