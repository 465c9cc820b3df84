"""TLS for tests: an authority, a certificate of its for 127.0.0.1, and a tunnel that ends TLS before a server."""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey


class Certificate(NamedTuple):
    """Paths of PEM files: an authority, a certificate of its for 127.0.0.1, that certificate's private key."""

    authority: Path
    certificate: Path
    key: Path


def make_certificate(directory: Path) -> Certificate:
    """A certificate that is good for a day, from an authority nobody knows."""
    directory.mkdir(parents=True, exist_ok=True)
    made = Certificate(directory / "authority.pem", directory / "certificate.pem", directory / "key.pem")
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    authority = _signed("authority", authority_key, authority_key, x509.BasicConstraints(ca=True, path_length=None))
    certificate = _signed("127.0.0.1", key, authority_key, x509.BasicConstraints(ca=False, path_length=None), address)
    made.authority.write_bytes(authority.public_bytes(Encoding.PEM))
    made.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made


def _signed(
    name: str, key: Key, authority_key: Key, constraints: x509.BasicConstraints, *more: x509.ExtensionType
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name("authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(constraints, critical=True)
    )
    for extension in more:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(authority_key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@contextmanager
def tls_in_front_of(port: int, tls: Certificate) -> Iterator[int]:
    """The port of a tunnel that takes TLS, one connection after the other, and hands the bytes to `port`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_serve, args=(listening, context, port), name="tls-tunnel")
    thread.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        listening.close()


def _serve(listening: socket.socket, context: ssl.SSLContext, port: int) -> None:
    while True:
        try:
            plain, _ = listening.accept()
        except OSError:
            return
        plain.settimeout(10)
        try:
            with (
                context.wrap_socket(plain, server_side=True) as inside,
                socket.create_connection(("127.0.0.1", port), timeout=10) as outside,
            ):
                _carry(inside, outside)
        except (ssl.SSLError, OSError):
            continue


def _carry(inside: ssl.SSLSocket, outside: socket.socket) -> None:
    """Carries requests in and answers out until the client goes; what is asked is answered before more is asked."""
    answering = threading.Thread(target=_pump, args=(outside, inside), name="tls-tunnel-answers")
    answering.start()
    _pump(inside, outside)
    outside.shutdown(socket.SHUT_RDWR)
    answering.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        return
