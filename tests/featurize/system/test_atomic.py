"""Files that appear whole or not at all, and what is said when they cannot."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from xfeat.featurize.errors import OutputError
from xfeat.featurize.system.atomic import output_error, replacing


@pytest.mark.parametrize(
    "number", [errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EIO]
)
def test_the_mend_names_the_option_that_the_command_has(number: int) -> None:
    error = OSError(number, "some reason")
    assert "another place with -o" in str(output_error(Path("x"), error))
    said = str(output_error(Path("x"), error, elsewhere="name another folder with --runs"))
    assert "name another folder with --runs" in said
    assert "with -o" not in said


def test_a_full_disk_is_no_reason_for_another_place() -> None:
    said = str(output_error(Path("x"), OSError(errno.ENOSPC, "full"), elsewhere="ELSEWHERE"))
    assert "free some space" in said
    assert "ELSEWHERE" not in said


def test_a_file_that_cannot_be_replaced_stays_and_the_fix_is_given(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("as it was")
    with (
        pytest.raises(OutputError, match=r"its parent folder is a file(.|\n)*set HERE"),
        replacing(tmp_path / "file" / "new", elsewhere="set HERE") as partial,
    ):
        partial.write_text("never")
    assert (tmp_path / "file").read_text() == "as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
