"""A small server that speaks as much of the Hugging Face Hub's protocol as a download of one model needs."""

import hashlib
import http.server
import json
import threading
from contextlib import contextmanager


@contextmanager
def serve_hub(repo, commit, files, gated=False, size=0):
    """Serves {file name: bytes} as `repo` at `commit`, *.safetensors as LFS files. Yields its URL and the requests.

    gated: without a token its files are refused. size: what it says that each file has, if not 0.
    """
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            seen.append(f"{self.command} {self.path}")

        def reply(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
            if path in (f"/api/models/{repo}/revision/{commit}", f"/api/models/{repo}/revision/main"):
                siblings = []
                for name, content in files.items():
                    sibling = {"rfilename": name, "size": size or len(content), "blobId": sha256[name][:40]}
                    if name.endswith(".safetensors"):
                        sibling["lfs"] = {"sha256": sha256[name], "size": len(content), "pointerSize": 134}
                    siblings.append(sibling)
                self.reply(200, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())
            elif path.startswith(f"/api/models/{repo}/revision/"):
                self.reply(404, X_Error_Code="RevisionNotFound")
            elif gated and "/resolve/" in path and "Authorization" not in self.headers:
                self.reply(401, X_Error_Code="GatedRepo")
            elif path.startswith(f"/{repo}/resolve/{commit}/") and (name := path.rsplit("/", 1)[1]) in files:
                self.reply(200, files[name], ETag=f'"{sha256[name]}"', X_Repo_Commit=commit)
            else:
                self.reply(404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
