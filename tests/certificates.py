"""A certificate authority of our own, and a certificate under it that may sign."""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_USES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def write_certificates(folder: Path, days: float = 30) -> dict[str, str]:
    """Writes PEM files; their paths by the settings' names. Valid from yesterday for `days`."""
    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("authority", authority.public_key(), authority, days=30, ca=True)
    leaf = _certificate("signer", own.public_key(), authority, days=days, ca=False)
    key = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = {"c2pa_certificate": leaf + ca, "c2pa_key": key, "c2pa_anchors": ca}
    for name, content in files.items():
        (folder / f"{name}.pem").write_bytes(content)
    return {name: str(folder / f"{name}.pem") for name in files}


def write_server_certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """PEM files of an authority, and of a TLS server's certificate under it with its key."""
    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    key = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = folder / "authority.pem", folder / "server.pem"
    files[0].write_bytes(_certificate("authority", authority.public_key(), authority, days=30, ca=True))
    files[1].write_bytes(
        _certificate("server", own.public_key(), authority, days=30, ca=False, host=host) + key
    )
    return files


def _certificate(name, public, authority, days: float, ca: bool, host: str | None = None) -> bytes:
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    uses = dict.fromkeys(_USES, False) | {"key_cert_sign" if ca else "digital_signature": True}
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name("authority"))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.KeyUsage(**uses), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
        )
    )
    if not ca:
        usage = ExtendedKeyUsageOID
        purpose = x509.ExtendedKeyUsage([usage.SERVER_AUTH if host else usage.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=False)
    if host:
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _name(common: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests of HuViDPO")
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common)])
