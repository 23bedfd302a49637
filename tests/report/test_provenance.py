"""Where the numbers of a report come from."""

import shutil
import subprocess

from ptq_diffusion.report.provenance import commit


def test_a_commit_is_that_of_a_checkout(tmp_path):
    assert commit(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert commit(tmp_path) is None, "a broken checkout"
    shutil.rmtree(tmp_path / ".git")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("first")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    revision = commit(tmp_path)
    assert len(revision) == 40 and set(revision) <= set("0123456789abcdef")
    (tmp_path / "file").write_text("second")
    assert commit(tmp_path) == f"{revision}+changes"
