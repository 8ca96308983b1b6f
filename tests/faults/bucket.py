"""A bucket on this machine: what gcsfs and TensorStore use of Google Cloud Storage's JSON API.

Objects live in memory. Writes can be refused, as where credentials have run out.
"""

import http.server
import itertools
import json
import re
import threading
import urllib.parse


class Bucket:
    """A server; `environment` makes other processes use it in Google's place."""

    def __init__(self):
        self.objects: dict[str, tuple[int, bytes]] = {}  # by name: generation and content
        self.generations = itertools.count(1)
        self.uploads: dict[str, tuple[str, bytes]] = {}  # begun, in several parts
        self.refuses = False
        self.lock = threading.Lock()
        bucket = self

        class Handler(_Handler):
            pass

        Handler.bucket = bucket
        self.server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # clients hang up as they end
        self.address = f"http://localhost:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "STORAGE_EMULATOR_HOST": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        }

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content_Type", "application/json")
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status, reason):
        self.answer(status, {"error": {"code": status, "message": reason}})

    def ask(self):
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = re.fullmatch(
            r"(?:/download|/upload)?(?:/storage/v1)?/b/([^/]+)(?:/o(?:/([^/]+))?)?(.*)", url.path
        )
        return found and (urllib.parse.unquote(found[2] or ""), found[3], url.path)

    def describe(self, name):
        generation, content = self.bucket.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "storageClass": "STANDARD",
            "etag": str(generation),
        }

    def do_GET(self):
        asked = self.ask()
        if asked is None or asked[1]:
            return self.fail(404, "no such resource")
        name, _, path = asked
        with self.bucket.lock:
            if not name and path.endswith("/o"):
                return self.answer(200, self.listing())
            if not name:
                return self.answer(200, {"kind": "storage#bucket", "name": "bucket"})
            if name not in self.bucket.objects:
                return self.fail(404, "No such object")
            generation, content = self.bucket.objects[name]
            if self.query.get("alt") != "media":
                return self.answer(200, self.describe(name))
        if self.query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304)
        headers = {"x-goog-generation": generation, "ETag": generation}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.answer(200, content, **headers)
        size = len(content)
        first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
        if first >= size:
            return self.answer(416, b"", Content_Range=f"bytes */{size}")
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return self.answer(206, content[first : last + 1], **headers)

    do_HEAD = do_GET

    def listing(self):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        start = self.query.get("startOffset", "")
        items, prefixes = [], set()
        for name in sorted(self.bucket.objects):
            if not name.startswith(prefix) or name < start:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.describe(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def do_POST(self):
        if self.path.startswith("/batch"):
            self.body = self.rfile.read(int(self.headers["Content-Length"]))
            return self.batch()
        asked = self.ask()
        if asked is None:
            return self.fail(404, "no such resource")
        if self.bucket.refuses:
            return self.fail(403, "PERMISSION_DENIED: storage.objects.create access denied")
        name, more, _ = asked
        kind = self.query.get("uploadType")
        if rewrite := re.fullmatch(r"/(?:rewriteTo|copyTo)/b/[^/]+/o/(.+)", more):
            with self.bucket.lock:
                content = self.bucket.objects[name][1]
            name = urllib.parse.unquote(rewrite[1])
        elif kind == "resumable":
            name = self.query.get("name") or json.loads(self.body)["name"]
            upload = str(next(self.bucket.generations))
            self.bucket.uploads[upload] = name, b""
            place = f"{self.bucket.address}/upload/storage/v1/b/bucket/o?upload_id={upload}"
            return self.answer(200, Location=place)
        elif upload := self.query.get("upload_id"):
            name, content = self.bucket.uploads[upload]
            content += self.body
            self.bucket.uploads[upload] = name, content
            if self.headers["Content-Range"].endswith("/*"):
                return self.answer(308, Range=f"bytes=0-{len(content) - 1}")
        elif kind == "multipart":
            boundary = re.search(r"boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1]
            _, first, second, _ = self.body.split(b"--" + boundary.encode())
            name = json.loads(first.partition(b"\n\n")[2] or first.partition(b"\r\n\r\n")[2])[
                "name"
            ]
            head = b"\r\n\r\n" if b"\r\n\r\n" in second else b"\n\n"
            content = second.partition(head)[2].removesuffix(b"\n").removesuffix(b"\r")
        else:
            name, content = self.query["name"], self.body
        with self.bucket.lock:
            now = self.bucket.objects.get(name, (0, b""))[0]
            if self.query.get("ifGenerationMatch", str(now)) != str(now):
                return self.fail(412, "conditionNotMet")
            self.bucket.objects[name] = next(self.bucket.generations), content
            described = self.describe(name)
        if rewrite:
            described = {"kind": "storage#rewriteResponse", "done": True, "resource": described}
        return self.answer(200, described)

    do_PUT = do_POST

    def do_DELETE(self):
        name, _, _ = self.ask()
        with self.bucket.lock:
            gone = self.bucket.objects.pop(name, None)
        return self.answer(204) if gone else self.fail(404, "No such object")

    def batch(self):
        names = re.findall(rb"DELETE \S*/b/[^/]+/o/(\S+) HTTP", self.body)
        parts = []
        for number, raw in enumerate(names, 1):
            with self.bucket.lock:
                gone = self.bucket.objects.pop(urllib.parse.unquote(raw.decode()), None)
            status = "204 No Content" if gone else "404 Not Found"
            parts.append(
                "--batch\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{number}>\r\n\r\nHTTP/1.1 {status}\r\n\r\n\r\n"
            )
        body = "".join([*parts, "--batch--\r\n"]).encode()
        return self.answer(200, body, Content_Type="multipart/mixed; boundary=batch")
