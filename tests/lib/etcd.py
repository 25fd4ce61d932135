# SPDX-License-Identifier: Apache-2.0
"""Real etcd members as processes.

    with Etcd(members=3) as e:
        e.endpoints             # "http://127.0.0.1:...,..." for [meta] endpoints
        e.leader().kill()
        e.leader().start()

They live in one temporary directory, die with this process, and are ended by their own ids.
"""
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import urllib.request

from cluster import _die_with_parent, wait_until

AVAILABLE = shutil.which("etcd") is not None


def free_port(host="127.0.0.1"):
    with socket.socket() as s:
        s.bind((host, 0))
        return s.getsockname()[1]


class Member:
    def __init__(self, etcd, index, host, prefix):
        self.etcd, self.name, self.host, self.prefix = etcd, f"e{index}", host, prefix
        self.dir = etcd.dir / self.name
        if prefix:  # a namespace of its own: any port is free
            self.client_port, self.peer_port = 2379, 2380
        else:
            self.client_port, self.peer_port = free_port(host), free_port(host)
        self.client = f"{'https' if etcd.tls else 'http'}://{host}:{self.client_port}"
        self.peer = f"http://{host}:{self.peer_port}"
        self.log = etcd.dir / f"{self.name}.log"
        self.process = None

    def start(self):
        first = not self.dir.exists()
        args = [*self.prefix, "etcd", "--name", self.name, "--data-dir", str(self.dir), "--listen-client-urls", self.client,
                "--advertise-client-urls", self.client, "--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer,
                "--initial-cluster", ",".join(f"{m.name}={m.peer}" for m in self.etcd.members),
                "--initial-cluster-state", "new" if first else "existing", "--heartbeat-interval", "50", "--election-timeout", "500",
                "--snapshot-count", "2000", *self.etcd.options]
        if self.etcd.tls:
            args += ["--client-cert-auth", "--trusted-ca-file", self.etcd.tls["ca"], "--cert-file", self.etcd.tls["cert"],
                     "--key-file", self.etcd.tls["key"]]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(args, stdout=log, stderr=log, preexec_fn=_die_with_parent)
        return self

    def kill(self, sig=signal.SIGKILL):
        if self.alive():
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(sig)
            self.process.wait(30)

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def call(self, path, body, seconds=2.0, token=None):
        """One request to this member; None when it does not answer."""
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = token
        request = urllib.request.Request(self.client + path, json.dumps(body).encode(), headers)
        try:
            if self.prefix:
                out = subprocess.run([*self.prefix, "curl", "-s", "-m", str(seconds), "-d", json.dumps(body), self.client + path],
                                     capture_output=True, check=False, timeout=seconds + 5).stdout
                return json.loads(out) if out else None
            with urllib.request.urlopen(request, timeout=seconds, context=self.etcd.context) as answer:
                return json.load(answer)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None

    def status(self):
        return self.call("/v3/maintenance/status", {})

    def tail(self, lines=20):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else "(no log)"


def make_certificates(directory):
    """An authority, and a certificate of it for 127.0.0.1 that serves and asks; another authority's for whoever must be refused."""
    def run(*args):
        subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, timeout=60)

    made = {}
    extensions = directory / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    for name in ("", "other-"):
        ca, ca_key, cert, key, request = (directory / f"{name}{end}" for end in ("ca.pem", "ca.key", "cert.pem", "key.pem", "csr.pem"))
        run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", ca_key, "-out", ca,
            "-days", 2, "-subj", f"/CN={name}cairn-test-ca")
        run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", request, "-subj", "/O=cairn")
        run("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-out", cert, "-days", 2, "-extfile", extensions)
        made |= {f"{name}ca": str(ca), f"{name}cert": str(cert), f"{name}key": str(key)}
    return made


class Etcd:
    def __init__(self, members=1, directory=None, hosts=None, prefixes=None, options=(), tls=False):
        """hosts: one address a member; prefixes: one command a member that puts it where it belongs ("ip netns exec ...")."""
        self.dir = pathlib.Path(directory or tempfile.mkdtemp(prefix="cairn-etcd-"))
        self.dir.mkdir(exist_ok=True)
        self.options = options
        self.tls, self.context = make_certificates(self.dir) if tls else None, None
        if tls:
            self.context = ssl.create_default_context(cafile=self.tls["ca"])
            self.context.load_cert_chain(self.tls["cert"], self.tls["key"])
        hosts = hosts or ["127.0.0.1"] * members
        prefixes = prefixes or [[]] * members
        self.members = []
        for i in range(members):
            self.members.append(Member(self, i + 1, hosts[i], prefixes[i]))
        self.endpoints = ",".join(m.client for m in self.members)

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, value, trace):
        self.close()

    def start(self, seconds=30.0):
        for m in self.members:
            m.start()
        wait_until("etcd has a leader", self.leader, seconds)
        return self

    def leader(self):
        """The member that leads, as a majority sees it; None when there is none now."""
        for m in self.members:
            status = m.status() if m.alive() else None
            if status and int(status.get("leader", 0)):
                for other in self.members:
                    theirs = other.status() if other.alive() else None
                    if theirs and theirs["header"]["member_id"] == status["leader"]:
                        return other
        return None

    def close(self):
        for m in self.members:
            if m.alive():
                m.process.send_signal(signal.SIGCONT)
                m.process.kill()
                m.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)
