"""Which columns of a table of features are what: path, label, split, group, the features in their order, others."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xfeat.featurize.datasets.column_choice import ROLES, ColumnChoice, further_names
from xfeat.featurize.datasets.tables import choose_columns
from xfeat.featurize.errors import DataError
from xfeat.featurize.exchange.table_files import TableFile
from xfeat.featurize.text import listed, quote

_FEATURE = re.compile(r"(f|feat|features?|x|dim|emb|embeddings?|)[ _.-]?(\d{1,6})", re.IGNORECASE | re.ASCII)
_FEATURE_LISTS = ("features", "embeddings", "feature", "embedding")
# What pandas calls the index that it writes.
_INDEX = re.compile(r"|unnamed: ?\d+|index|level_\d+|__index_level_\d+__", re.IGNORECASE)
_OWN = ("sha256", "size", "truncated")


@dataclass(frozen=True)
class TableColumns:
    """What the columns of a table are, by their names in the file.

    Attributes:
        roles: path, label, split and group to the column.
        features: the columns of the features, in order; one, of lists, or many, of numbers.
        extra: further columns to what they are called in a cache.
        own: of a dump: digest, size and end of the image file.
        notes: what the user should know.
    """

    roles: Mapping[str, str]
    features: Sequence[str]
    extra: Mapping[str, str]
    own: Sequence[str]
    notes: Sequence[str]


def feature_number(name: str) -> tuple[str, int] | None:
    """Return the start and the number of a name such as ``f10``, ``feature_10`` or ``10``; ``None`` for others."""
    found = _FEATURE.fullmatch(name.strip())
    return ((found[1] or "").casefold(), int(found[2])) if found else None


def read_columns(table: TableFile, choice: ColumnChoice) -> TableColumns:
    """Decide what the columns of a table are.

    Args:
        table: the table.
        choice: what the user says of some.

    Raises:
        DataError: if a column is missing, stands twice, or could be two things.
    """
    path, names = table.path, table.names
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise DataError("columns of the same name", path=path, found=listed(map(quote, twice)), fix="rename them")
    features = _features(table)
    used = set(features)
    rest = [name for name in names if name not in used]
    found = choose_columns(path, rest, [], ROLES, [], choice)
    if "label" not in found and "y" in rest:  # as scikit-learn calls it
        found["label"] = rest.index("y")
    # Arrays may have no paths: rows get numbers.
    required = ("label",) if path.suffix.lower() == ".npz" else ("path", "label")
    choose_columns(path, rest, [role for role in required if role not in found], [], [], choice)
    roles = {role: rest[at] for role, at in found.items()}
    others = [name for name in rest if name not in roles.values()]
    own = [name for name in _OWN if name in others and table.note is not None]
    index = [name for name in others if _INDEX.fullmatch(name.strip())]
    kept = [name for name in others if name not in (*own, *index)]
    extra, notes = further_names(kept, {}, choice)
    if index:
        named = listed(quote(name) or "(no name)" for name in index)
        notes = [f"the index that was written as a column is left out: {named}", *notes]
    return TableColumns(roles, features, {kept[at]: name for at, name in extra.items()}, own, notes)


def _features(table: TableFile) -> list[str]:
    """Return the columns of the features in their order: f10 after f9."""
    lists = [name for name in _FEATURE_LISTS if name in table.lists] or table.lists
    families: defaultdict[str, dict[int, list[str]]] = defaultdict(dict)
    for name in table.names:
        if number := feature_number(name):
            families[number[0]].setdefault(number[1], []).append(name)
    many = [family for family, numbers in families.items() if len(numbers) > 1] or list(families)
    many = ["f"] if "f" in many else many
    possible = lists or [next(iter(families[family].values()))[0] for family in many]
    if len(possible) != 1:
        raise DataError(
            "several kinds of columns could be the features" if possible else "it has no features",
            path=table.path,
            expected="columns f0, f1, … or one column of lists, called features",
            found=listed(map(quote, possible or table.names)) or "no columns",
            fix="name the columns of the features so, and no others",
        )
    if lists:
        return lists
    family = many[0]
    numbers = families[family]
    if again := [names for names in numbers.values() if len(names) > 1]:
        found = " and ".join(map(quote, again[0]))
        raise DataError("two columns of one feature", path=table.path, found=found, fix="remove one of them")
    first = min(min(numbers), 1)
    if missing := sorted(set(range(first, max(numbers) + 1)) - numbers.keys()):
        raise DataError(
            "columns of features are missing",
            path=table.path,
            expected=f"all from {family}{first} to {family}{max(numbers)}",
            found=f"{len(numbers)} of them, without {listed(f'{family}{number}' for number in missing)}",
            fix="write all of them, or number them without gaps",
        )
    return [numbers[number][0] for number in sorted(numbers)]
