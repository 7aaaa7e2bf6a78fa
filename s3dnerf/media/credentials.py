"""C2PA content credentials: a signed statement in the file that the video was generated, and by what.

The key and the certificate are the user's. Nothing is sent anywhere: the signature has no time stamp of a server.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from s3dnerf.errors import UserError, first_line
from s3dnerf.media.files import atomic_write, is_stream, make_part_folder, require_file
from s3dnerf.media.provenance import Provenance

SIGNED_FORMATS = {".mp4": "video/mp4", ".m4v": "video/x-m4v", ".mov": "video/quicktime"}
"""Suffixes of videos that can hold credentials, and their media types."""
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
EXTRA = 'Run: pip install "s3dnerf[provenance]"'
PROFILE = "docs/responsible-use.md says what the certificate needs."


@dataclass(frozen=True)
class ContentCredentials:
    """A key and the chain of certificates that videos are signed with.

    Args:
        key: private key as PEM, not encrypted: P-256, P-384, P-521, Ed25519, or RSA of 2048 bits or more.
        certificate: chain as PEM, that of the key first, without the root.
    """

    key: Path
    certificate: Path

    def check(self, out: str | Path) -> None:
        """Check before any work that a video of this name can be signed, by signing a small picture.

        Raises:
            UserError: the package c2pa is missing, key or certificate cannot be used, or the output holds no
                credentials.
        """
        if is_stream(out) or Path(out).suffix.lower() not in SIGNED_FORMATS:
            formats = " or ".join(SIGNED_FORMATS)
            raise UserError(out, "cannot hold content credentials", f"Write a file that ends in {formats}.")
        signer = self._load_signer()
        from PIL import Image

        picture = io.BytesIO()
        Image.new("RGB", (8, 8)).save(picture, "PNG")
        picture.seek(0)
        self._sign("image/png", picture, io.BytesIO(), signer, Provenance().make_manifest("test"))

    @contextmanager
    def sign_output(self, path: str | Path, provenance: Provenance) -> Iterator[Path]:
        """Yield the name under which to write a video, which is then signed and appears as ``path``.

        Raises:
            UserError: see :meth:`check`.
        """
        path = Path(path)
        with atomic_write(path) as part, make_part_folder(path) as folder:
            signer, manifest = self._load_signer(), provenance.make_manifest(path.name)
            unsigned = folder / f"video{path.suffix.lower()}"
            yield unsigned
            with unsigned.open("rb") as source, part.open("w+b") as target:
                self._sign(SIGNED_FORMATS[path.suffix.lower()], source, target, signer, manifest)

    def _sign(self, kind: str, source: Any, target: Any, signer: Any, manifest: dict[str, Any]) -> None:
        import c2pa

        try:
            with c2pa.Builder(manifest) as builder, signer:
                builder.sign(signer, kind, source, target)
        except c2pa.C2paError as error:
            raise UserError(self.certificate, f"cannot sign videos ({first_line(error)})", PROFILE) from error

    def _load_signer(self) -> Any:
        """Return a signer of c2pa."""
        try:
            import c2pa
            from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
        except ImportError as error:
            raise UserError("c2pa", f"cannot be loaded ({error})", EXTRA) from None
        key, certificates = _read_key(self.key), _read_certificates(self.certificate)
        _check_pair(self, key, certificates[0])
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain = b"".join(one.public_bytes(Encoding.PEM) for one in certificates)
        info = c2pa.C2paSignerInfo(_choose_algorithm(self.key, key), chain, private, None)
        try:
            return c2pa.Signer.from_info(info)
        except c2pa.C2paError as error:
            raise UserError(self.certificate, f"cannot sign videos ({first_line(error)})", PROFILE) from error


def _read_key(path: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    require_file(path, "key")
    try:
        return load_pem_private_key(path.read_bytes(), password=None)
    except TypeError:
        hint = "Write a copy without one: openssl pkey -in KEY -out COPY."
        raise UserError(path, "is protected by a password", hint) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(path, "holds no private key in PEM format", "Name the file with the key.") from None


def _read_certificates(path: Path) -> list[Any]:
    from cryptography.x509 import load_pem_x509_certificates

    require_file(path, "certificate")
    try:
        return load_pem_x509_certificates(path.read_bytes())
    except ValueError:
        hint = "Name the file with the chain, that of the key first."
        raise UserError(path, "holds no certificate in PEM format", hint) from None


def _choose_algorithm(path: Path, key: Any) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name].encode()
    if isinstance(key, Ed25519PrivateKey):
        return b"ed25519"
    if isinstance(key, RSAPrivateKey) and key.key_size >= 2048:
        return b"ps256"
    hint = "Use P-256, P-384, P-521, Ed25519, or RSA of 2048 bits or more."
    raise UserError(path, "is a key of a kind that content credentials do not allow", hint)


def _check_pair(credentials: ContentCredentials, key: Any, certificate: Any) -> None:
    """Raise UserError unless the certificate belongs to the key and is valid today."""
    if certificate.public_key() != key.public_key():
        reason = f"belongs to another key than {credentials.key}"
        raise UserError(credentials.certificate, reason, "Put the certificate of this key first in the file.")
    now = datetime.now(timezone.utc)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        begin, end = certificate.not_valid_before_utc.date(), certificate.not_valid_after_utc.date()
        reason = f"is not valid today (only from {begin} to {end})"
        raise UserError(credentials.certificate, reason, "Renew the certificate, or check the clock.")
