"""A neighbour that takes memory.

Every line of its input, BYTES and BYTES_A_SECOND, is a size to grow to, or to shrink to at once; it says when it has.
"""

import mmap
import sys
import time

_STEP_S = 0.001
_MOST_BYTES = 2**30


def main() -> None:
    memory, held = mmap.mmap(-1, _MOST_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), 0
    print(held, flush=True)
    for line in sys.stdin:
        wanted, rate_bps = (int(float(word)) // mmap.PAGESIZE * mmap.PAGESIZE for word in line.split())
        began, first = time.monotonic(), held
        while held < wanted:
            due = min(wanted, first + int((time.monotonic() - began + _STEP_S) * rate_bps))
            for at in range(held, due, mmap.PAGESIZE):
                memory[at] = 1
            held += -(-(due - held) // mmap.PAGESIZE) * mmap.PAGESIZE
            time.sleep(_STEP_S)
        if held > wanted:
            memory.madvise(mmap.MADV_DONTNEED, wanted, held - wanted)
            held = wanted
        print(held, flush=True)


if __name__ == "__main__":
    main()
