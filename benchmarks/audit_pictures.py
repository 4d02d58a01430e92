"""How many turned, mirrored and inverted images does the audit find? The table of docs/audit.md, from your images.

    python benchmarks/audit_pictures.py IMAGES

A share of the images below the folder IMAGES is altered in one way, and all are audited. The baseline in the same run
are the unaltered ones, of which none must be named.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
from PIL import Image

from xfeat.featurize.audit.survey import SIDE, Survey
from xfeat.featurize.audit.suspects import ALTERATIONS, told_kinds
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.images.decode import decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    dataset = open_dataset(parser.parse_args().images)
    source, side = dataset.open(), (SIDE, SIDE)
    grey = np.stack(
        [
            np.asarray(decode(source.read(entry.path)[0]).convert("L").resize(side, Image.Resampling.BOX))
            for entry in dataset.entries
        ]
    )
    groups = np.unique([entry.group or entry.path for entry in dataset.entries], return_inverse=True)[1]
    print("altered how | share | copies that are told | found | unaltered images named")
    for share in (0, 0.01, 0.05, 0.1):
        draws = np.random.default_rng(1)
        for name, (_, alter) in ALTERATIONS.items():
            bad = draws.random(len(grey)) < share
            shown = grey.copy()
            shown[bad] = alter(grey[bad])
            survey = cast(Survey, SimpleNamespace(grey=shown))
            told, found = told_kinds(survey, groups, np.arange(len(grey)))
            named = {one.row for one in found[name]} & set(np.flatnonzero(bad).tolist())
            wrong = sum(not bad[one.row] for flagged in found.values() for one in flagged)
            print(f"{name} | {share:.0%} | {told[name]:.1%} | {len(named)} of {bad.sum()} | {wrong}")


if __name__ == "__main__":
    main()
