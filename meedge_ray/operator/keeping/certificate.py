"""Certificates: one for the API server, to which kubectl sends its token over TLS alone, and those that are given."""

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meedge_ray.bundle.files import write_atomically
from meedge_ray.domain.errors import InvalidInputError

_VALID = datetime.timedelta(days=3650)


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate of this machine's loopback, followed by its authority's, and its key, all as PEM.

    The authority's key is thrown away: it signs nothing else, so that trusting it is trusting this server alone.

    Raises:
        UnavailableError: the file system refused.
    """
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name, server_name = _name("meedge authority"), _name("meedge API server")
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(ip)) for ip in ("127.0.0.1", "::1"))]
    )
    authority = (
        _builder(authority_name, authority_name, authority_key, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        _builder(server_name, authority_name, server_key, authority_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    write_atomically(key, server_key.private_bytes(pem, form, plain), private=True)
    # Last: where it is, the key is.
    write_atomically(certificate, server.public_bytes(pem) + authority.public_bytes(pem), private=True)


def check_certificate(certificate: Path, key: Path, address: str) -> None:
    """Do nothing if HTTPS can be served with a certificate and its key, PEM files, at an IP address.

    Raises:
        InvalidInputError: it cannot, or devices would refuse it there.
    """
    try:
        # An empty password, for one that is asked for would be waited for.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
        extensions = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidInputError(
            f"HTTPS cannot be served with that ({error})",
            where=f"--tls-cert {certificate} --tls-key {key}",
            do="Give PEM files that belong together, the key without a password",
        ) from error
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = {str(each) for each in names.get_values_for_type(x509.IPAddress)}
    except x509.ExtensionNotFound:
        addresses = set()
    if address not in addresses:
        raise InvalidInputError(
            f"the certificate is for {', '.join(sorted(addresses)) or 'no address'}, and devices find services at "
            f"{address}",
            where=f"--tls-cert {certificate}",
            do="Give one that has this address among its subject alternative names, or another --host",
        )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
