"""Whom a device trusts to be its service: TLS by an authority's file, and what to do where it does not hold."""

import ssl
from pathlib import Path

from meedge_ray.domain.errors import InvalidInputError

# OpenSSL's X509_V_ERR_..., which Python has no names for.
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_ISSUER = frozenset((18, 19, 20, 21))
_OTHER_NAME = frozenset((62, 64))


def trusting(ca_file: Path) -> ssl.SSLContext:
    """Return TLS that trusts nobody but those whose certificates are in `ca_file`, as PEM.

    Raises:
        InvalidInputError: it cannot be read, or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except ssl.SSLError as error:
        raise InvalidInputError(
            "the CA file holds no certificate", where=str(ca_file), do="Give the authority's certificate as PEM"
        ) from error
    except OSError as error:
        raise InvalidInputError(
            f"cannot read the CA file ({error.strerror})", where=str(ca_file), do="Check the path and the permissions"
        ) from error


def distrust(error: BaseException) -> tuple[str, str] | None:
    """Return what is wrong and what to do where no connection came about because of TLS, else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the service's certificate is refused ({cause.verify_message})", _advice(cause.verify_code)
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return f"no TLS connection ({cause.reason or cause})", "Check that the service speaks HTTPS on this port"
        cause = cause.__cause__ or cause.__context__
    return None


def _advice(code: int) -> str:
    if code in _UNKNOWN_ISSUER:
        return "Give the certificate of the authority that signed the service's as the CA file"
    if code in _OTHER_NAME:
        return "Use a URL with a name that the certificate has, or give the service a certificate of this name"
    if code in (_NOT_YET_VALID, _EXPIRED):
        return "Check this machine's clock; if it is right, renew the service's certificate"
    return "Give the service a certificate that holds"
