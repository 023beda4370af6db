"""A small Task09_Spleen.tar and a server of it, for the tests of the download."""

import io
import tarfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def archive(*more: tuple[str, bytes], links: tuple[tuple[str, str], ...] = ()) -> bytes:
    """A small Task09_Spleen.tar, with members and symbolic links beside the usual ones."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in (
            ("Task09_Spleen/dataset.json", b"{}"),
            ("Task09_Spleen/._dataset.json", b"shadow"),
            ("Task09_Spleen/imagesTr/spleen_1.nii.gz", b"volume" * 5000),
            *more,
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return stream.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `content` at every address; `most` bytes a connection; notes the ranges asked for.

    With `pause` a connection brings 64 KB, waits so many seconds, brings 64 KB more.
    """

    content, most, ranges, status, pause = b"", None, True, None, 0

    def __init__(self):
        self.asked = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/Task09_Spleen.tar"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            self.send_error(server.status)
            return
        start = int(asked[6:-1]) if asked and server.ranges else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if asked and server.ranges else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/*")
        self.end_headers()
        most = server.most[len(server.asked) % 2] if isinstance(server.most, tuple) else server.most
        content = server.content[start:][:most]
        piece = 1 << 16 if server.pause else len(server.content)
        for place in range(0, len(content), piece):
            self.wfile.write(content[place : place + piece])
            time.sleep(server.pause)

    def log_message(self, *_):
        pass


def left(tmp_path):
    """What a download leaves in the folder `data`, beside its lock."""
    names = {path.name for path in (tmp_path / "data").iterdir()}
    return sorted(names - {".Task09_Spleen.lock"})
