# SPDX-License-Identifier: Apache-2.0
"""fetch_weights.py against a server of the test's own: whole, broken off, resumed, wrong, and where nobody answers."""
import http.server
import json
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

PROGRAM = pathlib.Path(__file__).resolve().parent.parent / "fetch_weights.py"


def safetensors(tensors):
    """{name: (dtype, bytes)}"""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [len(raw)], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


WEIGHTS = bytes(range(256)) * 16
WHOLE = safetensors({"a": ("BF16", WEIGHTS[:2048]), "ids": ("I64", b"\1" * 64), "b": ("BF16", WEIGHTS[2048:])})


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.asked.append(begin)
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(WHOLE) - 1}/{len(WHOLE)}")
        self.send_header("Content-Length", str(len(WHOLE) - begin))
        self.end_headers()
        self.wfile.write(WHOLE[begin:self.server.until])
        self.server.until = None
        self.close_connection = True

    def log_message(self, *_):
        pass


class Weights(unittest.TestCase):
    def setUp(self):
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.dir = pathlib.Path(held.name)
        (self.dir / "bench").mkdir()
        self.program = self.dir / "bench" / "fetch_weights.py"  # its build/ is the test's
        self.program.write_bytes(PROGRAM.read_bytes())
        self.out = self.dir / "w.bf16"

    def serve(self, until=None):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.asked, server.until = [], until
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        self.addCleanup(lambda: (server.shutdown(), thread.join(), server.server_close()))
        return server

    def fetch(self, *args):
        return subprocess.run([sys.executable, self.program, "--out", self.out, *map(str, args)], capture_output=True, text=True, timeout=60,
                              env={"PATH": "/usr/bin:/bin", "no_proxy": "*"})

    def fetch_from(self, server, *args):
        return self.fetch("--url", f"http://127.0.0.1:{server.server_port}/model.safetensors", *args)

    def test_float_tensors_come_over_and_nothing_else(self):
        done = self.fetch_from(self.serve(), "--name", "tiny")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.out.read_bytes(), WEIGHTS)
        self.assertEqual(json.loads((self.dir / "w.bf16.json").read_text())["note"], "tiny, stored as bfloat16")

    def test_what_broke_off_goes_on_where_it_was(self):
        server = self.serve(until=3000)
        first = self.fetch_from(server)
        self.assertNotEqual(first.returncode, 0)
        self.assertIn("kept", first.stderr)
        done = self.fetch_from(server)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(server.asked, [0, 3000])
        self.assertEqual(self.out.read_bytes(), WEIGHTS)

    def test_another_sum_is_refused_and_removed(self):
        done = self.fetch_from(self.serve(), "--sha256", "0" * 64)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("SHA-256", done.stderr)
        self.assertFalse(self.out.exists() or list(self.dir.glob("build/bench-weights/*.safetensors")))

    def test_without_a_network_it_says_so_and_what_to_do(self):
        with socket.create_server(("127.0.0.1", 0)) as s:
            port = s.getsockname()[1]
        done = self.fetch("--url", f"http://127.0.0.1:{port}/model.safetensors")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("cannot be fetched", done.stderr)
        self.assertIn("--file", done.stderr)
        self.assertNotIn("Traceback", done.stderr)

    def test_files_that_are_none_are_refused(self):
        beyond = json.dumps({"a": {"dtype": "BF16", "data_offsets": [0, 99]}}).encode()
        for raw in (b"", b"1234567", struct.pack("<Q", 1 << 60), struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}",
                    struct.pack("<Q", len(beyond)) + beyond, struct.pack("<Q", 9) + b'{"a": 1 }'):
            path = self.dir / "x.safetensors"
            path.write_bytes(raw)
            done = self.fetch("--file", path)
            self.assertNotEqual(done.returncode, 0, raw)
            self.assertTrue(done.stderr.startswith("fetch_weights: "), done.stderr)


if __name__ == "__main__":
    unittest.main()
