"""Certificates: every extension, every refusal, and real TLS handshakes with what is made."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from scistream.errors import InvalidArgument
from scistream.vocabulary import Role, Uid
from scistream.x509 import Certificate, Credentials, DevelopmentCA, PrivateKey, SessionCA, peer_name, way_name

UID = Uid("u-1")
# A moment in the middle of their time: the certificates are made when their test's turn comes, which may be late.
NOW = datetime.now(UTC) + timedelta(hours=12)
END = (NOW + timedelta(hours=12)).replace(microsecond=0)


class Side:
    """A gateway's key and the credentials that it got for it."""

    def __init__(self, ca: SessionCA, role: Role) -> None:
        self.role = role
        self.key = PrivateKey.generate()
        self.credentials = ca.issue(self.key.csr(ca.uid, role), role)

    def context(self, directory: Path) -> ssl.SSLContext:
        """Make a TLS context as a proxy is configured: TLS 1.3, own leaf, one trusted CA, peer required."""
        server = self.role is Role.PROD
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=self.credentials.trust_anchor.pem.decode())
        chain = directory / f"{id(self)}.pem"
        chain.write_bytes(self.credentials.certificate.pem + self.key.pem)
        context.load_cert_chain(chain)
        return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Shake hands in memory and pass one byte, so that a late refusal of the client is seen too."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    waiting: list[ssl.SSLObject] = list(ends)
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
    assert not waiting
    ends[1].write(b"x")
    assert ends[0].read(1) == b"x"
    return ends[1], ends[0]


@pytest.fixture(scope="module")
def ca() -> SessionCA:
    return SessionCA.create(UID, END)


@pytest.fixture(scope="module")
def prod(ca: SessionCA) -> Side:
    return Side(ca, Role.PROD)


@pytest.fixture(scope="module")
def cons(ca: SessionCA) -> Side:
    return Side(ca, Role.CONS)


def extension(certificate: Certificate, kind: type[x509.ExtensionType], critical: bool) -> x509.ExtensionType:
    found = certificate.x509.extensions.get_extension_for_class(kind)
    assert found.critical is critical
    return found.value


# What is in them


def test_session_ca(ca: SessionCA) -> None:
    certificate = ca.certificate.x509
    assert certificate.issuer == certificate.subject
    certificate.verify_directly_issued_by(certificate)
    assert certificate.not_valid_after_utc == END
    assert certificate.not_valid_before_utc <= NOW
    assert extension(ca.certificate, x509.BasicConstraints, True) == x509.BasicConstraints(True, 0)
    usage = extension(ca.certificate, x509.KeyUsage, True)
    assert isinstance(usage, x509.KeyUsage)
    assert usage.key_cert_sign
    assert not usage.digital_signature
    assert len(certificate.extensions) == 3


@pytest.mark.parametrize(
    ("role", "usage", "name"),
    [
        (Role.PROD, ExtendedKeyUsageOID.SERVER_AUTH, "prod.u-1.scistream.internal"),
        (Role.CONS, ExtendedKeyUsageOID.CLIENT_AUTH, "cons.u-1.scistream.internal"),
    ],
)
def test_leaf(ca: SessionCA, role: Role, usage: x509.ObjectIdentifier, name: str) -> None:
    side = Side(ca, role)
    leaf = side.credentials.certificate
    assert leaf.x509.public_key() == side.key.key.public_key()
    assert leaf.x509.not_valid_after_utc == END  # the lease
    assert leaf.x509.subject.rfc4514_string() == f"UID=u-1,CN={role}"
    assert peer_name(UID, role) == name
    ways = [f"*.{name}"] if role is Role.PROD else []  # each of the session's connections
    names = x509.SubjectAlternativeName([x509.DNSName(each) for each in (name, *ways)])
    assert extension(leaf, x509.SubjectAlternativeName, False) == names
    assert extension(leaf, x509.ExtendedKeyUsage, True) == x509.ExtendedKeyUsage([usage])
    assert extension(leaf, x509.BasicConstraints, True) == x509.BasicConstraints(False, None)
    key_usage = extension(leaf, x509.KeyUsage, True)
    assert isinstance(key_usage, x509.KeyUsage)
    assert key_usage.digital_signature
    assert not key_usage.key_cert_sign
    assert not key_usage.key_agreement
    ski = extension(ca.certificate, x509.SubjectKeyIdentifier, False)
    aki = extension(leaf, x509.AuthorityKeyIdentifier, False)
    assert isinstance(ski, x509.SubjectKeyIdentifier)
    assert isinstance(aki, x509.AuthorityKeyIdentifier)
    assert aki.key_identifier == ski.digest
    assert extension(leaf, x509.SubjectKeyIdentifier, False) is not None
    assert len(leaf.x509.extensions) == 6
    assert side.credentials.trust_anchor == ca.certificate


def test_every_certificate_has_its_own_key_and_number(ca: SessionCA, prod: Side, cons: Side) -> None:
    certificates = [ca.certificate.x509, prod.credentials.certificate.x509, cons.credentials.certificate.x509]
    assert len({c.serial_number for c in certificates}) == 3
    assert len({c.public_bytes(serialization.Encoding.DER) for c in certificates}) == 3


def test_a_request_cannot_choose_its_name(ca: SessionCA) -> None:
    key = PrivateKey.generate()
    credentials = ca.issue(key.csr(Uid("other"), Role.PROD), Role.CONS)
    credentials.check(UID, Role.CONS, key.key.public_key(), NOW)


def test_a_key_does_not_show_itself() -> None:
    key = PrivateKey.generate()
    assert repr(key) == "PrivateKey(...)"
    assert "PRIVATE" not in repr(SessionCA.create(UID, END))
    assert PrivateKey.from_pem(key.pem).key.private_numbers() == key.key.private_numbers()


# Handshakes


def test_the_two_gateways_of_a_session_agree(prod: Side, cons: Side, tmp_path: Path) -> None:
    server, client = handshake(prod.context(tmp_path), cons.context(tmp_path), peer_name(UID, Role.PROD))
    assert server.version() == client.version() == "TLSv1.3"
    for end, role in ((server, Role.CONS), (client, Role.PROD)):
        certificate = end.getpeercert()
        assert certificate
        assert certificate["subjectAltName"][0] == ("DNS", peer_name(UID, role))


def test_each_connection_of_a_session_has_a_name(ca: SessionCA, prod: Side, cons: Side, tmp_path: Path) -> None:
    names = [way_name(ca.certificate, UID, number) for number in (0, 1, 4095)]
    for name in names:
        handshake(prod.context(tmp_path), cons.context(tmp_path), name)
    other = SessionCA.create(UID, END)  # another user's session may have the same uid
    assert len({*names, way_name(other.certificate, UID, 0)}) == 4
    with pytest.raises(ssl.SSLError):
        handshake(prod.context(tmp_path), cons.context(tmp_path), f"a.{names[0]}")


def test_another_sessions_gateways_are_refused(prod: Side, cons: Side, tmp_path: Path) -> None:
    other = SessionCA.create(UID, END)  # of the same uid, even
    for server, client in ((Side(other, Role.PROD), cons), (prod, Side(other, Role.CONS))):
        with pytest.raises(ssl.SSLError):
            handshake(server.context(tmp_path), client.context(tmp_path), peer_name(UID, Role.PROD))


def test_the_consumers_certificate_is_no_servers_and_the_producers_no_clients(
    ca: SessionCA, prod: Side, cons: Side, tmp_path: Path
) -> None:
    turned = Side(ca, Role.CONS)
    turned.role = Role.PROD
    with pytest.raises(ssl.SSLError, match=r"(?i)purpose"):
        handshake(turned.context(tmp_path), cons.context(tmp_path), peer_name(UID, Role.CONS))
    turned = Side(ca, Role.PROD)
    turned.role = Role.CONS
    with pytest.raises(ssl.SSLError, match=r"(?i)purpose"):
        handshake(prod.context(tmp_path), turned.context(tmp_path), peer_name(UID, Role.PROD))


def test_a_server_of_another_name_is_refused(prod: Side, cons: Side, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)hostname"):
        handshake(prod.context(tmp_path), cons.context(tmp_path), peer_name(Uid("u-2"), Role.PROD))


def test_after_the_lease_the_certificates_are_refused(cons: Side, tmp_path: Path) -> None:
    past = SessionCA.create(UID, datetime.now(UTC) - timedelta(minutes=1))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(
            Side(past, Role.PROD).context(tmp_path), Side(past, Role.CONS).context(tmp_path), peer_name(UID, Role.PROD)
        )


def test_a_client_without_a_certificate_is_refused(prod: Side, ca: SessionCA, tmp_path: Path) -> None:
    client = ssl.create_default_context(cadata=ca.certificate.pem.decode())
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
        handshake(prod.context(tmp_path), client, peer_name(UID, Role.PROD))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "gw.example.org"])
def test_development_ca(host: str, tmp_path: Path) -> None:
    ca = DevelopmentCA.create("a name that is a good deal longer than a common name may be, by X.520")
    certificate, key = ca.issue_server(["127.0.0.1", "::1", "gw.example.org"], NOW + timedelta(days=99999))
    assert certificate.x509.not_valid_after_utc <= ca.certificate.x509.not_valid_after_utc
    (tmp_path / "server.pem").write_bytes(certificate.pem + key.pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem")
    client = ssl.create_default_context(cadata=ca.certificate.pem.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    handshake(server, client, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client, "evil.example.org")


# What Credentials.check refuses


def crafted(
    ca: SessionCA,
    key: PrivateKey,
    change: Callable[[x509.CertificateBuilder], x509.CertificateBuilder] = lambda builder: builder,
    *,
    subject: str = "CN=PROD,UID=u-1",
    names: list[x509.GeneralName] | None = None,
    usage: list[x509.ObjectIdentifier] | None = None,
    signer: PrivateKey | None = None,
) -> Credentials:
    """Make a leaf by hand, as somebody might who does not use SessionCA; one thing in it is wrong."""
    name = peer_name(UID, Role.PROD)
    wanted = [x509.DNSName(name), x509.DNSName(f"*.{name}")] if names is None else names
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name.from_rfc4514_string(",".join(reversed(subject.split(",")))))
        .issuer_name(ca.certificate.x509.subject)
        .public_key(key.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(minutes=5))
        .not_valid_after(END)
    )
    if wanted:
        builder = builder.add_extension(x509.SubjectAlternativeName(wanted), False)
    if usage != []:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage or [ExtendedKeyUsageOID.SERVER_AUTH]), True)
    return Credentials(Certificate(change(builder).sign((signer or ca.key).key, hashes.SHA256())), certificate_of(ca))


def certificate_of(ca: SessionCA) -> Certificate:
    return Certificate.from_der(ca.certificate.der)  # as it comes from the wire


def refused(credentials: Credentials, key: PrivateKey, match: str, at: datetime = NOW) -> None:
    with pytest.raises(InvalidArgument, match=match):
        credentials.check(UID, Role.PROD, key.key.public_key(), at)


def test_good_credentials_pass(ca: SessionCA, prod: Side) -> None:
    prod.credentials.check(UID, Role.PROD, prod.key.key.public_key(), NOW)
    crafted(ca, prod.key).check(UID, Role.PROD, prod.key.key.public_key(), NOW)


def test_another_key_is_refused(prod: Side, cons: Side) -> None:
    refused(prod.credentials, cons.key, "not for the key")


def test_another_side_or_session_is_refused(prod: Side) -> None:
    key = prod.key.key.public_key()
    for uid, role in ((UID, Role.CONS), (Uid("u-2"), Role.PROD)):
        with pytest.raises(InvalidArgument, match=f"does not name the {role} side of session {uid} and only that"):
            prod.credentials.check(uid, role, key, NOW)


def test_wrong_names_are_refused(ca: SessionCA, prod: Side) -> None:
    good, ways = (x509.DNSName(f"{before}{peer_name(UID, Role.PROD)}") for before in ("", "*."))
    wrong: list[list[x509.GeneralName]] = [
        [good],
        [ways],
        [good, ways, x509.DNSName(f"*.{peer_name(Uid('u-2'), Role.PROD)}")],
        [x509.DNSName(peer_name(UID, Role.CONS))],
        [good, x509.DNSName("other.example.org")],
        [good, x509.UniformResourceIdentifier("spiffe://other")],
        [x509.UniformResourceIdentifier("spiffe://other")],
    ]
    for names in wrong:
        refused(crafted(ca, prod.key, names=names), prod.key, "and only that")
    refused(crafted(ca, prod.key, names=[]), prod.key, "SubjectAlternativeName|subjectAltName")


def test_wrong_usages_are_refused(ca: SessionCA, prod: Side) -> None:
    server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    for usage in ([client], [server, client], [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]):
        refused(crafted(ca, prod.key, usage=usage), prod.key, "and only that")
    refused(crafted(ca, prod.key, usage=[]), prod.key, "extendedKeyUsage|ExtendedKeyUsage")


def test_a_wrong_subject_is_refused(ca: SessionCA, prod: Side) -> None:
    refused(crafted(ca, prod.key, subject="CN=CONS,UID=u-1"), prod.key, "subject is not CN=PROD, UID=u-1")
    refused(crafted(ca, prod.key, subject="CN=PROD"), prod.key, "subject is not")


def test_another_issuer_is_refused(ca: SessionCA, prod: Side) -> None:
    other = SessionCA.create(UID, END)
    refused(Credentials(prod.credentials.certificate, other.certificate), prod.key, "not issued by the trust anchor")
    refused(crafted(ca, prod.key, signer=other.key), prod.key, "not issued by the trust anchor")


def test_an_anchor_that_is_no_ca_is_refused(prod: Side) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "no CA")])
    key = PrivateKey.generate()
    bare = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(minutes=5))
        .not_valid_after(END)
    )
    ski = x509.SubjectKeyIdentifier.from_public_key(key.key.public_key())
    leafish = bare.add_extension(x509.BasicConstraints(False, None), True).add_extension(ski, False)
    for anchor, match in ((leafish, "not a CA certificate"), (bare, "(?i)basicConstraints")):
        fake = SessionCA(UID, Certificate(anchor.sign(key.key, hashes.SHA256())), key)
        refused(crafted(fake, prod.key), prod.key, match)


def test_the_time_is_looked_at(prod: Side) -> None:
    for moment in (END, END + timedelta(days=1), NOW - timedelta(days=1)):
        refused(prod.credentials, prod.key, "not valid now; compare", moment)


def test_an_unknown_extension_is_harmless(ca: SessionCA, prod: Side) -> None:
    strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    credentials = crafted(ca, prod.key, lambda builder: builder.add_extension(strange, False))
    credentials.check(UID, Role.PROD, prod.key.key.public_key(), NOW)


def bent(data: st.DataObject, der: bytes) -> bytes:
    """Change one to four bytes."""
    places = data.draw(st.dictionaries(st.integers(0, len(der) - 1), st.integers(0, 255), min_size=1, max_size=4))
    return bytes(places.get(i, byte) for i, byte in enumerate(der))


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # bent serial numbers
@given(st.data(), st.booleans())
def test_broken_certificates_are_refused_and_nothing_else_happens(data: st.DataObject, leaf: bool) -> None:
    """What comes from the wire is refused by InvalidArgument or is still right."""
    good = _SIDE.credentials
    try:
        credentials = (
            Credentials(Certificate.from_der(bent(data, good.certificate.der)), good.trust_anchor)
            if leaf
            else Credentials(good.certificate, Certificate.from_der(bent(data, good.trust_anchor.der)))
        )
        credentials.check(UID, Role.PROD, _SIDE.key.key.public_key(), NOW)
    except InvalidArgument as error:
        assert str(error)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # bent serial numbers
@given(st.data())
def test_broken_requests_are_refused_and_nothing_else_happens(data: st.DataObject) -> None:
    try:
        _CA.issue(bent(data, _CSR), Role.PROD)
    except InvalidArgument as error:
        assert str(error)


_CA = SessionCA.create(UID, END)
_SIDE = Side(_CA, Role.PROD)
_CSR = _SIDE.key.csr(UID, Role.PROD)


# What issue and the readers refuse


@pytest.mark.parametrize("data", [b"", b"x", b"\x30\x03\x02\x01\x01"])
def test_bytes_that_are_not_what_they_should_be(ca: SessionCA, data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="certificate are not one in DER"):
        Certificate.from_der(data)
    with pytest.raises(InvalidArgument, match="certificate request are not one in DER"):
        ca.issue(data, Role.PROD)
    with pytest.raises(InvalidArgument, match="private key are not one"):
        PrivateKey.from_pem(data)


def test_only_an_elliptic_curve_key_is_taken(ca: SessionCA) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(InvalidArgument, match="elliptic-curve"):
        PrivateKey.from_pem(pem)
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, None)
    with pytest.raises(InvalidArgument, match="elliptic-curve"):
        ca.issue(csr.public_bytes(serialization.Encoding.DER), Role.PROD)


def test_a_request_not_signed_with_its_own_key_is_refused(ca: SessionCA) -> None:
    csr = bytearray(PrivateKey.generate().csr(UID, Role.PROD))
    other = PrivateKey.generate().csr(UID, Role.PROD)
    point = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    mine = x509.load_der_x509_csr(bytes(csr)).public_key()
    theirs = x509.load_der_x509_csr(other).public_key()
    assert isinstance(mine, ec.EllipticCurvePublicKey)
    assert isinstance(theirs, ec.EllipticCurvePublicKey)
    forged = bytes(csr).replace(mine.public_bytes(*point), theirs.public_bytes(*point))
    with pytest.raises(InvalidArgument, match="not signed with its own key"):
        ca.issue(forged, Role.PROD)


def test_an_rsa_anchor_from_elsewhere_is_judged_and_not_a_crash(prod: Side) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SciStream session CA")])
    anchor = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(minutes=5))
        .not_valid_after(END)
        .add_extension(x509.BasicConstraints(True, 0), True)
        .sign(key, hashes.SHA256())
    )
    refused(Credentials(prod.credentials.certificate, Certificate(anchor)), prod.key, "not issued by the trust anchor")
