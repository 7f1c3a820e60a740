"""A key that never leaves its token signs as the home's own does: SoftHSM, a real PKCS #11 token in software."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.conftest import needs
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.models.signing import SIGNATURE, sign, verify

MODULES = [Path("/usr/lib/softhsm/libsofthsm2.so"), Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")]
PIN, LABEL, KEY = "98761234", "throughline", "model-signing"
P256 = bytes.fromhex("06082a8648ce3d030107")  # the curve's object identifier, DER


@dataclass(frozen=True)
class Token:
    uri: str
    pin: Path
    public: bytes  # PEM


@pytest.fixture(scope="module")
def token(tmp_path_factory) -> Iterator[Token]:
    """A token of its own with one key pair of an elliptic curve."""
    needs("softhsm2-util")
    module = next((path for path in MODULES if path.exists()), None)
    if module is None:
        pytest.skip("SoftHSM's module is not installed (libsofthsm2.so)")
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    (folder / "pin").write_text(PIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
        made = ["softhsm2-util", "--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", PIN]
        subprocess.run(made, check=True, capture_output=True)
        uri = f"pkcs11:token={LABEL};object={KEY}?module-path={module}&pin-source=file:{folder / 'pin'}"
        yield Token(uri, folder / "pin", _generate(module))


def _generate(module: Path) -> bytes:
    """Make the pair in the token; its public half as PEM."""
    import PyKCS11

    library = PyKCS11.PyKCS11Lib().load(str(module))
    (slot,) = (one for one in library.getSlotList() if library.getTokenInfo(one).label.strip() == LABEL)
    session = library.openSession(slot, PyKCS11.CKF_SERIAL_SESSION | PyKCS11.CKF_RW_SESSION)
    session.login(PIN)
    named = [(PyKCS11.CKA_TOKEN, True), (PyKCS11.CKA_LABEL, KEY)]
    public, _ = session.generateKeyPair(
        [*named, (PyKCS11.CKA_EC_PARAMS, P256), (PyKCS11.CKA_VERIFY, True)],
        [*named, (PyKCS11.CKA_SIGN, True), (PyKCS11.CKA_SENSITIVE, True), (PyKCS11.CKA_EXTRACTABLE, False)],
        PyKCS11.Mechanism(PyKCS11.CKM_EC_KEY_PAIR_GEN, None),
    )
    (point,) = session.getAttributeValue(public, [PyKCS11.CKA_EC_POINT])
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes(point)[2:])  # within an octet string
    session.logout()
    session.closeSession()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form)


@pytest.fixture
def settings(tmp_path: Path, token: Token) -> Settings:
    return load_settings(home=tmp_path / "home", port_base=1024, signing=token.uri)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "artifacts"
    made.mkdir()
    (made / "model.onnx").write_bytes(b"a model")
    return made


def trust(settings: Settings, token: Token) -> None:
    (settings.keys / "trusted").mkdir(parents=True, exist_ok=True)
    (settings.keys / "trusted" / "token.pub").write_bytes(token.public)


def test_what_the_token_signed_holds_and_what_was_changed_since_does_not(settings, token, folder):
    trust(settings, token)
    sign(settings, folder)
    assert verify(settings, folder).keys() == {"model.onnx"}
    assert not (settings.keys / "signing.pem").exists()  # no second key was made beside it
    (folder / "model.onnx").write_bytes(b"another model")
    with pytest.raises(ThroughlineError, match=r"not what was signed \(changed: model.onnx\)"):
        verify(settings, folder)


def test_a_token_whose_public_key_is_not_trusted_here_signs_nothing(settings, token, folder):
    """Or a version would be registered that nobody here may evaluate or serve."""
    with pytest.raises(ThroughlineError, match=r"which is not trusted: .*keys/trusted"):
        sign(settings, folder)
    assert not (folder / SIGNATURE).exists()
    trust(settings, token)
    sign(settings, folder)
    assert verify(settings, folder)


def test_others_verify_with_the_public_key_alone(settings, token, folder, tmp_path):
    trust(settings, token)
    sign(settings, folder)
    elsewhere = load_settings(home=tmp_path / "elsewhere", port_base=1024)
    with pytest.raises(ThroughlineError, match="which is not trusted"):
        verify(elsewhere, folder)
    trust(elsewhere, token)
    assert verify(elsewhere, folder)


@pytest.mark.parametrize("wrong", ["pin", "token", "key", "module"])
def test_a_token_that_cannot_sign_is_told_in_one_line_without_its_pin(settings, token, folder, tmp_path, wrong):
    trust(settings, token)
    (tmp_path / "pin").write_text("11112222")
    uri = {
        "pin": token.uri.replace(str(token.pin), str(tmp_path / "pin")),
        "token": token.uri.replace(f"token={LABEL}", "token=another"),
        "key": token.uri.replace(KEY, "another"),
        "module": token.uri.replace("libsofthsm2.so", "nothing.so"),
    }[wrong]
    message = refusal_of(settings.model_copy(update={"signing": uri}), folder)
    assert "cannot be signed" in message
    assert "setting `signing`" in message
    assert not any(secret in message for secret in ("\n", PIN, "11112222"))
    assert not (folder / SIGNATURE).exists()
    sign(settings, folder)  # the failure left nothing behind that stands in the way


def refusal_of(settings: Settings, folder: Path) -> str:
    """The words alone: who keeps the error keeps its frames, and with them the session with the token."""
    try:
        sign(settings, folder)
    except ThroughlineError as error:
        return str(error)
    pytest.fail("it was signed")
