"""With --require-signature, only models with a valid signature are used. Tables of signatures, keys and swaps."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import minisign
import pytest

from tests.trust.conftest import Say
from xfeat.export.parity.signature import check_signature, read_public_key, sign_certificate, signature_path
from xfeat.featurize.errors import MismatchError, ModelError, OutputError, SpecError, XfeatError

pytestmark = pytest.mark.slow

CONTENT = b'{"format": "xfeat.certificate"}\n'
STOCK = shutil.which("minisign")


class Signer:
    """A pair of keys, as files, and a certificate that the secret one has signed."""

    def __init__(self, folder: Path) -> None:
        pair = minisign.KeyPair.generate()
        self.secret, self.public = folder / "minisign.key", folder / "minisign.pub"
        self.secret.write_bytes(bytes(pair.secret_key) + b"\n")
        self.public.write_bytes(bytes(pair.public_key) + b"\n")
        self.certificate = folder / "model.certificate.json"
        self.certificate.write_bytes(CONTENT)
        self.signature = sign_certificate(self.certificate, CONTENT, self.secret)

    def sign(self, content: bytes) -> bytes:
        """Return a signature of something else by the same key."""
        return bytes(minisign.SecretKey.from_file(self.secret).sign(content))

    def check(self) -> None:
        check_signature(self.certificate, self.certificate.read_bytes(), read_public_key(self.public))

    def edit(self, line: int, change: Callable[[bytes], bytes]) -> None:
        lines = self.signature.read_bytes().splitlines()
        lines[line] = change(lines[line])
        self.signature.write_bytes(b"\n".join(lines) + b"\n")


def decoded(change: Callable[[bytearray], None]) -> Callable[[bytes], bytes]:
    """Return a change of what a line of Base64 encodes."""

    def edited(line: bytes) -> bytes:
        content = bytearray(base64.b64decode(line))
        change(content)
        return base64.b64encode(content)

    return edited


def flip(place: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[place] ^= 1

    return change


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path)


def other_key(signer: Signer) -> None:
    signer.signature.write_bytes(bytes(minisign.KeyPair.generate().secret_key.sign(CONTENT)))


def other_key_with_our_id(signer: Signer) -> None:
    ours = base64.b64decode(signer.signature.read_bytes().splitlines()[1])[2:10]
    other_key(signer)
    signer.edit(1, decoded(lambda content: content.__setitem__(slice(2, 10), ours)))


def instead(make: Callable[[Path], object]) -> Callable[[Signer], None]:
    """Put something else in the place of the signature."""

    def change(signer: Signer) -> None:
        signer.signature.unlink()
        make(signer.signature)

    return change


ACCEPTED: dict[str, Callable[[Signer], object]] = {
    "as it was made": lambda signer: None,
    "lines of Windows": lambda signer: signer.signature.write_bytes(
        signer.signature.read_bytes().replace(b"\n", b"\r\n")
    ),
    "without the last line break": lambda signer: signer.signature.write_bytes(signer.signature.read_bytes().rstrip()),
    "another untrusted comment": lambda signer: signer.edit(0, lambda line: b"untrusted comment: other"),
}
REFUSED: dict[str, tuple[Callable[[Signer], object], type[XfeatError], str]] = {
    "none": (lambda signer: signer.signature.unlink(), ModelError, "has no signature"),
    "a folder": (instead(Path.mkdir), ModelError, "Is a directory"),
    "a pipe": (instead(os.mkfifo), ModelError, "signature cannot be read"),
    "a link that leads nowhere": (instead(lambda path: path.symlink_to("nowhere")), ModelError, "has no signature"),
    "empty": (lambda signer: signer.signature.write_bytes(b""), ModelError, "invalid number of lines"),
    "huge": (lambda signer: os.truncate(signer.signature, 1 << 40), ModelError, "not a signature"),
    "a huge comment": (
        lambda signer: signer.edit(2, lambda line: line + b" " * (1 << 20)),
        ModelError,
        "not a signature",
    ),
    "three lines": (
        lambda signer: signer.signature.write_bytes(b"\n".join(signer.signature.read_bytes().splitlines()[:3])),
        ModelError,
        "invalid number of lines",
    ),
    "no Base64": (lambda signer: signer.edit(1, lambda line: b"?" * 100), ModelError, "base64"),
    "a comment that is no text": (lambda signer: signer.edit(2, lambda line: line + b"\xff"), ModelError, "comment"),
    "another algorithm": (
        lambda signer: signer.edit(1, decoded(lambda content: content.__setitem__(slice(0, 2), b"RS"))),
        ModelError,
        "unsupported signature algorithm",
    ),
    "a shorter algorithm": (
        lambda signer: signer.edit(1, decoded(lambda content: content.__setitem__(slice(0, 2), b"Ed"))),
        MismatchError,
        "another content",
    ),
    "by another key": (other_key, MismatchError, "one by the key"),
    "by another key of the same id": (other_key_with_our_id, MismatchError, "another content"),
    "a changed bit": (lambda signer: signer.edit(1, decoded(flip(40))), MismatchError, "another content"),
    "a changed bit of the second one": (
        lambda signer: signer.edit(3, decoded(flip(0))),
        MismatchError,
        "another trusted comment",
    ),
    "another trusted comment": (
        lambda signer: signer.edit(2, lambda line: line + b" for hospital B"),
        MismatchError,
        "another trusted comment",
    ),
    "of another certificate": (
        lambda signer: signer.signature.write_bytes(signer.sign(b"{}")),
        MismatchError,
        "another content",
    ),
    "one more space in the certificate": (
        lambda signer: signer.certificate.write_bytes(CONTENT + b" "),
        MismatchError,
        "another content",
    ),
}
PUBLIC_KEYS: dict[str, tuple[Callable[[Signer], object], str]] = {
    "none": (lambda signer: signer.public.unlink(), "No such file"),
    "a folder": (lambda signer: (signer.public.unlink(), signer.public.mkdir()), "Is a directory"),
    "a pipe": (lambda signer: (signer.public.unlink(), os.mkfifo(signer.public)), "not a regular file"),
    "empty": (lambda signer: signer.public.write_bytes(b""), "invalid number of lines"),
    "huge": (lambda signer: os.truncate(signer.public, 1 << 40), "not a public key"),
    "the secret key": (lambda signer: shutil.copy(signer.secret, signer.public), "a secret key"),
    "a signature": (lambda signer: shutil.copy(signer.signature, signer.public), "invalid number of lines"),
    "a key of OpenSSL": (
        lambda signer: signer.public.write_text("-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"),
        "invalid number of lines",
    ),
    "a key of SSH": (lambda signer: signer.public.write_text("ssh-ed25519 AAAAC3Nz me\n"), "invalid number of lines"),
    "cut short": (lambda signer: signer.public.write_bytes(signer.public.read_bytes()[:-10]), "base64"),
    "an image": (lambda signer: signer.public.write_bytes(b"\x89PNG\r\n\x1a\n"), "not a public key"),
}
SECRET_KEYS: dict[str, tuple[Callable[[Signer], object], str]] = {
    "none": (lambda signer: signer.secret.unlink(), "No such file"),
    "a folder": (lambda signer: (signer.secret.unlink(), signer.secret.mkdir()), "Is a directory"),
    "the public key": (lambda signer: shutil.copy(signer.public, signer.secret), "not a secret key"),
    "with a password": (
        lambda signer: signer.secret.write_bytes(with_password(signer.secret)),
        "has a password\n  fix:      minisign -S -s ",
    ),
}


def with_password(file: Path) -> bytes:
    key = minisign.SecretKey.from_file(file)
    key.encrypt("secret", opslimit=1 << 15, memlimit=1 << 20)
    return bytes(key)


@pytest.mark.parametrize("what", ACCEPTED)
def test_valid_signatures_are_accepted(signer: Signer, what: str) -> None:
    ACCEPTED[what](signer)
    signer.check()


@pytest.mark.parametrize("what", REFUSED)
def test_signatures_that_are_not_valid_are_refused_with_the_reason(signer: Signer, what: str) -> None:
    change, error, reason = REFUSED[what]
    change(signer)
    with pytest.raises(error) as refused:
        signer.check()
    assert reason in str(refused.value)
    assert f"minisign -Sm {signer.certificate}" in str(refused.value)


@pytest.mark.parametrize("what", PUBLIC_KEYS)
def test_files_that_are_no_public_keys_are_refused_with_the_reason(signer: Signer, what: str) -> None:
    change, reason = PUBLIC_KEYS[what]
    change(signer)
    with pytest.raises(SpecError) as refused:
        read_public_key(signer.public)
    assert str(signer.public) in str(refused.value)
    assert reason in str(refused.value)


@pytest.mark.parametrize("what", SECRET_KEYS)
def test_secret_keys_that_cannot_be_used_are_refused_with_the_reason(signer: Signer, what: str) -> None:
    change, reason = SECRET_KEYS[what]
    change(signer)
    before = signer.signature.read_bytes()
    with pytest.raises(SpecError) as refused:
        sign_certificate(signer.certificate, CONTENT, signer.secret)
    assert reason in str(refused.value)
    assert signer.signature.read_bytes() == before


def test_a_signature_that_cannot_be_written_is_an_error(signer: Signer) -> None:
    instead(Path.mkdir)(signer)
    with pytest.raises(OutputError):
        sign_certificate(signer.certificate, CONTENT, signer.secret)


@pytest.mark.skipif(STOCK is None, reason="needs the program minisign")
@pytest.mark.parametrize("form", [[], ["-l"]], ids=["of a digest", "of the content"])
def test_minisign_and_xfeat_accept_each_others_signatures(signer: Signer, form: list[str]) -> None:
    def stock(*arguments: object) -> int:
        command = [str(STOCK), *map(str, arguments), "-m", str(signer.certificate)]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60).returncode

    assert stock("-V", "-p", signer.public) == 0
    signer.signature.unlink()
    keys = signer.public.with_name("stock.pub"), signer.secret.with_name("stock.key")
    made = [str(STOCK), "-G", "-W", "-p", str(keys[0]), "-s", str(keys[1])]
    subprocess.run(made, stdin=subprocess.DEVNULL, check=True, capture_output=True, timeout=60)
    assert stock("-S", *form, "-s", keys[1]) == 0
    check_signature(signer.certificate, CONTENT, read_public_key(keys[0]))
    sign_certificate(signer.certificate, CONTENT, keys[1])
    assert stock("-V", "-p", keys[0]) == 0


@pytest.fixture
def signed(project: Path, say: Say) -> Path:
    """A project whose model is signed; its key is minisign.pub in the current folder."""
    pair = minisign.KeyPair.generate()
    Path("minisign.key").write_bytes(bytes(pair.secret_key))
    Path("minisign.pub").write_bytes(bytes(pair.public_key))
    assert say("xexport sign model.onnx --key minisign.key") == (0, "model.certificate.json.minisig written\n")
    return project


def change_model(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)


def other_model(folder: Path) -> None:
    """Another model with a certificate of its own, as an attacker or an export would write it; the old signature."""
    certificate = folder / "model.certificate.json"
    certificate.write_text(certificate.read_text().replace('"run": "first"', '"run": "other"'))


SWAPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "the model": (change_model, "does not match its certificate"),
    "model and certificate": (other_model, "the signature is not valid"),
    "certificate removed": (lambda folder: (folder / "model.certificate.json").unlink(), "certificate not found"),
    "signature removed": (lambda folder: (folder / "model.certificate.json.minisig").unlink(), "has no signature"),
    "certificate and signature removed": (
        lambda folder: [path.unlink() for path in folder.glob("model.certificate.json*")],
        "certificate not found",
    ),
}


@pytest.mark.parametrize("command", ["xexport verify model.onnx", "xserve predict data/test/bar/0.png --device cpu"])
@pytest.mark.parametrize("what", SWAPS)
def test_what_is_not_signed_is_not_used(signed: Path, say: Say, command: str, what: str) -> None:
    assert say(f"{command} --require-signature minisign.pub")[0] == 0
    change, reason = SWAPS[what]
    change(signed)
    code, output = say(f"{command} --require-signature minisign.pub")
    assert (code, reason in output) == (1, True), output


def test_the_core_model_is_signed_with_the_full_one(signed: Path, say: Say) -> None:
    assert say("xexport verify model.core.onnx --require-signature minisign.pub")[0] == 0


def test_a_model_that_does_not_match_is_not_signed(project: Path, say: Say) -> None:
    change_model(project)
    Path("minisign.key").write_bytes(bytes(minisign.KeyPair.generate().secret_key))
    code, output = say("xexport sign model.onnx --key minisign.key")
    assert (code, "does not match its certificate" in output) == (1, True)
    assert not signature_path(project / "model.certificate.json").exists()


def test_models_without_a_signature_cannot_be_both_allowed_and_refused(signed: Path, say: Say) -> None:
    line = "xserve predict data/test/bar/0.png --device cpu --allow-unverified --require-signature minisign.pub"
    code, output = say(line)
    assert (code, "--allow-unverified cannot be combined" in output) == (2, True)


def test_verify_says_that_the_signature_is_valid(signed: Path, say: Say) -> None:
    line = "xexport verify model.onnx --require-signature minisign.pub"
    assert "model.onnx matches model.certificate.json, whose signature is valid\n" in say(line)[1]
    assert '"signed": true' in say(f"{line} --json")[1]
    assert '"signed": false' in say("xexport verify model.onnx --json")[1]
