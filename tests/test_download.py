import hashlib
import io
import urllib.request

import pytest

from nnopt.data.download import fetch

CONTENT = b"0123456789" * 20_000
SETTINGS = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT), "licence": "CC0"}
URL = "https://example.org/file.bin"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(CONTENT))


def test_a_file_arrives_whole_in_a_new_folder(server, tmp_path, capsys):
    path = fetch(URL, tmp_path / "new" / "file.bin", **SETTINGS)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]
    assert capsys.readouterr().out.startswith(f"Downloading {URL} (0.2 MB, licence: CC0) to ")


def test_a_file_that_is_there_is_checked_and_not_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(urllib.request, "urlopen", None)
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    assert fetch(URL, path, **SETTINGS) == path
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="sha256"):
        fetch(URL, path, **SETTINGS)
    assert path.exists()


def test_a_transfer_that_breaks_off_leaves_nothing(monkeypatch, tmp_path):
    class Broken(io.BytesIO):
        def read(self, size):
            if self.tell() > 0:
                raise ConnectionResetError("reset")
            return super().read(size)

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Broken(CONTENT))
    with pytest.raises(ConnectionError, match=r"cannot be reached.*Try tomorrow"):
        fetch(URL, tmp_path / "file.bin", **SETTINGS, advice="Try tomorrow.")
    assert list(tmp_path.iterdir()) == []


def test_a_transfer_that_is_cut_short_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(CONTENT[:100]))
    with pytest.raises(ValueError, match="sha256"):
        fetch(URL, tmp_path / "file.bin", **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(monkeypatch, tmp_path):
    class Interrupted(io.BytesIO):
        def read(self, size):
            raise KeyboardInterrupt

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Interrupted(CONTENT))
    with pytest.raises(KeyboardInterrupt):
        fetch(URL, tmp_path / "file.bin", **SETTINGS)
    assert list(tmp_path.iterdir()) == []
