"""Credentials: what they say is believed only where it was signed, and the secret behind them is made once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.actors.service.credentials import (
    LIFETIME_S,
    RENEWED_AFTER_S,
    Claims,
    CredentialError,
    Signer,
    device_secret,
    enrolment_token,
    is_credential,
)

NOW = 1.8e9
CLAIMS = Claims(device="pi-1", model="tiny", generation=3, expires_at=NOW + LIFETIME_S)
SIGNER = Signer(b"secret")


@given(st.text(), st.text(), st.integers(0, 2**53), st.floats(NOW + 1, 1e12))
def test_what_was_signed_is_read_back(device, model, generation, expires_at):
    claims = Claims(device=device, model=model, generation=generation, expires_at=expires_at)
    credential = SIGNER.credential(claims)
    assert is_credential(credential)
    if len(credential) < 4096:
        assert SIGNER.claims(credential, NOW) == claims


@given(st.data())
def test_no_other_text_is_taken_for_a_credential(data):
    credential = SIGNER.credential(CLAIMS)
    place = data.draw(st.integers(0, len(credential) - 1))
    forged = credential[:place] + data.draw(st.text(max_size=3)) + credential[place + data.draw(st.integers(0, 3)) :]
    if forged != credential:
        with pytest.raises(CredentialError, match="forged"):
            SIGNER.claims(forged, NOW)


def test_a_credential_of_another_service_is_refused():
    with pytest.raises(CredentialError, match="another service"):
        Signer(b"other").claims(SIGNER.credential(CLAIMS), NOW)


def test_a_credential_ends():
    credential = SIGNER.credential(CLAIMS)
    assert SIGNER.claims(credential, CLAIMS.expires_at - 1) == CLAIMS
    with pytest.raises(CredentialError, match="expired") as caught:
        SIGNER.claims(credential, CLAIMS.expires_at)
    assert caught.value.do


def test_it_is_to_be_renewed_long_before():
    assert not CLAIMS.is_to_be_renewed(NOW)
    assert CLAIMS.is_to_be_renewed(NOW + RENEWED_AFTER_S + 1)
    assert RENEWED_AFTER_S < LIFETIME_S / 2


def test_an_enrolment_token_is_no_credential():
    assert not is_credential(SIGNER.enrolment_token)
    with pytest.raises(CredentialError):
        SIGNER.claims(SIGNER.enrolment_token, NOW)


def test_the_secret_is_private_and_outlives_the_token(tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text("first")
    secret = device_secret(token_file)
    assert (tmp_path / "token.devices").stat().st_mode & 0o777 == 0o600
    token_file.write_text("second")
    assert device_secret(token_file) == secret
    assert len(secret) >= 32
    assert enrolment_token(token_file) == Signer(secret).enrolment_token


def test_all_who_make_the_secret_at_once_have_the_same(tmp_path):
    (tmp_path / "token").write_text("token")
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(lambda _: device_secret(tmp_path / "token"), range(32)))
    assert len(secrets) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["token", "token.devices"]


def test_where_nothing_can_be_written_the_token_is_the_secret(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    (folder / "token").write_text("token\n")
    (folder / "token.devices").symlink_to(folder / "nowhere" / "at-all")  # is not there, and cannot be made
    assert device_secret(folder / "token") == b"token"
    assert device_secret("token") == b"token"
