import json
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_groups import memory_group

from meedge_ray.runtime.memory_sources import MemoryReading, MemorySources

MIB = 2**20
NO_LIMIT_V1 = 9223372036854771712
MEMINFO = "MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     400 kB\nBuffers: 0 kB\n"


class Machine:
    """The kernel's files of a made-up machine."""

    def __init__(self, root: Path):
        self.root = root
        self.now_s = 100.0
        self.opened = []

    def write(self, path, text):
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(text))

    def membership(self, text, mounts):
        self.write("/proc/self/cgroup", text)
        lines = (f"31 23 0:28 {inner} {point} rw - {kind} cgroup {options}" for inner, point, kind, options in mounts)
        self.write("/proc/self/mountinfo", "\n".join(("22 1 8:1 / / rw - ext4 /dev/sda1 rw", *lines)) + "\n")

    def v2(self, group="/", inner="/", point="/sys/fs/cgroup"):
        self.membership(f"0::{group}\n", [(inner, point, "cgroup2", "rw,nsdelegate")])

    def v1(self, group="/", inner="/", point="/sys/fs/cgroup/memory"):
        self.membership(f"4:memory:{group}\n1:cpu:/c\n", [(inner, point, "cgroup", "rw,memory")])

    def level2(self, folder, *, limit="max", high="max", used=0, inactive=0, active=0, mapped=0):
        for name, text in (
            ("max", limit),
            ("high", high),
            ("current", used),
            (
                "stat",
                f"anon 1\nfile 2\nfile_mapped {mapped}\ninactive_anon 77\nactive_anon 88\n"
                f"inactive_file {inactive}\nactive_file {active}\n",
            ),
        ):
            self.write(f"{folder}/memory.{name}", f"{text}\n")

    def level1(
        self, folder, *, limit=NO_LIMIT_V1, soft=NO_LIMIT_V1, used=0, inactive=0, active=0, mapped=0, outer=NO_LIMIT_V1
    ):
        for name, text in (
            ("limit_in_bytes", limit),
            ("soft_limit_in_bytes", soft),
            ("usage_in_bytes", used),
            (
                "stat",
                f"mapped_file 2\ninactive_file 1\nactive_file 9\n"
                f"hierarchical_memory_limit {outer}\nhierarchical_memsw_limit 5\n"
                f"total_mapped_file {mapped}\ntotal_inactive_file {inactive}\ntotal_active_file {active}\n",
            ),
        ):
            self.write(f"{folder}/memory.{name}", f"{text}\n")

    def sources(self):
        self.opened.append(MemorySources(root=self.root, clock=lambda: self.now_s))
        return self.opened[-1]

    def close(self):
        for sources in self.opened:
            sources.close()

    def read(self):
        """What is read, the source without the root."""
        reading = self.sources().read()
        source = f"/{Path(reading.source).relative_to(self.root)}"
        return source, reading.limit_bytes, reading.used_bytes


@pytest.fixture
def machine(tmp_path):
    with closing(Machine(tmp_path)) as machine:
        yield machine


def test_a_machine_without_groups_tells_what_is_available(machine):
    machine.write("/proc/meminfo", MEMINFO)
    assert machine.read() == ("/proc/meminfo", 1000 * 1024, 600 * 1024)


def test_nothing_at_all_tells_nothing(machine):
    sources = machine.sources()
    assert sources.read() is None
    assert sources.pressure() is None


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"limit": 100, "used": 60, "inactive": 20}, ("memory.max", 100, 40)),
        ({"limit": 100, "used": 60, "inactive": 20, "active": 15, "mapped": 4}, ("memory.max", 100, 29)),
        ({"limit": 100, "used": 60, "inactive": 20, "active": 4, "mapped": 15}, ("memory.max", 100, 40)),
        ({"limit": 100, "high": 90, "used": 60}, ("memory.high", 90, 60)),
        ({"limit": "max", "high": 90, "used": 60}, ("memory.high", 90, 60)),
        ({"limit": 0, "used": 60}, ("memory.max", 0, 60)),
        ({"limit": 100, "used": 5, "inactive": 20}, ("memory.max", 100, 0)),
    ],
)
def test_version_2_bounds_by_the_lower_of_max_and_high(machine, limits, expected):
    machine.v2("/device")
    machine.level2("/sys/fs/cgroup/device", **limits)
    source, limit_bytes, used_bytes = machine.read()
    assert (source.removeprefix("/sys/fs/cgroup/device/"), limit_bytes, used_bytes) == expected


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_without_a_limit_leaves_the_machines_memory(machine, version):
    getattr(machine, f"v{version}")("/device")
    getattr(machine, f"level{version}")(f"/sys/fs/cgroup{'/memory' if version == 1 else ''}/device", used=10**9)
    machine.write("/proc/meminfo", MEMINFO)
    assert machine.read()[0] == "/proc/meminfo"


def test_version_1_bounds_by_limit_and_announces_by_the_soft_limit(machine):
    machine.v1("/device")
    folder = "/sys/fs/cgroup/memory/device"
    machine.level1(folder, limit=100, used=60, inactive=20)
    assert machine.read() == (f"{folder}/memory.limit_in_bytes", 100, 40)
    machine.level1(folder, limit=100, soft=70, used=60)
    assert machine.read() == (f"{folder}/memory.soft_limit_in_bytes", 70, 60)


def test_the_soft_limit_of_a_group_around_does_not_bound(machine):
    machine.v1("/a/device")
    machine.level1("/sys/fs/cgroup/memory/a", soft=50, used=10)
    machine.level1("/sys/fs/cgroup/memory/a/device", limit=100, used=10)
    assert machine.read()[1:] == (100, 10)


def test_a_limit_around_that_is_out_of_sight_is_heeded(machine):
    machine.v1("/elsewhere/device", inner="/elsewhere/device")
    machine.level1("/sys/fs/cgroup/memory", used=30, outer=80)
    assert machine.read() == ("/sys/fs/cgroup/memory/memory.stat", 80, 30)


@given(levels=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=4), version=...)
def test_the_group_with_least_left_bounds(tmp_path_factory, levels, version: bool):
    machine = Machine(tmp_path_factory.mktemp("machine"))
    kind = 2 if version else 1
    group = ""
    mount = f"/sys/fs/cgroup{'/memory' if kind == 1 else ''}"
    for number, (limit, used) in enumerate(levels):
        group += f"/g{number}"
        getattr(machine, f"level{kind}")(mount + group, limit=limit, used=used)
    getattr(machine, f"v{kind}")(group)
    sources = machine.sources()
    reading = sources.read()
    sources.close()
    assert reading.free_bytes == min(max(0, limit - used) for limit, used in levels)
    assert (reading.limit_bytes, reading.used_bytes) in levels


def test_groups_of_both_versions_are_found_where_they_are_mounted(machine):
    machine.membership(
        "4:cpu,memory:/old\n1:name=systemd:/s\n0::/new\n",
        [("/", "/mnt/my\\040groups", "cgroup", "rw,cpu,memory"), ("/", "/mnt/unified", "cgroup2", "rw")],
    )
    machine.level1("/mnt/my groups/old", limit=100, used=10)
    machine.write("/mnt/unified/new/memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    assert machine.read() == ("/mnt/my groups/old/memory.limit_in_bytes", 100, 10)
    assert machine.sources().pressure() is None
    machine.level2("/mnt/unified/new", limit=50, used=10)
    assert machine.read() == ("/mnt/unified/new/memory.max", 50, 10)


@pytest.mark.parametrize(
    ("group", "inner", "bound"),
    [
        ("/pod/box", "/pod", "/box"),  # a part of the hierarchy is mounted
        ("/pod", "/pod", ""),  # the group itself is mounted
        ("/gone/box", "/", ""),  # named outside of what is mounted: the nearest that can be seen
        ("/", "/..", ""),  # mounted from around the namespace
        ("/pod2", "/pod", ""),  # named from another namespace
    ],
)
def test_a_group_is_found_through_namespaces(machine, group, inner, bound):
    machine.v2(group, inner)
    machine.level2("/sys/fs/cgroup", limit=100, used=10)
    machine.level2("/sys/fs/cgroup/box", limit=50, used=10)
    assert machine.read()[0] == f"/sys/fs/cgroup{bound}/memory.max"


def test_a_group_beside_the_namespace_is_not_looked_for(machine):
    machine.write("/proc/meminfo", MEMINFO)
    machine.v2("/../other")
    machine.level2("/sys/fs/other", limit=1, used=1)
    machine.level2("/sys/fs/cgroup", limit=1, used=1)
    assert machine.read()[0] == "/proc/meminfo"


def test_a_changed_limit_and_a_changed_group_are_seen_at_the_next_look(machine):
    machine.v2("/a")
    machine.level2("/sys/fs/cgroup/a", limit=100, used=10)
    machine.level2("/sys/fs/cgroup/b", limit=30, used=10)
    sources = machine.sources()
    assert sources.read().limit_bytes == 100
    machine.level2("/sys/fs/cgroup/a", limit=80, used=10)
    assert sources.read().limit_bytes == 80
    machine.v2("/b")
    assert sources.read().limit_bytes == 30


def test_a_limit_set_for_the_first_time_is_found_a_little_later(machine):
    machine.write("/proc/meminfo", MEMINFO)
    machine.v2("/a")
    sources = machine.sources()
    assert sources.read().source.endswith("meminfo")
    machine.level2("/sys/fs/cgroup/a", limit=100, used=10)
    machine.now_s += 10
    assert sources.read().limit_bytes == 100


def test_files_that_vanish_or_say_nonsense_are_passed_over(machine):
    machine.write("/proc/meminfo", MEMINFO)
    machine.v2("/a")
    machine.level2("/sys/fs/cgroup/a", limit=100, used=10)
    sources = machine.sources()
    machine.write("/sys/fs/cgroup/a/memory.current", "")
    assert sources.read().source.endswith("meminfo")
    for name in ("max", "high", "current", "stat"):
        (machine.root / f"sys/fs/cgroup/a/memory.{name}").unlink()
    assert sources.read().source.endswith("meminfo")
    machine.level2("/sys/fs/cgroup/a", limit=90, used=10)
    machine.now_s += 10
    assert sources.read().limit_bytes == 90


def test_no_file_stays_open_however_often_groups_change(machine):
    machine.v2("/a")
    machine.level2("/sys/fs/cgroup/a", limit=100)
    before = len(list(Path("/proc/self/fd").iterdir()))
    sources = machine.sources()
    opened = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        machine.now_s += 10
        sources.read()
    assert len(list(Path("/proc/self/fd").iterdir())) == opened > before
    sources.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def stalled(total_us):
    return f"some avg10=50.00 avg60=1.00 avg300=0.00 total={total_us}\nfull avg10=9 avg60=9 avg300=9 total=999999999\n"


def test_pressure_is_the_share_of_time_stalled_since_the_last_call(machine):
    machine.write("/proc/pressure/memory", stalled(1_000_000))
    sources = machine.sources()
    assert sources.pressure() is None
    machine.now_s += 2
    machine.write("/proc/pressure/memory", stalled(1_500_000))
    assert sources.pressure() == pytest.approx(0.25)
    machine.now_s += 2
    assert sources.pressure() == 0
    assert sources.pressure() is None


def test_the_groups_own_pressure_goes_before_the_machines(machine):
    machine.v2("/a")
    machine.write("/proc/pressure/memory", stalled(0))
    machine.write("/sys/fs/cgroup/a/memory.pressure", stalled(0))
    sources = machine.sources()
    sources.pressure()
    machine.now_s += 1
    machine.write("/sys/fs/cgroup/a/memory.pressure", stalled(800_000))
    assert sources.pressure() == pytest.approx(0.8)
    machine.write("/sys/fs/cgroup/a/memory.pressure", "")  # no longer counted
    machine.now_s += 1
    assert sources.pressure() is None
    machine.now_s += 1
    machine.write("/proc/pressure/memory", stalled(100_000))
    assert sources.pressure() == pytest.approx(0.1)


def test_nothing_is_left_where_more_is_used_than_may_be():
    assert MemoryReading("", 100, 150).free_bytes == 0


CHILD = """
import json, sys
from dataclasses import asdict
from meedge_ray.runtime.memory_sources import MemorySources
sources, held = MemorySources(), []
for line in sys.stdin:
    if int(line):
        held.append(bytearray(b"x") * int(line))
    print(json.dumps(asdict(sources.read())), flush=True)
"""


@contextmanager
def child_in(group):
    command = group.command([sys.executable, "-c", CHILD])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:

        def ask(grow_bytes=0):
            child.stdin.write(f"{grow_bytes}\n")
            child.stdin.flush()
            return MemoryReading(**json.loads(child.stdout.readline()))

        yield ask
        child.stdin.close()


def test_a_child_in_a_real_group_sees_its_limit_its_use_and_what_is_announced():
    with memory_group(64 * MIB) as group, child_in(group) as ask:
        first = ask()
        assert first.limit_bytes == 64 * MIB
        assert str(group.folder.name) in first.source
        assert 0 < first.used_bytes <= group.used_bytes()
        grown = ask(20 * MIB)
        assert grown.used_bytes - first.used_bytes == pytest.approx(20 * MIB, abs=2 * MIB)
        group.announce(48 * MIB)
        assert ask().limit_bytes == 48 * MIB
        assert group.set_limit(40 * MIB)
        assert ask().limit_bytes == 40 * MIB
        assert group.oom_kills() == 0


def test_a_group_kills_who_takes_more_and_is_gone_at_the_end():
    with memory_group(64 * MIB) as group:
        greedy = group.command([sys.executable, "-c", "bytearray(b'x') * 200_000_000"])
        assert subprocess.run(greedy, check=False).returncode == -9
        assert group.oom_kills() == 1
        waiting = subprocess.Popen(group.command(["sh", "-c", "echo; exec sleep 1000"]), stdout=subprocess.PIPE)
        waiting.stdout.readline()
        assert group.pids() == [waiting.pid]
    waiting.stdout.close()
    assert waiting.wait() == -9
    assert not group.folder.exists()
