"""Ray Serve's configuration over HTTP; with a real cluster in test_devices_on_ray."""

from contextlib import closing

import pytest

from meedge_ray.domain.errors import UnavailableError
from meedge_ray.operator.serve_client import ServeClient


def test_a_cluster_that_is_away_is_said_to_be():
    with closing(ServeClient("http://127.0.0.1:9", "token")) as serve:
        for ask in (serve.details, serve.stop, lambda: serve.deploy({})):
            with pytest.raises(UnavailableError) as caught:
                ask()
            assert "127.0.0.1:9" in caught.value.where
            assert caught.value.do
