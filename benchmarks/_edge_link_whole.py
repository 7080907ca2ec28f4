"""What sending the whole model each time takes: a process that fetches a file for every line it is given.

python _edge_link_whole.py: reads URLs, answers each with the seconds until all of it was there.
"""

import sys
import time

import httpx

with httpx.Client(timeout=120) as client:
    for line in sys.stdin:
        start = time.perf_counter()
        client.get(line.strip()).raise_for_status()
        print(time.perf_counter() - start, flush=True)
