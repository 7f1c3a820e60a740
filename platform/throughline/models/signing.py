"""Signatures of folders by OpenSSF model signing: a trusted key vouches for every file, by name and content.

Owns: the home's key pair, which keys are trusted, signing and verifying a folder of any content. Does not own: what is
signed, when, and what follows from a refusal (`models.py`).

By default an elliptic-curve key (P-256) signs, made on first use: `keys/signing.pem`, readable by its owner only, and
`keys/signing.pub`. Trusted are this home's own key and every `keys/trusted/*.pub` (PEM). The setting `signing` names
another signer: a PKCS #11 URI of a key in an HSM or KMS (its public key goes to `keys/trusted`), or `sigstore`, whose
signatures are accepted of `sigstore_identity` alone. The last is not covered by our tests: it needs a public service.

Nothing in a folder is interpreted here but `model.sig`, which is JSON.
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
    from model_signing.signing import Config

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
    """What a trusted key vouches for: file name -> SHA-256 (hex), all the folder's files but `model.sig`.

    Raises `ThroughlineError` when there is no signature, when a file was changed, added or removed, and when the key
    is not trusted. `where`: what a refusal calls the folder. Whoever reads a file afterwards compares its bytes with
    the digest, for files may change in between.
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
    # A signature may say itself that some files are to be ignored; here none are.
    if failure is None and _files(folder).keys() == signed.keys():
        return signed
    # A ValueError is model_signing's word for files that differ from a statement it has verified, and for more.
    if (failure is None or isinstance(failure, ValueError)) and (differences := _differences(folder, signed)):
        raise ThroughlineError(f"{where} is not what was signed ({differences}): restore it.") from failure
    raise ThroughlineError(f"The signature of {where} does not hold ({_one_line(failure)}): restore it.") from failure


def own_key(settings: Settings) -> Path:
    """The home's private key (PEM), made with its public one when there is none. Two processes may ask at once."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = settings.keys
    private, public = folder / PRIVATE, folder / PUBLIC
    made_before = public.exists()  # asked first: whoever is making the pair places it last
    if not private.exists():
        if made_before:
            raise ThroughlineError(
                f"{private} is gone, {public} is there: restore it, or move {PUBLIC} to {folder / TRUSTED} and a new "
                "pair is made."
            )
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        form = serialization.PrivateFormat.PKCS8
        pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        _place(private, pem, 0o600)
    if not made_before:
        key = serialization.load_pem_private_key(private.read_bytes(), password=None)
        _place(public, _pem(key.public_key()), 0o644)
    return private


def _place(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all; what another process has placed first stands."""
    with tempfile.NamedTemporaryFile(dir=path.parent) as draft:
        os.fchmod(draft.fileno(), mode)
        draft.write(content)
        draft.flush()
        with suppress(FileExistsError):
            os.link(draft.name, path)


def _failure(verifier: Verifying, folder: Path, signature: bytes) -> Exception | None:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / SIGNATURE  # what is verified is what was read, whatever becomes of the folder
        copy.write_bytes(signature)
        try:
            verifier.verify(folder, copy)
        except Exception as error:  # each verifier raises its own kinds
            return error
    return None


def _verifier(settings: Settings, key: str | None, where: object) -> Verifying:
    """For signatures of this key, which must be trusted; None: of an identity, by certificate."""
    from model_signing.verifying import Config

    verifier = Config().set_hashing_config(_hashing())
    if key is None:
        if settings.sigstore_identity is None or settings.sigstore_issuer is None:
            raise ThroughlineError(
                f"{where} is signed by Sigstore, which is not trusted: set `sigstore_identity` and `sigstore_issuer` "
                "to who may sign."
            )
        try:
            return verifier.use_sigstore_verifier(
                identity=settings.sigstore_identity, oidc_issuer=settings.sigstore_issuer
            )
        except Exception as error:  # it fetches Sigstore's own keys
            raise ThroughlineError(f"{where} cannot be verified, Sigstore fails ({_one_line(error)}).") from error
    public = _trusted(settings).get(key)
    if public is None:
        raise ThroughlineError(
            f"{where} is signed with the key {key[:12]}, which is not trusted: if it should be, put its public key "
            f"into {settings.keys / TRUSTED} as NAME.pub."
        )
    return verifier.use_elliptic_key_verifier(public_key=public)


def _trusted(settings: Settings) -> dict[str, Path]:
    """Public keys by what signatures call them."""
    from cryptography.hazmat.primitives import serialization

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
    from cryptography.hazmat.primitives import serialization

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form)


def _hashing() -> Hashing:
    """Every file counts, those of git, too."""
    from model_signing.hashing import Config

    return Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _read(content: bytes) -> tuple[str | None, dict[str, str]]:
    """Of a signature, unverified: the key's name (None: a certificate instead), file name -> SHA-256."""
    bundle = json.loads(content)
    key = bundle["verificationMaterial"].get("publicKey")
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    files = (file for file in statement["predicate"]["resources"] if file["algorithm"] == "sha256")
    return None if key is None else str(key["hint"]), {file["name"]: file["digest"] for file in files}


def _files(folder: Path) -> dict[str, Path]:
    """Whatever is no folder, by name relative to `folder`; a link to one counts, too."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {name: path for path in found if (name := path.relative_to(folder).as_posix()) != SIGNATURE}


def _differences(folder: Path, signed: dict[str, str]) -> str:
    found = _files(folder)
    changed = [name for name in signed if name in found and _digest(found[name]) != signed[name]]
    told = {"changed": changed, "added": found.keys() - signed.keys(), "removed": signed.keys() - found.keys()}
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in told.items() if names)


def _digest(path: Path) -> str:
    """Hex; empty for what is no regular file."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_line(error: Exception | None) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
