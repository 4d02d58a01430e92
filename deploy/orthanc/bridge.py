"""Writes a structured report and a heatmap for each image that arrives in an Orthanc server, into its study.

    python deploy/orthanc/bridge.py --orthanc http://127.0.0.1:8042 --model model.onnx --state bridge.json

It asks Orthanc's REST API for changes, so that it works with any Orthanc, needs nothing installed there, and can stop
at any time: the state file has the number of the last change that was dealt with, and a report that Orthanc already has
is not stored twice. README.md beside this file says more. The log has Orthanc's identifiers, and nothing of patients.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import time
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import click

from xfeat.featurize.errors import DataError, ImageError, SpecError, XfeatError
from xfeat.featurize.system.atomic import replacing
from xfeat.serve.dicom_sr.source import MANUFACTURER
from xfeat.serve.dicom_sr.write import ReportBuilder
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import SkippedImage

logger = logging.getLogger("bridge")

_TIMEOUT_S = 60.0
_CHANGES = 100
_LONGEST_WAIT_S = 60.0
# An image that Orthanc cannot hand out, or that ends this process, must not hold up the others.
_ATTEMPTS = 5


class _NoRedirect(HTTPRedirectHandler):
    """Refuses redirections: urllib would turn POST into GET, and send the password along."""

    def redirect_request(self, req: Request, fp: Any, *where: Any) -> None:
        fp.close()
        fix = "give that one with --orthanc"
        raise SpecError("this address leads to another", path=req.host, found=where[-1], fix=fix)


# Images and reports go to Orthanc itself, and not through a proxy of the environment.
_OPENER = build_opener(ProxyHandler({}), _NoRedirect)


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """The REST API of an Orthanc server.

    Attributes:
        url: without a slash at the end.
        credentials: ``user:password``, or ``None``.
    """

    url: str
    credentials: str | None = field(default=None, repr=False)

    def call(self, path: str, body: bytes | None = None) -> bytes:
        """Return what Orthanc answers: to GET, or with a body to POST.

        Raises:
            SpecError: if it refuses the user.
            HTTPError: if it answers with another error.
            OSError: if it does not answer.
        """
        headers = {"Content-Type": "application/dicom"} if body is not None else {}
        if self.credentials is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(self.credentials.encode()).decode()}"
        try:
            with _OPENER.open(Request(self.url + path, body, headers), timeout=_TIMEOUT_S) as answer:
                content: bytes = answer.read()
                return content
        except HTTPError as error:
            error.close()
            if error.code not in (401, 403):
                raise
            fix = "give --user and --password-file as in RegisteredUsers of Orthanc"
            raise SpecError(f"Orthanc refuses the user ({error.code})", path=self.url, fix=fix) from error

    def json(self, path: str) -> Any:
        """Return the answer to GET, parsed."""
        return json.loads(self.call(path))


class Bridge:
    """Deals with the changes of an Orthanc server, one after the other.

    Args:
        orthanc: the server.
        predictor: the model.
        state: file with number and date of the last change that was dealt with.
        modalities: of the images that get a report; empty for all.
        from_now: without a state file, begin with images that arrive from now on.

    Raises:
        XfeatError: if the state file or the certificate of the model cannot be read, or highdicom is missing.
    """

    def __init__(
        self, orthanc: Orthanc, predictor: Predictor, state: Path, modalities: tuple[str, ...], *, from_now: bool
    ) -> None:
        self._orthanc, self._predictor, self._state = orthanc, predictor, state
        self._modalities = {modality.upper() for modality in modalities}
        self._builder = ReportBuilder(predictor)
        self._last, self._date, self._attempts = _read_state(state)
        self._from_now = from_now

    def catch_up(self) -> None:
        """Deal with all changes since the last one.

        Raises:
            OSError: if Orthanc does not answer, or has a problem of its own; what was dealt with is kept.
        """
        newest = self._ask("last")["Changes"]
        if self._last is None:
            start = newest[0] if newest and self._from_now else {"Seq": 0, "Date": ""}
            self._save(start["Seq"], start["Date"])
        elif any(change["Seq"] <= self._last and change["Date"] > self._date for change in newest + self._next(-1, 1)):
            logger.warning("Orthanc counts its changes anew: all of its images are looked at again")
            self._save(0, "")
        while changes := self._next(0, _CHANGES):
            for change in changes:
                if change["ChangeType"] == "NewInstance":
                    self._deal_with(str(change["ID"]))
                self._save(int(change["Seq"]), max(self._date, change["Date"]))

    def _next(self, offset: int, limit: int) -> list[dict[str, Any]]:
        """Return the changes after the last one that was dealt with; those of deleted images are missing."""
        found: list[dict[str, Any]] = self._ask(f"since={max(0, (self._last or 0) + offset)}&limit={limit}")["Changes"]
        return found

    def _ask(self, which: str) -> Any:
        try:
            answer = self._orthanc.json(f"/changes?{which}")
        except HTTPError as error:
            if error.code != 404:
                raise
            answer = None
        if not isinstance(answer, dict) or "Changes" not in answer:
            fix = "give the address of Orthanc's REST API with --orthanc"
            raise SpecError("this is no Orthanc: it has no list of changes", path=self._orthanc.url, fix=fix)
        return answer

    def _save(self, last: int | None, date: str, attempts: int = 0) -> None:
        self._last, self._date, self._attempts = last, date, attempts
        with replacing(self._state, elsewhere="choose another file with --state") as partial:
            partial.write_text(json.dumps({"last": last, "date": date, "attempts": attempts}) + "\n")

    def _deal_with(self, instance: str) -> None:
        if self._attempts >= _ATTEMPTS:
            logger.error("instance %s: no report: given up after %d attempts", instance, self._attempts)
            return
        self._save(self._last, self._date, self._attempts + 1)
        try:
            tags = self._orthanc.json(f"/instances/{instance}/simplified-tags")
            own = tags.get("Manufacturer") == MANUFACTURER
            if own or (self._modalities and tags.get("Modality") not in self._modalities):
                return
            content = self._orthanc.call(f"/instances/{instance}/file")
            [result] = self._predictor.predict([content], heatmap=self._builder.has_heatmaps, on_error="skip")
            if isinstance(result, SkippedImage):
                raise ImageError(result.reason)
            for file in self._builder.build(result, content).values():
                self._store(instance, file)
            logger.info("instance %s: report stored", instance)
        except ImageError as error:
            logger.info("instance %s: no report: %s", instance, error.what)
        except HTTPError as error:
            if error.code != 404:
                raise
            logger.info("instance %s: no report: it was deleted", instance)

    def _store(self, instance: str, content: bytes) -> None:
        self._orthanc.call(f"/instances/{instance}")  # a report must not bring back a study that was deleted
        try:
            status = json.loads(self._orthanc.call("/instances", content))["Status"]
        except OSError as error:
            if isinstance(error, HTTPError) and error.code < 500:
                raise ImageError(f"Orthanc refuses it (HTTP {error.code})") from error
            self._attempts = 0  # its disk is full, or it is stopping: tried until it works
            raise
        if status not in ("Success", "AlreadyStored"):
            raise ImageError(f"Orthanc refuses it ({status})")


def _read_state(path: Path) -> tuple[int | None, str, int]:
    try:
        state = json.loads(path.read_text())
        return int(state["last"]), str(state["date"]), int(state["attempts"])
    except FileNotFoundError:
        return None, "", 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "delete it: all images are looked at again, and no report is stored twice"
        raise DataError("the state of the bridge cannot be read", path=path, found=str(error), fix=fix) from error


def _credentials(user: str | None, password_file: Path | None) -> str | None:
    if user is None and password_file is None:
        return None
    if user is None or password_file is None:
        raise SpecError("--user and --password-file belong together", fix="give both")
    try:
        return f"{user}:{password_file.read_text(encoding='utf-8').strip()}"
    except (OSError, UnicodeError) as error:
        raise SpecError("the password cannot be read", path=password_file, found=str(error)) from error


def _watch(bridge: Bridge, interval_s: float) -> None:
    wait_s = interval_s
    while True:
        try:
            bridge.catch_up()
            if wait_s > interval_s:
                logger.info("Orthanc answers again")
            wait_s = interval_s
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, XfeatError):
                raise
            if wait_s == interval_s:
                logger.warning("Orthanc does not answer (%s): trying again until it does", _reason(error))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        time.sleep(wait_s)


def _reason(error: Exception) -> str:
    return f"HTTP {error.code}" if isinstance(error, HTTPError) else str(getattr(error, "reason", error))


_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--orthanc", required=True, metavar="URL", help="Of the REST API, such as http://127.0.0.1:8042.")
@click.option("--model", type=_FILE, required=True, help="Model file written by xexport onnx.")
@click.option("--state", type=_FILE, required=True, help="File that remembers which images were dealt with.")
@click.option("--user", help="User of Orthanc.")
@click.option("--password-file", type=_FILE, help="File with the password of the user.")
@click.option("--modality", multiple=True, help="Only images of it, such as DX; may be given several times.")
@click.option("--from-now", is_flag=True, help="At the first start, leave out the images that are there already.")
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Deal with what is there, and end; exit code 1 if Orthanc does not answer.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads for the network.  [default: number of cores]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--require-signature", type=_FILE, metavar="KEY", help="Public key that must have signed the model.")
def main(
    orthanc: str,
    model: Path,
    state: Path,
    user: str | None,
    password_file: Path | None,
    modality: tuple[str, ...],
    from_now: bool,
    interval: float,
    once: bool,
    **settings: Any,
) -> None:
    """Write a structured report and a heatmap for each image in an Orthanc server, and each that arrives."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(logging.INFO)
    logging.getLogger("pydicom").propagate = False  # warns ten times per image of an unknown character set
    try:
        if not re.fullmatch(r"https?://[^/@?#]+(/[^@?#]*)?", orthanc):
            raise SpecError("no address of Orthanc", expected="http://HOST:PORT, without user, password and query")
        server = Orthanc(url=orthanc.rstrip("/"), credentials=_credentials(user, password_file))
        bridge = Bridge(server, Predictor(model, **settings), state, modality, from_now=from_now)
        if not once:
            logger.info("watching %s", server.url)
            _watch(bridge, interval)
        bridge.catch_up()
    except KeyboardInterrupt:
        sys.exit(130)
    except XfeatError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except (OSError, HTTPException, ValueError) as error:
        click.echo(f"error: Orthanc does not answer: {_reason(error)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
