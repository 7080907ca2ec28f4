import subprocess
import sys

# In a process of its own: in this one other tests' memory comes and goes.
SCRIPT = """
from meedge_ray.runtime.memory import release_to_os, rss_bytes
before = rss_bytes()
held = bytearray(b"x") * 50_000_000
print(rss_bytes() - before)
del held
release_to_os()
print(rss_bytes() - before)
"""


def test_resident_memory_follows_what_is_held():
    said = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    held_bytes, left_bytes = map(int, said.stdout.split())
    assert held_bytes > 40_000_000
    assert left_bytes < 10_000_000


KEPT = """
import resource
from meedge_ray.runtime.memory import freed_memory_kept, rss_bytes

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(50_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = rss_bytes()
with freed_memory_kept():
    bytearray(b"x") * 50_000_000
    print(faults(), rss_bytes() - before)
print(rss_bytes() - before)
"""


def test_kept_memory_is_used_again_and_goes_back_at_the_end():
    said = subprocess.run([sys.executable, "-c", KEPT], check=True, capture_output=True, text=True)
    faults, kept_bytes, left_bytes = map(int, said.stdout.split())
    assert faults < 1000  # new pages would be 12,000
    assert kept_bytes > 40_000_000
    assert left_bytes < 10_000_000
