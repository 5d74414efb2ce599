"""A small hub on this machine, and the real client against it: uploads, downloads, cache, and what must be refused."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from settings import ROOT

TABLE = ROOT / "pevl" / "results" / "simdive48.csv"


class Hub(BaseHTTPRequestHandler):
    "What the hub does for models: create, preupload, large files, commit, resolve"

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status=200, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for k, v in headers.items():
            self.send_header(k.replace("_", "-"), v)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def wrong(self, status, code):
        self.answer(status, {"error": code}, **{"X-Error-Code": code, "X-Error-Message": code})

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def may_write(self):
        return self.headers.get("Authorization") == "Bearer hf_good"

    def do_POST(self):
        s, path, body = self.server, self.path.split("?")[0], self.body()
        s.log.append(f"POST {path}")
        if path == "/api/validate-yaml":
            s.cards.append(json.loads(body)["content"])
            return self.answer(body={"errors": [], "warnings": []})
        if not self.may_write():
            return self.answer(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            d = json.loads(body)
            name = "/".join(filter(None, [d.get("organization") or "me", d["name"]]))
            if name in s.repos:
                return self.answer(409, {"error": "exists", "url": f"{s.url}/{name}"})
            s.repos[name] = {"main": {}}
            return self.answer(body={"url": f"{s.url}/{name}", "name": name})
        if m := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            s.repos[m[1]].setdefault(m[2], dict(s.repos[m[1]]["main"]))
            return self.answer(body={})
        if m := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            way = {True: "lfs", False: "regular"}
            files = [
                {
                    "path": f["path"],
                    "uploadMode": way[f["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self.answer(body={"files": files})
        if m := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**o, "actions": {"upload": {"href": f"{s.url}/large/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer(
                body={"transfer": "basic", "objects": objects},
                **{"Content-Type": "application/vnd.git-lfs+json"},
            )
        if m := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            files = s.repos[m[1]].setdefault(m[2], {})
            for line in map(json.loads, body.splitlines()):
                v = line["value"]
                if line["key"] == "file":
                    files[v["path"]] = base64.b64decode(v["content"])
                elif line["key"] == "lfsFile":
                    files[v["path"]] = s.large[v["oid"]]
            url = f"{s.url}/{m[1]}/commit/{'c' * 40}"
            return self.answer(body={"success": True, "commitUrl": url, "commitOid": "c" * 40})
        self.answer(404, {"error": path})

    def do_PUT(self):
        data = self.body()
        oid = self.path.rsplit("/", 1)[1]
        self.server.log.append("PUT large")
        if hashlib.sha256(data).hexdigest() != oid:
            return self.answer(400)
        self.server.large[oid] = data
        self.answer()

    def do_GET(self):
        s, path = self.server, self.path.split("?")[0]
        s.log.append(f"{self.command} {path}")
        m = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not m:
            return self.answer(404, {"error": path})
        if m[1] == "me/closed":
            return self.wrong(403, "GatedRepo")
        if m[1] not in s.repos:
            return self.wrong(404, "RepoNotFound")
        if m[2] not in s.repos[m[1]] and not re.fullmatch("[a-f]{40}", m[2]):
            return self.wrong(404, "RevisionNotFound")
        files = s.repos[m[1]].get(m[2], s.repos[m[1]]["main"])
        if m[3] not in files:
            return self.wrong(404, "EntryNotFound")
        data = files[m[3]]
        mark = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "cd"[m[2] != "main"] * 40}
        self.answer(200, data, **mark)

    do_HEAD = do_GET


CLIENT = """
import json, sys
from pathlib import Path
import torch
from pevl import PeVL
from pevl.model.pevl import load_model
from pevl.use.share import push, save_for_hub

home, table = map(Path, sys.argv[1:])
said = {}

def refused(name, run):
    try:
        run()
    except (ValueError, OSError) as e:
        said[name] = str(e)

model = PeVL.from_pretrained("simdive48")
said["url"] = push(model, "me/mine", results=table, dtype=torch.float16, token="hf_good")
push(model, "me/light", trunk=False, revision="small", token="hf_good")
model.push_to_hub("me/plain", token="hf_good")
cache = dict(cache_dir=home / "cache")
for name, how in dict(mine={}, light=dict(revision="small"), plain={}).items():
    got = PeVL.from_pretrained(f"me/{name}", **how, **cache)
    said[name] = got.config == model.config and got.facts == model.facts and all(
        torch.equal(v, got.state_dict()[k]) for k, v in model.state_dict().items())
again = PeVL.from_pretrained("me/mine", local_files_only=True, **cache)
said["offline"] = again.config == model.config
refused("missing", lambda: PeVL.from_pretrained("me/nothing", **cache))
refused("closed", lambda: PeVL.from_pretrained("me/closed", **cache))
refused("revision", lambda: PeVL.from_pretrained("me/mine", revision="v9", **cache))
refused("foreign", lambda: PeVL.from_pretrained("them/clip", **cache))
refused("headless", lambda: PeVL.from_pretrained("them/headless", **cache))
refused("pickle", lambda: PeVL.from_pretrained("them/pickle", **cache))
refused("contradiction", lambda: PeVL.from_pretrained("them/contradiction", **cache))
refused("cached only", lambda: PeVL.from_pretrained("me/other", local_files_only=True, **cache))
refused("token", lambda: push(model, "me/mine", token="hf_bad"))
other = PeVL.from_pretrained("simdive48").double()
refused("rows", lambda: push(other, "me/rows", results=table, token="hf_good"))
push(model, "me/edited", token="hf_good")
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    "The server after one client has tried everything, and what the client said"
    tmp = tmp_path_factory.mktemp("hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    release = (ROOT / "pevl" / "weights" / "pevl_nano_simdive48.safetensors").read_bytes()
    n = int.from_bytes(release[:8], "little")
    head = json.loads(release[8 : 8 + n])
    config = json.loads(head["__metadata__"]["pevl"])["config"]
    bare = json.dumps({k: v for k, v in head.items() if k != "__metadata__"}).encode()
    server.repos = {
        "them/clip": {"main": {"config.json": b'{"model_type": "clip"}', "model.safetensors": b"large"}},
        "them/headless": {
            "main": {"model.safetensors": len(bare).to_bytes(8, "little") + bare + release[8 + n :]}
        },
        "them/pickle": {"main": {"pytorch_model.bin": b"cos\nsystem\n(S'echo owned'\ntR."}},
        "them/contradiction": {
            "main": {
                "config.json": json.dumps(config | {"T": 48}).encode(),
                "model.safetensors": release,
            }
        },
        "me/edited": {"main": {"README.md": b"My own words."}},
    }
    server.large, server.log, server.cards = {}, [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    env |= dict(
        HF_ENDPOINT=server.url,
        HF_HOME=str(tmp / "home"),
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1",
    )
    cmd = [sys.executable, "-c", CLIENT, str(tmp), str(TABLE)]
    ran = subprocess.run(cmd, env=env, cwd=tmp, capture_output=True, text=True, timeout=600)
    server.shutdown()
    assert ran.returncode == 0, ran.stderr[-3000:]
    return server, json.loads(ran.stdout.splitlines()[-1])


def test_upload(hub):
    server, said = hub
    files = server.repos["me/mine"]["main"]
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    assert "PUT large" in server.log and said["url"].startswith(f"{server.url}/me/mine/commit/")
    assert len(server.repos["me/light"]["small"]["model.safetensors"]) < 0.6 * len(
        server.repos["me/plain"]["main"]["model.safetensors"]
    )
    assert set(server.repos["me/plain"]["main"]) == set(files)


def test_card(hub):
    server, _ = hub
    card = server.repos["me/mine"]["main"]["README.md"].decode()
    assert 'PeVL.from_pretrained("me/mine")' in card and "SimDive (simulated)" in card and "97.6 %" in card
    assert card in server.cards  # the hub was asked to check it
    assert "97.6 %" not in server.repos["me/plain"]["main"]["README.md"].decode()  # nobody gave rows
    assert server.repos["me/edited"]["main"]["README.md"] == b"My own words."
    assert "model.safetensors" in server.repos["me/edited"]["main"]


@pytest.mark.parametrize("name", ["mine", "light", "plain", "offline"])
def test_download_is_the_model(hub, name):
    assert hub[1][name] is True


REFUSED = {
    "missing": "me/nothing: no such folder here, and no such repository on the hub, or a private one",
    "closed": "me/closed: its owner has to let you in",
    "revision": "me/mine: no revision 'v9'",
    "foreign": "not a PeVL configuration",
    "headless": "not a PeVL checkpoint",
    "pickle": "them/pickle: no model.safetensors in this repository; pickles (.bin, .pt) are not read",
    "contradiction": "T is 48, in model.safetensors 24",
    "cached only": "me/other: no such folder here, model.safetensors was not downloaded before, and the hub was not to be asked",
    "token": "me/mine: not logged in",
    "rows": "rows was measured with these weights",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(hub, name):
    text = hub[1][name]
    assert REFUSED[name] in text and "\n" not in text


def test_nothing_foreign_was_fetched(hub):
    log = hub[0].log
    assert not [x for x in log if x.endswith(".bin")]
    assert "GET /them/clip/resolve/main/model.safetensors" not in log
    assert "me/rows" not in hub[0].repos  # a wrong row stops it before the hub hears of it


def test_a_hub_that_is_not_there(tmp_path):
    code = "import time\nfrom pevl import PeVL\ntime.sleep = lambda s: None  # the client tries again and again\n"
    code += "try: PeVL.from_pretrained('me/mine')\nexcept OSError as e: print(e)"
    env = os.environ | dict(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.count("\n") == 1 and "me/mine: " in ran.stdout
