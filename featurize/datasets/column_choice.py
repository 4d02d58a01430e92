"""What the user says of the columns of a table: which is the path, what others are called, and their kinds."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xfeat.featurize.errors import SpecError
from xfeat.featurize.images.dicom.patient import TAGS
from xfeat.featurize.text import listed, quote

ROLES = ("path", "label", "split", "group")
KINDS = ("number", "category", "text", "date", "date-dmy", "date-mdy", "ignore")
# Names of the arrays of a cache, and of the columns of predictions.csv.
_OWN_NAMES = {*ROLES, "features", "sha256", "size", "mtime_ns", "change_mark", "truncated", "skipped", "header"}
_OWN_NAMES |= {"prediction"}
_MISSING = "na n/a n.a. nan <na> nat null none nil - -- – — . ? unknown missing (null) #na #n/a"
# German "k. A." is "no information", and "n. b." is "not known". "Not applicable" is none of them: that is an answer.
_UNKNOWN = """not available; not known; not specified; unbekannt; nicht bekannt; keine angabe; k. a.; k.a.; n. b.; n.b.;
inconnu; inconnue; non renseigné; desconocido; desconocida; desconhecido; desconhecida; sconosciuto; sconosciuta;
onbekend; ukendt; ukjent; okänd; nieznany; неизвестно; 未知; 不明"""
_ERRORS = "#ref! #div/0! #value! #name? #num! #null!"  # of spreadsheets
MISSING = frozenset([*f"{_MISSING} {_ERRORS}".split(), *re.split(r";\s+", _UNKNOWN)])
"""Texts that mean that a value is unknown; compared without case."""
_MAX_NAME = 100
DICOM_COLUMNS = (*(tag for tag in TAGS if tag != "PatientID"), "PatientHash")
"""The columns that DICOM files fill; the last is a hash of PatientID with a secret."""


@dataclass(frozen=True, kw_only=True)
class ColumnChoice:
    """The option ``--columns``.

    Attributes:
        names: what a column is called here (a role such as ``path``, or a new name) to its name in the table.
        kinds: of columns, by their names here: one of :data:`KINDS`.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> ColumnChoice:
        """Read ``path=filename,sex=Geschlecht,age:number``; names with commas are in quotation marks.

        Raises:
            SpecError: if a part says nothing, or a name stands twice.
        """
        names: dict[str, str] = {}
        kinds: dict[str, str] = {}
        for part in next(csv.reader([text], skipinitialspace=True)) if text else []:
            rest, separator, kind = part.rpartition(":")
            if not separator or kind.strip() not in KINDS:
                rest, kind = part, ""
            name, equals, column = (word.strip() for word in rest.partition("="))
            if not name or (equals and not column) or not (equals or kind) or (kind and name in ROLES):
                raise SpecError(
                    f"--columns: {part!r} says nothing of a column",
                    expected=f"path=filename, sex=Geschlecht or age:KIND, with KIND one of {', '.join(KINDS)}",
                    fix="put a name with a comma in quotation marks",
                )
            if (equals and name in names) or (kind and name in kinds):
                raise SpecError(f"--columns: {name} stands there twice", found=str(text), fix="give each column once")
            names |= {name: column} if equals else {}
            kinds |= {name: kind.strip()} if kind else {}
        return cls(names=names, kinds=kinds)

    def check_used(self, columns: Sequence[str], headers: Sequence[str], others: Sequence[str] = ()) -> None:
        """Check that every name in it is that of a column.

        Args:
            columns: what the further columns of all tables are called here.
            headers: the names in all tables.
            others: names that columns from elsewhere may have.

        Raises:
            SpecError: if one is not.
        """
        unknown = [column for column in self.names.values() if not find_name(column, headers)]
        unknown += [name for name in self.kinds if name not in {*columns, *others}]
        if fixed := [column for column in unknown if column in DICOM_COLUMNS and column in others]:
            raise SpecError(
                f"--columns: {listed(fixed)} comes from DICOM files, whose columns keep their names",
                found=", ".join(f"{name}={column}" for name, column in self.names.items() if column in fixed),
                fix=f"leave it out of --columns; {fixed[0]}:KIND gives it a kind, and {fixed[0]}:ignore leaves it away",
            )
        if unknown:
            raise SpecError(
                f"--columns: no column called {listed(unknown)}",
                expected=f"some of: {listed(dict.fromkeys([*headers, *columns])) or 'none, there is no table'}",
                fix="write the names as the first line of the table has them",
            )


AS_WRITTEN = ColumnChoice()
"""No choice: columns are found by their usual names."""


def find_name(name: str, header: Sequence[str]) -> list[int]:
    """Return the positions of a name in a header: as it is written, else with other capitals."""
    exact = [at for at, column in enumerate(header) if column == name]
    return exact or [at for at, column in enumerate(header) if column.casefold() == name.casefold()]


def further_names(
    header: Sequence[str], roles: Mapping[str, int], choice: ColumnChoice
) -> tuple[dict[int, str], list[str]]:
    """Name the columns of a table that are no path, label, split or group.

    Args:
        header: the first line.
        roles: positions of path, label, split and group.
        choice: new names for some.

    Returns:
        Position to name; and what was renamed, for a message.
    """
    asked = {at: new for new, old in choice.names.items() for at in find_name(old, header)}
    names: dict[int, str] = {}
    notes = []
    again: Counter[str] = Counter()
    taken = {name.casefold() for name in _OWN_NAMES}
    for at, written in enumerate(header):
        if at in roles.values():
            continue
        plain = re.sub(r"[\x00-\x1f\x7f]+", " ", asked.get(at, written)).strip()[:_MAX_NAME] or f"column {at + 1}"
        name = f"table_{plain}" if plain.casefold() in _OWN_NAMES else plain
        while name.casefold() in taken:
            again[plain] += 1
            name = f"{plain}_{again[plain] + 1}"
        taken.add(name.casefold())
        names[at] = name
        if written and name != asked.get(at, written):
            notes.append(f"column {at + 1} ({quote(written)}) is called {name} here")
    return names, notes
