"""download_task09.py against a local server: cut off, damaged, resumed."""

import hashlib
import shutil

import pytest
from conftest import ROOT, load_script, run
from server import archive, left

from common.errors import UserError

script = load_script(ROOT / "data_prep/download_task09.py")
script.PAUSE = 0


def config(server, tmp_path, **changes):
    md5 = hashlib.md5(server.content).hexdigest()
    settings = {"output": tmp_path / "data", "url": server.url, "md5": md5, **changes}
    return script.Config(**settings)


def test_a_good_archive_is_unpacked_without_shadow_files(server, tmp_path, repo):
    flags = ("--output", tmp_path / "data", "--url", server.url)
    flags += ("--md5", hashlib.md5(server.content).hexdigest())
    run(repo, "data_prep/download_task09.py", *flags)
    assert left(tmp_path) == ["Task09_Spleen"]
    files = sorted(p.name for p in (tmp_path / "data/Task09_Spleen").rglob("*") if p.is_file())
    assert files == ["dataset.json", "spleen_1.nii.gz"]
    again = run(repo, "data_prep/download_task09.py", *flags, code=1)
    assert "is there already" in again and len(server.asked) == 1


def test_a_connection_that_breaks_again_and_again_is_taken_up(server, tmp_path):
    server.most = 9000
    script.main(config(server, tmp_path, keep_archive=True))
    assert (tmp_path / "data/Task09_Spleen.tar").read_bytes() == server.content
    assert server.asked[:3] == [None, "bytes=9000-", "bytes=18000-"]


def test_a_server_that_gives_nothing_more_leaves_what_a_later_run_continues(server, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "Task09_Spleen.tar.part").write_bytes(server.content[:7000])
    server.most = 0
    with pytest.raises(UserError, match="ended early.*Run this again"):
        script.main(config(server, tmp_path))
    assert left(tmp_path) == ["Task09_Spleen.tar.part"] and len(server.asked) == script.TRIES
    server.most = None
    script.main(config(server, tmp_path))
    assert server.asked[-1] == "bytes=7000-" and left(tmp_path) == ["Task09_Spleen"]


def test_a_server_without_ranges_and_a_part_that_is_whole(server, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/Task09_Spleen.tar.part").write_bytes(b"older")
    server.ranges = False
    script.main(config(server, tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "Task09_Spleen.tar.part").write_bytes(server.content)
    server.ranges = True
    script.main(config(server, tmp_path, output=other))
    assert (other / "Task09_Spleen/dataset.json").exists()


def test_a_server_that_always_starts_anew_is_given_up(server, tmp_path):
    server.ranges, server.most = False, (9000, 4000)
    with pytest.raises(UserError, match="ended early"):
        script.main(config(server, tmp_path))
    assert len(server.asked) <= script.TRIES + 2


def test_interrupted_while_unpacking_it_goes_on_without_fetching_again(
    server, tmp_path, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.main(config(server, tmp_path))
    assert left(tmp_path) == ["Task09_Spleen.tar.part"]
    monkeypatch.undo()
    script.main(config(server, tmp_path))
    assert left(tmp_path) == ["Task09_Spleen"] and len(server.asked) == 1


def test_what_a_run_leaves_that_is_killed_at_its_very_end_is_removed_by_the_next(server, tmp_path):
    script.main(config(server, tmp_path))
    (tmp_path / "data/Task09_Spleen.tar.part").write_bytes(server.content)
    (tmp_path / "data/.Task09_Spleen.partial").mkdir()
    with pytest.raises(UserError, match="is there already"):
        script.main(config(server, tmp_path))
    assert left(tmp_path) == ["Task09_Spleen"]


def test_a_disk_that_is_too_small_is_said_before(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 100))
    with pytest.raises(UserError, match="MB are needed, 0 MB are free"):
        script.main(config(server, tmp_path))
    monkeypatch.undo()
    script.fetch(server.url, tmp_path / "data/Task09_Spleen.tar.part")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 100))
    with pytest.raises(UserError, match="MB are needed"):  # to unpack
        script.main(config(server, tmp_path))


def test_paths_and_addresses_that_are_none(server, tmp_path, repo):
    (tmp_path / "file").write_text("")
    flags = ("--url", server.url, "--output")
    for output, words in ((tmp_path / "file", "File exists"), (tmp_path / "file/x", "Not a dir")):
        text = run(repo, "data_prep/download_task09.py", *flags, output, code=1)
        assert text.splitlines()[-1].startswith("error: ") and words in text
    with pytest.raises(UserError, match="unknown url type"):
        script.main(config(server, tmp_path, url="nonsense"))
    script.main(config(server, tmp_path, md5=hashlib.md5(server.content).hexdigest().upper()))


def test_another_checksum_removes_what_was_fetched_but_not_what_was_given(server, tmp_path):
    with pytest.raises(UserError, match="expected 0000.*It is removed"):
        script.main(config(server, tmp_path, md5="0" * 32))
    assert left(tmp_path) == []
    (tmp_path / "data/Task09_Spleen.tar").write_bytes(b"by hand")
    with pytest.raises(UserError, match="Remove it"):
        script.main(config(server, tmp_path))
    assert left(tmp_path) == ["Task09_Spleen.tar"] and len(server.asked) == 1


def test_an_archive_that_was_given_is_taken_and_kept(server, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/Task09_Spleen.tar").write_bytes(server.content)
    script.main(config(server, tmp_path))
    assert left(tmp_path) == ["Task09_Spleen", "Task09_Spleen.tar"] and not server.asked


@pytest.mark.parametrize(
    "content",
    [
        archive(("../outside.txt", b"x")),
        archive(("Task09_Spleen/../../outside.txt", b"x")),
        archive(links=(("Task09_Spleen/labelsTr", "../../.."),)),
        archive(links=(("Task09_Spleen/labelsTr", "/etc"),)),
        archive()[:5000],
        b"no archive at all" * 100,
        b"",
    ],
    ids=["outside", "detour", "link", "absolute link", "cut", "text", "empty"],
)
def test_what_cannot_be_unpacked_safely_is_refused_and_leaves_nothing(server, tmp_path, content):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/Task09_Spleen.tar").write_bytes(content)
    with pytest.raises(UserError, match="nothing is unpacked|holds no"):
        script.main(config(server, tmp_path, md5=hashlib.md5(content).hexdigest()))
    assert left(tmp_path) == ["Task09_Spleen.tar"]
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_server_that_refuses_or_is_not_there(server, tmp_path):
    server.status = 404
    with pytest.raises(UserError, match="answers 404"):
        script.main(config(server, tmp_path))
    assert len(server.asked) == 1
    server.status = 503
    with pytest.raises(UserError, match="503.*Try later"):
        script.main(config(server, tmp_path))
    with pytest.raises(UserError, match="refused. Try later, or fetch.*by other means"):
        script.main(config(server, tmp_path, url="http://127.0.0.1:9/x.tar"))
