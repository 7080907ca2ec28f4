"""A certificate that services are to be served with, and what the operator's processes are told of it."""

import shutil
from pathlib import Path

import pytest

from meedge_ray.actors.service.serve_options import proxy_environment
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.operator.keeping.certificate import check_certificate, make_certificate
from meedge_ray.operator.keeping.home import open_home
from meedge_ray.operator.keeping.parts import ray_head
from meedge_ray.operator.keeping.run_file import Told


@pytest.fixture
def tls(tmp_path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    return certificate, key


def test_a_certificate_of_the_address_is_taken(tls):
    check_certificate(*tls, "127.0.0.1")


def test_one_of_another_address_is_refused_naming_both(tls):
    with pytest.raises(InvalidInputError, match=r"is for 127\.0\.0\.1, ::1, and devices find services at 10\.0\.0\.1"):
        check_certificate(*tls, "10.0.0.1")


@pytest.mark.parametrize("case", ["no key", "no certificate", "another's key", "no PEM"])
def test_files_that_do_not_serve_are_refused(case, tls, tmp_path):
    certificate, key = tls
    if case == "no key":
        key.unlink()
    elif case == "no certificate":
        certificate.unlink()
    elif case == "another's key":
        make_certificate(tmp_path / "other.pem", key)
    else:
        shutil.copy(key, certificate)
    with pytest.raises(InvalidInputError, match="HTTPS cannot be served with that"):
        check_certificate(certificate, key, "127.0.0.1")


def test_the_head_serves_https_itself_and_http_as_fast_as_it_can(tmp_path):
    home, http = open_home(tmp_path / "home"), Told(host="10.0.0.1", base_dir="/")
    https = Told(host="10.0.0.1", base_dir="/", certificate="/c.pem", key="/k.pem")
    assert (http.tls, https.tls) == (None, (Path("/c.pem"), Path("/k.pem")))
    proxied = proxy_environment("10.0.0.1")
    assert proxied.items() <= ray_head(home, http).environment.items()
    assert not proxied.keys() & ray_head(home, https).environment.keys()
