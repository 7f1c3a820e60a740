"""Signatures of folders by OpenSSF model signing: a trusted key signs every file, by name and content.

Owns: the home's key pair, which keys are trusted, signing and verifying a folder of any content. Does not own: what is
signed, when, and what follows from a refusal (`registry/verification.py`).

By default an elliptic-curve key (P-256) signs, made on first use: `keys/signing.pem`, readable by its owner only, and
`keys/signing.pub`. Trusted are this home's own key and every `keys/trusted/*.pub` (PEM). The setting `signing` names
another signer: a PKCS #11 URI of a key in an HSM or KMS (its public key goes to `keys/trusted`), or `sigstore`, whose
signatures are accepted of `sigstore_identity` only. Sigstore needs a public service and is not covered by our tests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings

if TYPE_CHECKING:
    from model_signing.hashing import Config as Hashing
    from model_signing.verifying import Config as Verifying

SIGNATURE = "model.sig"
PRIVATE, PUBLIC, TRUSTED = "signing.pem", "signing.pub", "trusted"


def sign(settings: Settings, folder: Path) -> Path:
    """Write `model.sig` over all other files of `folder`, in place of the one there is; its path.

    Raises `ThroughlineError`, also for a symbolic link in the folder and for a signer that is not trusted here.
    """
    from model_signing.signing import Config  # postpones model_signing

    signer = Config().set_hashing_config(_hashing())
    try:
        if settings.signing == "sigstore":
            signer.use_sigstore_signer(use_ambient_credentials=True)
        elif settings.signing == "key":
            signer.use_elliptic_key_signer(private_key=own_key(settings))
        else:
            signer.use_pkcs11_signer(pkcs11_uri=settings.signing)
        signer.sign(folder, folder / SIGNATURE)
    except ThroughlineError:
        raise
    except Exception as error:  # every signer raises its own kinds
        raise ThroughlineError(f"{folder} cannot be signed ({_one_line(error)}): see the setting `signing`.") from error
    if settings.signing != "key":
        try:
            verify(settings, folder)
        except ThroughlineError:
            (folder / SIGNATURE).unlink()
            raise
    return folder / SIGNATURE


def verify(settings: Settings, folder: Path, where: object = None) -> dict[str, str]:
    """What a trusted key signed: file name -> SHA-256 (hex), all the folder's files but `model.sig`.

    Raises `ThroughlineError` when there is no signature, when a file was changed, added or removed, and when the key
    is not trusted; `where` names the folder in these errors. Files may change afterwards: a reader compares the bytes
    that it has read with the digest.
    """
    where = where or folder
    try:
        content = (folder / SIGNATURE).read_bytes()
    except OSError as error:
        raise ThroughlineError(
            f"{where} has no signature ({SIGNATURE}: {error.strerror}): restore it from where it was signed."
        ) from error
    try:
        key, signed = _read(content)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ThroughlineError(f"{where} has no valid signature ({SIGNATURE} is damaged): restore it.") from error
    failure = _failure(_verifier(settings, key, where), folder, content)
    # A signature may list files to be ignored; here none are.
    if failure is None and _files(folder).keys() == signed.keys():
        return signed
    # model_signing raises ValueError for files that differ from a statement it has verified, and for more.
    if (failure is None or isinstance(failure, ValueError)) and (differences := _differences(folder, signed)):
        raise ThroughlineError(f"{where} is not what was signed ({differences}): restore it.") from failure
    raise ThroughlineError(f"The signature of {where} does not hold ({_one_line(failure)}): restore it.") from failure


def own_key(settings: Settings) -> Path:
    """The home's private key (PEM), made with its public one when there is none. Safe from two processes at once."""
    from cryptography.hazmat.primitives import serialization  # postpones cryptography
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = settings.keys
    private, public = folder / PRIVATE, folder / PUBLIC
    made_before = public.exists()  # read first: the public key is placed last
    if not private.exists():
        if made_before:
            remedy = f"restore it, or move {PUBLIC} to {folder / TRUSTED} and a new pair is made"
            raise ThroughlineError(f"{private} is missing, {public} is there: {remedy}.")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _place(private, pem, 0o600)
    if not made_before:
        key = serialization.load_pem_private_key(private.read_bytes(), password=None)
        _place(public, _pem(key.public_key()), 0o644)
    return private


def _place(path: Path, content: bytes, mode: int) -> None:
    """Write the file whole, unless another process has placed it first."""
    with tempfile.NamedTemporaryFile(dir=path.parent) as draft:
        os.fchmod(draft.fileno(), mode)
        draft.write(content)
        draft.flush()
        with suppress(FileExistsError):
            os.link(draft.name, path)


def _failure(verifier: Verifying, folder: Path, signature: bytes) -> Exception | None:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / SIGNATURE  # the very bytes that were read are verified, also when the folder changes
        copy.write_bytes(signature)
        try:
            verifier.verify(folder, copy)
        except Exception as error:  # each verifier raises its own kinds
            return error
    return None


def _verifier(settings: Settings, key: str | None, where: object) -> Verifying:
    """For signatures of this key, which must be trusted; None: of an identity, by certificate."""
    from model_signing.verifying import Config  # postpones model_signing

    verifier = Config().set_hashing_config(_hashing())
    if key is None:
        if settings.sigstore_identity is None or settings.sigstore_issuer is None:
            remedy = "set `sigstore_identity` and `sigstore_issuer` to who may sign"
            raise ThroughlineError(f"{where} is signed by Sigstore, which is not trusted: {remedy}.")
        identity, issuer = settings.sigstore_identity, settings.sigstore_issuer
        try:
            return verifier.use_sigstore_verifier(identity=identity, oidc_issuer=issuer)
        except Exception as error:  # it fetches Sigstore's own keys
            raise ThroughlineError(f"{where} cannot be verified, Sigstore fails ({_one_line(error)}).") from error
    public = _trusted(settings).get(key)
    if public is None:
        remedy = f"if it should be, put its public key into {settings.keys / TRUSTED} as NAME.pub"
        raise ThroughlineError(f"{where} is signed with the key {key[:12]}, which is not trusted: {remedy}.")
    return verifier.use_elliptic_key_verifier(public_key=public)


def _trusted(settings: Settings) -> dict[str, Path]:
    """Public keys by the fingerprint that signatures have of them."""
    from cryptography.hazmat.primitives import serialization  # postpones cryptography

    found = {}
    for path in (settings.keys / PUBLIC, *sorted((settings.keys / TRUSTED).glob("*.pub"))):
        try:
            pem = _pem(serialization.load_pem_public_key(path.read_bytes()))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ThroughlineError(f"{path} is not a public key in PEM ({_one_line(error)}): remove it.") from error
        found[hashlib.sha256(pem).hexdigest()] = path
    return found


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization  # postpones cryptography

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form)


def _hashing() -> Hashing:
    """All files are hashed, also git's."""
    from model_signing.hashing import Config  # postpones model_signing

    return Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _read(content: bytes) -> tuple[str | None, dict[str, str]]:
    """Of a signature, unverified: the key's name (None: a certificate instead), file name -> SHA-256."""
    bundle = json.loads(content)
    key = bundle["verificationMaterial"].get("publicKey")
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    files = (file for file in statement["predicate"]["resources"] if file["algorithm"] == "sha256")
    return None if key is None else str(key["hint"]), {file["name"]: file["digest"] for file in files}


def _files(folder: Path) -> dict[str, Path]:
    """Files and links, by name relative to `folder`."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {name: path for path in found if (name := path.relative_to(folder).as_posix()) != SIGNATURE}


def _differences(folder: Path, signed: dict[str, str]) -> str:
    found = _files(folder)
    changed = [name for name in signed if name in found and _digest(found[name]) != signed[name]]
    by_kind = {"changed": changed, "added": found.keys() - signed.keys(), "removed": signed.keys() - found.keys()}
    return "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in by_kind.items() if names)


def _digest(path: Path) -> str:
    """Hex; empty for what is no regular file."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_line(error: Exception | None) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
