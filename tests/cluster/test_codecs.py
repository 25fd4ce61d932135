#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A save by each codec, and by the daemon's choice, restored bit for bit from the peers; and where its bytes were touched.

Catches: a codec that is not chosen although it is the only one, a raw save that copies, a restore that lacks a decoder, a daemon that
takes a codec it does not have."""
import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster  # noqa: E402

MIB = 1 << 20
SIZE = ["--bytes", str(24 * MIB)]


def encode_of(c):
    return c.query("status")["encode"]


def used(encode):
    return {k["codec"] for k in encode["codecs"] if k["plain_bytes"] > 0}


def one(build, codecs):
    with Cluster(build, peers=3, node__codecs=codecs) as c:
        c.start_all()
        out = c.client("save", *SIZE, "--world", "1", "--rank", "0", "--start-id", "a", "--count", "2")[1]
        assert "committed 2" in out, out
        encode = encode_of(c)
        c.wait_complete()
        c.node.kill()
        c.peers[0].kill()
        c.node.start()
        c.wait_peers_up(2)
        assert "verified 2" in c.client("verify", *SIZE)[1]  # from two of three fragments
        print(f"{codecs}: {', '.join(sorted(used(encode)))}; copied {encode['copied_bytes']}, sent in place "
              f"{encode['sent_in_place_bytes']}, from buffers {encode['sent_from_buffer_bytes']}")
        return encode


def refused(build, codecs, says):
    with Cluster(build, peers=0, node__codecs=codecs) as c:
        c.node.start(wait=False)
        assert c.node.process.wait(timeout=20) != 0
        assert says in c.node.log.read_text(), c.node.log.read_text()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    build = parser.parse_args().build
    raw = one(build, "raw")
    assert used(raw) == {"raw"}, raw
    assert raw["sent_in_place_bytes"] > 40 * MIB, raw
    assert raw["copied_bytes"] < 2 * 7 * MIB, raw  # two saves, seven dtypes: the last part of each, which ends within a block
    for name in ("float", "dense", "lz4"):
        encode = one(build, name)
        assert name in used(encode) and used(encode) <= {"raw", name}, encode
    auto = one(build, "auto")
    assert auto["hashed_bytes"] >= 48 * MIB - 1, auto
    assert auto["path_bytes_per_s"] is None or auto["path_bytes_per_s"] > 0, auto
    refused(build, "raw zip", '"zip" is none of raw, lz4, float, dense')


main()
