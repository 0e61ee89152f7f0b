"""A small server that speaks as much of the Hugging Face Hub's protocol as a download of one model needs."""

import hashlib
import http.server
import json
import threading
import time
from contextlib import contextmanager, suppress

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_ThisIsTheTokenOfTheTest"


@contextmanager
def serve_hub(repo, commit, files, private=None, gated=None, size=0, faults=()):
    """Serves {file name: bytes} as `repo` at `commit` and main, *.safetensors as LFS files. Yields URL and requests.

    private, gated: the token that may see the repository, or read its files; what does not begin with hf_ is no token.
    size: what it says that each file has, if not 0. faults: a list of (method, end of the path, fault). The first that
    fits a request is taken from it: a status, "cut" or "slow" (the body ends, or pauses 5 s, in its middle), "wrong" or
    "short" (its last byte is another, or not there).
    """
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    blob = {name: hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() for name, content in files.items()}
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            seen.append(" ".join([self.command, self.path, self.headers["Range"] or ""]).strip())

        def reply(self, status, body=b"", fault=None, **headers):
            self.send_response(status)
            for name, value in ({"Content-Length": len(body)} | headers).items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command == "GET":
                with suppress(ConnectionError):  # of a client that did not wait
                    self.wfile.write(body[: len(body) // 2])
                    time.sleep(5 if fault == "slow" else 0)
                    self.wfile.write(body[len(body) // 2 :] if fault != "cut" else b"")

        def reply_file(self, content, fault, **headers):
            content = {"wrong": content[:-1] + b"?", "short": content[:-1]}.get(fault, content)
            if value := self.headers["Range"]:  # "bytes=5-"
                first = int(value[6:-1])
                whole = f"bytes {first}-{len(content) - 1}/{len(content)}"
                self.reply(206, memoryview(content)[first:], fault, Content_Range=whole, **headers)
            else:
                self.reply(200, memoryview(content), fault, **headers)

        def do_GET(self):
            path, token = self.path.split("?")[0], (self.headers["Authorization"] or "").removeprefix("Bearer ")
            name = path.rsplit("/", 1)[1]
            at = next((at for at in faults if self.command == at[0] and path.endswith(at[1])), None)
            fault = faults.pop(faults.index(at))[2] if at else None
            if isinstance(fault, int):
                self.reply(fault, Retry_After=1)
            elif path.startswith("/cdn/") and token:
                self.reply(400)  # as S3 does
            elif path.startswith("/cdn/"):
                self.reply_file(files[name], fault)
            elif token and not token.startswith("hf_"):
                self.reply(401, X_Error_Message="Invalid credentials in Authorization header")
            elif f"/{repo}/" not in path or private not in (None, token):
                self.reply(404 if token else 401, X_Error_Code="RepoNotFound")
            elif path.startswith("/api/") and name in (commit, "main"):
                siblings = [{"rfilename": key, "size": size or len(files[key]), "blobId": blob[key]} for key in files]
                for file in siblings:
                    if (key := file["rfilename"]).endswith(".safetensors"):
                        file["lfs"] = {"sha256": sha256[key], "size": len(files[key]), "pointerSize": 134}
                self.reply(200, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())
            elif f"/resolve/{commit}/" not in path:
                self.reply(404, X_Error_Code="RevisionNotFound")
            elif gated not in (None, token):
                self.reply(403 if token else 401, X_Error_Code="GatedRepo")
            elif name.endswith(".safetensors"):
                linked = {"X_Linked_Size": len(files[name]), "X_Linked_ETag": f'"{sha256[name]}"'}
                url = f"http://localhost:{server.server_port}/cdn/{name}"  # another host than the Hub, for the client
                self.reply(302, Location=url, ETag=f'"{blob[name]}"', X_Repo_Commit=commit, **linked)
            else:
                self.reply_file(files[name], fault, ETag=f'"{blob[name]}"', X_Repo_Commit=commit)

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
