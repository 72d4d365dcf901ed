"""A bucket of Google Cloud Storage as a local HTTP server: as much of the JSON API as gcsfs and TensorStore use.

Objects are bytes in a dictionary, by name; there are no folders, no renames, and what is listed is what is there.
"""

import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

BUCKET = "bucket"


class Bucket:
    """The objects, and where they are served; `requests` are the lines of what was asked, such as "PUT name"."""

    def __init__(self, port: int):
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.sessions: dict[str, tuple[str, bytes]] = {}  # uploads that are not finished
        self.requests: list[str] = []
        self.refused: dict[str, int] = {}  # what a request has in its path, to the status that it gets
        self.lock, self.count = threading.RLock(), 0
        self.url = f"http://127.0.0.1:{port}"

    @property
    def environment(self) -> dict[str, str]:
        """What sends gcsfs and TensorStore here, and neither to Google."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask by gRPC what kind of bucket this is
        }

    def names(self, prefix: str = "") -> list[str]:
        """The names of objects, sorted."""
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def put(self, name: str, content: bytes) -> dict[str, Any]:
        """Store an object; what the API says of it."""
        with self.lock:
            self.count += 1
            self.objects[name], self.generations[name] = content, self.count
            self.requests.append(f"PUT {name}")
            return self.about(name)

    def about(self, name: str) -> dict[str, Any]:
        """An object as the API describes it."""
        generation = str(self.generations[name])
        about = {"kind": "storage#object", "bucket": BUCKET, "name": name, "size": str(len(self.objects[name]))}
        return about | {"generation": generation, "metageneration": "1", "updated": "2026-01-01T00:00:00.000000Z"}


class Handler(BaseHTTPRequestHandler):
    """One request; `bucket` is set on a subclass."""

    bucket: Bucket
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # an answer is one packet, sent at once

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        name, query = self._asked()
        for part, status in self.bucket.refused.items():
            if part in unquote(self.path):
                return self._send(status, b'{"error": {"message": "no access here", "code": %d}}' % status)
        with self.bucket.lock:
            if name is None:
                return self._json({"kind": "storage#bucket", "name": BUCKET})
            if name == "":
                return self._json(self._listed(query))
            if name not in self.bucket.objects:
                return self._missing()
            about, content = self.bucket.about(name), self.bucket.objects[name]
        if query.get("alt") != "media":
            return self._json(about)
        headers, status = {"x-goog-generation": about["generation"]}, 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        return self._send(status, content, headers)

    def do_POST(self) -> None:
        name, query = self._asked()
        body = self._body()
        if match := re.fullmatch(r"(.+)/(?:rewriteTo/b/[^/]+|moveTo)/o/(.+)", name or ""):
            return self._moved(match[1], match[2], keep="/rewriteTo/" in (name or ""))
        if "upload_id" in query:
            return self._continued(query["upload_id"], body)
        kind, name = query.get("uploadType"), query.get("name", "")
        if kind == "multipart":
            mark = b"--" + re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, first, second, _ = body.split(mark, 3)
            name = json.loads(re.split(rb"\r?\n\r?\n", first, maxsplit=1)[1])["name"]
            body = re.split(rb"\r?\n\r?\n", second, maxsplit=1)[1].removesuffix(b"\n").removesuffix(b"\r")
        wanted = query.get("ifGenerationMatch")
        with self.bucket.lock:
            if wanted is not None and int(wanted) != self.bucket.generations.get(name, 0):
                return self._send(412, b'{"error": {"message": "conditionNotMet", "code": 412}}')
            if kind == "resumable":
                number = str(len(self.bucket.sessions))
                self.bucket.sessions[number] = (name or json.loads(body)["name"], b"")
                place = f"{self.bucket.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={number}"
                return self._send(200, b"", {"Location": place})
            return self._json(self.bucket.put(name, body))

    do_PUT = do_POST

    def do_DELETE(self) -> None:
        name, _ = self._asked()
        with self.bucket.lock:
            if name not in self.bucket.objects:
                return self._missing()
            del self.bucket.objects[name], self.bucket.generations[name]
            self.bucket.requests.append(f"DELETE {name}")
        return self._send(204, b"")

    def _asked(self) -> tuple[str | None, dict[str, str]]:
        """The object's name ("": all of them, None: the bucket), and the query; one of another bucket is not there."""
        asked = urlsplit(self.path)
        query = dict(parse_qsl(asked.query, keep_blank_values=True))
        match = re.fullmatch(r"/(?:upload/|download/)?storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?", asked.path)
        assert match, self.path
        if unquote(match[1]) != BUCKET:
            return "\0", query
        return (unquote(match[2] or "") if "/o" in asked.path.split("/b/", 1)[1] else None), query

    def _listed(self, query: dict[str, str]) -> dict[str, Any]:
        """A page of names below a prefix: objects, and what stands before the delimiter of longer ones."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, folders = list[dict[str, Any]](), set[str]()
        names = [n for n in self.bucket.names(prefix) if n >= query.get("startOffset", "")]
        first, most = int(query.get("pageToken") or 0), int(query.get("maxResults") or 3)  # small: pages are used
        for name in names[first : first + most]:
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.bucket.about(name))
        more = {"nextPageToken": str(first + most)} if len(names) > first + most else {}
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders), **more}

    def _moved(self, name: str, place: str, *, keep: bool) -> None:
        with self.bucket.lock:
            if name not in self.bucket.objects:
                return self._missing()
            about = self.bucket.put(place, self.bucket.objects[name])
            if not keep:
                del self.bucket.objects[name], self.bucket.generations[name]
        return self._json({"kind": "storage#rewriteResponse", "done": True, "resource": about} if keep else about)

    def _continued(self, number: str, body: bytes) -> None:
        """A part of a resumable upload; the last one says how long the whole is."""
        with self.bucket.lock:
            name, before = self.bucket.sessions[number]
            self.bucket.sessions[number] = (name, before + body)
            if not self.headers["Content-Range"].endswith("/*"):
                return self._json(self.bucket.put(name, before + body))
            return self._send(308, b"", {"Range": f"bytes=0-{len(before + body) - 1}"})

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _missing(self) -> None:
        self._send(404, b'{"error": {"message": "Not Found", "code": 404}}')

    def _json(self, content: dict[str, Any]) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """Serves until it is shut down; a client that leaves early is no error."""

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


@contextlib.contextmanager
def served() -> Iterator[Bucket]:
    """An empty bucket, served by threads of this process."""
    handler = type("Served", (Handler,), {})
    server = Server(("127.0.0.1", 0), handler)
    handler.bucket = bucket = Bucket(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
