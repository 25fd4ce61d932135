# SPDX-License-Identifier: Apache-2.0
"""What a disk may do to a peer's stream files behind its back: for tests of who finds it, and of what is made whole again."""
BLOCK = 4096


def _files_of(peer, job, step):
    return [f for f in peer.stream_files() if f.parent.name == job and int(f.name.split(".")[0]) == step]


def zero(peer, job, step):
    """All that a peer has of a checkpoint, but for the files' own headers; the number of files."""
    files = _files_of(peer, job, step)
    for f in files:
        with open(f, "r+b") as o:
            o.seek(BLOCK)
            o.write(bytes(f.stat().st_size - BLOCK))
    return len(files)


def damage(peer, job, step):
    """A byte of each data fragment; manifests, roots and decisions stay as they are. The number of fragments."""
    n = 0
    for f in _files_of(peer, job, step):
        with open(f, "r+b") as o:
            for at in range(BLOCK, f.stat().st_size, BLOCK):
                o.seek(at)
                header = o.read(41)
                if header[:8] == b"CRNFRAG1" and header[40] == 1:
                    o.seek(at + BLOCK)
                    byte = o.read(1)
                    o.seek(at + BLOCK)
                    o.write(bytes([byte[0] ^ 1]))
                    n += 1
    return n
