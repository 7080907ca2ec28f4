"""apply, get, describe, delete, wait, events against the real API server."""

import io
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_process import ServerProcess, device, serving

from meedge_ray.operator.client.api_client import ApiClient
from meedge_ray.operator.client.resources import DEVICES, EVENTS, NAMESPACES

_SPACES = itertools.count()
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[ApiClient]:
    with ApiClient(server.kubeconfig) as client:
        yield client


@pytest.fixture
def space(client: ApiClient, server: ServerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A namespace of the test's own, which its kubeconfig names."""
    name = f"space-{next(_SPACES)}"
    client.create(NAMESPACES, "", {"metadata": {"name": name}}, manager="test")
    config = tmp_path / "config"
    config.write_text(server.kubeconfig.read_text().replace("namespace: default", f"namespace: {name}"))
    monkeypatch.setenv("KUBECONFIG", str(config))
    return name


def write(path: Path, *objects: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump_all(objects))
    return path


def titles(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()]


def test_apply_creates_configures_and_leaves_alone(meedge: Run, space: str, tmp_path: Path) -> None:
    file = write(tmp_path / "devices.yaml", device("pi-1"), device("pi-2"))
    said = [meedge("apply", "-f", file)]
    said.append(meedge("apply", "-f", file))
    write(file, device("pi-1"), device("pi-2", memory="32Mi"))
    said.append(meedge("apply", "-f", file))
    pair = "edgedevice.meedge.dev/pi-1 {}\nedgedevice.meedge.dev/pi-2 {}\n"
    assert said == [
        (0, pair.format("created", "created"), ""),
        (0, pair.format("unchanged", "unchanged"), ""),
        (0, pair.format("unchanged", "configured"), ""),
    ]


def test_apply_removes_what_is_not_declared_any_more(
    meedge: Run, client: ApiClient, space: str, tmp_path: Path
) -> None:
    meedge("apply", "-f", write(tmp_path / "device.yaml", device("pi-1", horizonMilliseconds=20)))
    assert client.get(DEVICES, space, "pi-1")["spec"]["horizonMilliseconds"] == 20
    meedge("apply", "-f", write(tmp_path / "device.yaml", device("pi-1")))
    assert "horizonMilliseconds" not in client.get(DEVICES, space, "pi-1")["spec"]


def test_apply_takes_folders_lists_json_and_standard_input(
    meedge: Run, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "manifests"
    (folder / "deeper").mkdir(parents=True)
    write(folder / "b.yml", {"apiVersion": "v1", "kind": "List", "items": [device("pi-1"), device("pi-2")]})
    (folder / "a.json").write_text(json.dumps(device("pi-0")))
    (folder / "notes.txt").write_text("no manifest")
    write(folder / "deeper" / "c.yaml", device("pi-9"))
    code, out, _ = meedge("apply", "-f", folder, "-o", "name")
    assert (code, out.split()) == (0, [f"edgedevice.meedge.dev/pi-{number}" for number in (0, 1, 2)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(yaml.safe_dump(device("pi-3"))))
    assert meedge("apply", "-f", "-") == (0, "edgedevice.meedge.dev/pi-3 created\n", "")


def test_a_dry_run_changes_nothing(meedge: Run, client: ApiClient, space: str, tmp_path: Path) -> None:
    file = write(tmp_path / "device.yaml", device("pi-1"))
    assert meedge("apply", "-f", file, "--dry-run") == (0, "edgedevice.meedge.dev/pi-1 created (dry run)\n", "")
    assert client.list(DEVICES, space)["items"] == []
    meedge("apply", "-f", file)
    assert meedge("delete", "-f", file, "--dry-run")[1] == "edgedevice.meedge.dev/pi-1 deleted (dry run)\n"
    assert client.list(DEVICES, space)["items"]


def test_nothing_is_sent_where_one_document_is_wrong(
    meedge: Run, client: ApiClient, space: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "devices.yaml", device("pi-1"), device("pi-2", memory="much", brain=1))
    code, out, err = meedge("apply", "-f", file, "-f", tmp_path / "missing.yaml")
    assert (code, out) == (2, "")
    assert f"error: {file}, document 2, spec.memory: " in err
    assert f"error: {file}, document 2, spec.brain: Forbidden: unknown field" in err
    assert "`meedge explain edgedevice`" in err
    assert f"error: {tmp_path / 'missing.yaml'}: no such file" in err
    assert client.list(DEVICES, space)["items"] == []


def test_somebody_elses_field_is_taken_over_only_when_told_so(
    meedge: Run, client: ApiClient, space: str, tmp_path: Path
) -> None:
    client.apply(DEVICES, space, device("pi-1"), manager="other")
    file = write(tmp_path / "device.yaml", device("pi-1", memory="32Mi"))
    code, _, err = meedge("apply", "-f", file)
    assert code == 1
    assert "--force-conflicts" in err
    assert meedge("apply", "-f", file, "--force-conflicts")[0] == 0


def test_what_the_server_refuses_names_file_and_field(
    meedge: Run, client: ApiClient, space: str, tmp_path: Path
) -> None:
    meedge("apply", "-f", write(tmp_path / "device.yaml", device("pi-1")))
    code, _, err = meedge("apply", "-f", write(tmp_path / "device.yaml", device("pi-1", device="pi-2")))
    assert code == 2
    assert f"{tmp_path / 'device.yaml'}: spec.device: " in err


def test_namespaces_of_document_and_option_must_agree(meedge: Run, space: str, tmp_path: Path) -> None:
    content = device("pi-1")
    content["metadata"]["namespace"] = space
    file = write(tmp_path / "device.yaml", content)
    assert meedge("apply", "-f", file, "-n", "other")[0] == 2
    assert meedge("apply", "-f", file, "-n", space)[0] == 0
    assert titles(meedge("get", "ed", "-n", space)[1]) == ["NAME", "pi-1"]


def test_get_prints_the_servers_table_aligned(meedge: Run, client: ApiClient, space: str) -> None:
    for name in ("pi-1", "a-much-longer-name"):
        client.apply(DEVICES, space, device(name), manager="test")
    code, out, _ = meedge("get", "edgedevices")
    assert code == 0
    header, *rows = out.splitlines()
    assert header.split()[:3] == ["NAME", "DEVICE", "MEMORY"]
    at = header.index("DEVICE")
    assert [row[at:].split()[0] for row in rows] == ["a-much-longer-name", "pi-1"]
    assert all(row[at - 1] == " " for row in rows)
    assert "ADDRESS" in meedge("get", "ed", "-o", "wide")[1]
    assert "ADDRESS" not in header


def test_get_chooses_by_name_label_and_namespace(meedge: Run, client: ApiClient, space: str) -> None:
    client.apply(DEVICES, space, device("pi-1"), manager="test")
    labelled = device("pi-2")
    labelled["metadata"]["labels"] = {"site": "roof"}
    client.apply(DEVICES, space, labelled, manager="test")
    assert titles(meedge("get", "ed", "pi-2", "pi-1")[1]) == ["NAME", "pi-2", "pi-1"]
    assert titles(meedge("get", "ed/pi-1", "ed/pi-2", "-o", "name")[1]) == [
        "edgedevice.meedge.dev/pi-1",
        "edgedevice.meedge.dev/pi-2",
    ]
    assert titles(meedge("get", "ed", "-l", "site=roof")[1]) == ["NAME", "pi-2"]
    everywhere = meedge("get", "ed", "-A")[1].splitlines()
    assert everywhere[0].startswith("NAMESPACE")
    assert [line.split()[:2] for line in everywhere if line.startswith(f"{space} ")] == [
        [space, "pi-1"],
        [space, "pi-2"],
    ]
    code, out, err = meedge("get", "ed", "pi-1", "nobody")
    assert (code, titles(out)) == (2, ["NAME", "pi-1"])
    assert '"nobody" not found' in err


def test_get_prints_yaml_and_json_that_can_be_applied(
    meedge: Run, client: ApiClient, space: str, tmp_path: Path
) -> None:
    client.apply(DEVICES, space, device("pi-1"), manager="test")
    one = yaml.safe_load(meedge("get", "ed", "pi-1", "-o", "yaml")[1])
    assert one["spec"] == device("pi-1")["spec"]
    assert "managedFields" not in one["metadata"]
    several = json.loads(meedge("get", "ed", "-o", "json")[1])
    assert (several["kind"], several["items"][0]["kind"]) == ("List", "EdgeDevice")


def test_get_says_where_there_is_nothing(meedge: Run, space: str) -> None:
    assert meedge("get", "em") == (0, "", f"No resources found in {space} namespace.\n")
    assert json.loads(meedge("get", "em", "-o", "json")[1])["items"] == []


def test_get_goes_on_with_what_changes(
    meedge: Run, client: ApiClient, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.apply(DEVICES, space, device("pi-1"), manager="test")
    printed: list[str] = []

    def say(line: str) -> None:
        printed.append(line)
        if "pi-2" in line:
            raise KeyboardInterrupt

    monkeypatch.setattr("meedge_ray.cli.showing.say", say)

    def change() -> None:
        while len(printed) < 2:
            time.sleep(0.05)
        client.apply(DEVICES, space, device("pi-1", memory="32Mi"), manager="test")
        client.apply(DEVICES, space, device("pi-2"), manager="test")

    changing = threading.Thread(target=change)
    changing.start()
    assert meedge("get", "ed", "-w")[0] == 0
    changing.join()
    assert [line.split()[0] for line in printed] == ["NAME", "pi-1", "pi-1", "pi-2"]
    assert "32Mi" in printed[2]


def test_describe_tells_conditions_and_events(meedge: Run, client: ApiClient, space: str) -> None:
    made = client.apply(DEVICES, space, device("pi-1"), manager="test")
    condition = {"type": "Ready", "status": "False", "reason": "NodeLost", "message": "its node is away"}
    condition |= {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}
    client.patch(DEVICES, space, "pi-1", {"status": {"conditions": [condition]}}, manager="test", subresource="status")
    about = {"kind": "EdgeDevice", "name": "pi-1", "namespace": space, "uid": made["metadata"]["uid"]}
    event = {"metadata": {"name": "e"}, "involvedObject": about, "reason": "Joined", "message": "it joined", "count": 3}
    client.create(EVENTS, space, {**event, "lastTimestamp": "2026-01-01T00:00:00Z"}, manager="test")
    code, out, _ = meedge("describe", "ed", "pi-1")
    assert code == 0
    for said in ("Name:         pi-1", "  memory: 64Mi", "NodeLost", "its node is away", "(x3)", "it joined"):
        assert said in out
    events = meedge("events", "ed/pi-1")[1].splitlines()
    assert [line.split("   ")[-1].strip() for line in events] == ["MESSAGE", "it joined"]
    assert meedge("events", "ed/other")[1].splitlines() == [events[0].replace(events[0], _header())]
    assert meedge("describe", "ed", "nobody")[0] == 2


def _header() -> str:
    return "LAST SEEN   TYPE   REASON   OBJECT   MESSAGE"


def test_delete_by_name_label_and_file(meedge: Run, client: ApiClient, space: str, tmp_path: Path) -> None:
    for name in ("pi-1", "pi-2", "pi-3"):
        client.apply(DEVICES, space, {**device(name), "metadata": {"name": name, "labels": {"n": name}}}, manager="t")
    assert meedge("delete", "ed", "pi-1") == (0, "edgedevice.meedge.dev/pi-1 deleted\n", "")
    assert meedge("delete", "ed", "-l", "n=pi-2")[0] == 0
    assert meedge("delete", "-f", write(tmp_path / "device.yaml", device("pi-3")))[0] == 0
    assert client.list(DEVICES, space)["items"] == []
    assert meedge("delete", "ed", "pi-1")[0] == 2
    assert meedge("delete", "ed", "pi-1", "--ignore-not-found") == (0, "", "")
    assert meedge("delete", "ed")[0] == 2  # not all by accident


def test_delete_waits_for_finalizers(meedge: Run, client: ApiClient, space: str) -> None:
    held = device("pi-1")
    held["metadata"]["finalizers"] = ["example.com/hold"]
    client.apply(DEVICES, space, held, manager="test")
    code, _, err = meedge("delete", "ed", "pi-1", "--timeout", "0.2s")
    assert code == 1
    assert "waits for example.com/hold" in err
    assert meedge("delete", "ed", "pi-1", "--no-wait")[0] == 0
    client.patch(DEVICES, space, "pi-1", {"metadata": {"finalizers": None}}, manager="test")
    assert client.list(DEVICES, space)["items"] == []


def test_wait_for_conditions_of_this_generation(meedge: Run, client: ApiClient, space: str) -> None:
    client.apply(DEVICES, space, device("pi-1"), manager="test")

    def report(status: str, generation: int) -> None:
        condition = {"type": "Ready", "status": status, "reason": "Because", "message": "so it is"}
        condition |= {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": generation}
        change = {"status": {"conditions": [condition]}}
        client.patch(DEVICES, space, "pi-1", change, manager="test", subresource="status")

    report("False", 1)
    code, _, err = meedge("wait", "ed/pi-1", "--timeout", "0")
    assert code == 1
    assert "(Because: so it is)" in err
    assert meedge("wait", "ed/pi-1", "--for", "condition=ready=False", "--timeout", "0")[0] == 0
    report("True", 1)
    assert meedge("wait", "ed/pi-1") == (0, "edgedevice.meedge.dev/pi-1 condition met\n", "")
    client.apply(DEVICES, space, device("pi-1", memory="32Mi"), manager="test")
    assert meedge("wait", "ed/pi-1", "--timeout", "0")[0] == 1  # true of the generation before


def test_wait_for_what_comes_and_goes(meedge: Run, client: ApiClient, space: str) -> None:
    assert meedge("wait", "ed/pi-1")[0] == 2
    coming = threading.Timer(0.3, lambda: client.apply(DEVICES, space, device("pi-1"), manager="test"))
    coming.start()
    assert meedge("wait", "ed/pi-1", "--for", "create")[1] == "edgedevice.meedge.dev/pi-1 created\n"
    coming.join()
    going = threading.Timer(0.3, lambda: client.delete(DEVICES, space, "pi-1"))
    going.start()
    assert meedge("wait", "ed/pi-1", "--for", "delete")[1] == "edgedevice.meedge.dev/pi-1 deleted\n"
    going.join()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["get", "pods"], "there are no 'pods'"),
        (["get", "em/"], "is no KIND/NAME"),
        (["get", "em/a", "b"], "is no KIND/NAME"),
        (["get", "em,es", "a"], "names belong to one kind"),
        (["get", "em", "a", "-A"], "a name is of one namespace"),
        (["get", "em", "a", "-l", "x=y"], "by name or by label"),
        (["get", "em,es", "-w"], "one kind at a time"),
        (["delete"], "name objects, or files"),
        (["delete", "em"], "no object is named"),
        (["apply"], "no manifest is there"),
        (["wait", "em/a", "--for", "ready"], "'ready' is nothing to wait for"),
        (["wait", "em/a", "--timeout", "soon"], "'soon' is no duration"),
        (["logs", "es/a"], "only an ElasticModel has a log"),
        (["logs", "em/a", "--stage", "dream"], "'dream' is no stage"),
    ],
)
def test_wrong_use_ends_with_2_and_says_why(meedge: Run, space: str, arguments: list[str], said: str) -> None:
    code, _, err = meedge(*arguments)
    assert code == 2
    assert said in err


def test_no_kubeconfig_says_what_to_do(meedge: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("MEEDGE_HOME", str(tmp_path))
    code, _, err = meedge("get", "em")
    assert code == 2
    assert "`meedge up`" in err


def test_the_home_of_up_is_found_without_a_kubeconfig(
    meedge: Run, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("MEEDGE_HOME", str(server.home))
    assert titles(meedge("get", "ns", "default")[1]) == ["NAME", "default"]
    assert titles(meedge("get", "ns", "default", "--kubeconfig", server.kubeconfig)[1]) == ["NAME", "default"]
