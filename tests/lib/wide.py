# SPDX-License-Identifier: Apache-2.0
"""A cluster whose daemons are on hosts of their own (netns.py): nodes, peers, members of etcd; and disks that can be full.

    netns.enter()
    with Wide(build, nodes=3, peers=6, etcd=3, disk_mib=512) as c:
        c.start_all()
        c.peers[0].host.unplug()
        c.peers[1].disk.fill()
        flips = c.flip_bits(c.peers[2], random, 3)

Without etcd all daemons share a SQLite file, which no cut cable separates from them. Clients are not on any host: a node's socket is in
the file system, and what they do beyond it is the node's doing.
"""
import os

import etcd as etcds
import netns
from cluster import Cluster


class Wide(Cluster):
    def __init__(self, build, nodes=1, peers=6, etcd=0, disk_mib=0, domains=None, net=None, common=None, **options):
        self.net = net or netns.Net()
        common = {"meta__lease_ms": 2000, **(common or {})}
        self.etcd = self._make_etcd(etcd) if etcd else None
        if etcd:
            common |= {"meta__plugin": "etcd", "meta__endpoints": self.etcd.endpoints}
        super().__init__(build, peers=peers, nodes=nodes, common=common, hosts=self.net.host, **options)
        for i, p in enumerate(self.peers):
            p.options["peer"]["domain"] = domains[i] if domains else f"h{i + 1}"
            p.disk = self._disk(p, disk_mib) if disk_mib else None
        for d in [*self.nodes, *self.peers]:
            d.write_config()

    def _make_etcd(self, members):
        if not etcds.AVAILABLE:
            raise netns.Missing("there is no etcd (package etcd-server)")
        hosts = [self.net.host(f"e{i + 1}") for i in range(members)]
        made = etcds.Etcd(members, hosts=[h.address for h in hosts], prefixes=[h.prefix for h in hosts])
        for member, host in zip(made.members, hosts):
            member.host = host  # whose cable can be pulled
        return made

    def start_all(self):
        if self.etcd:
            self.etcd.start()
        return super().start_all()

    def close(self):
        if self.etcd:
            self.etcd.close()
        self.end_all()
        for p in self.peers:
            if p.disk and not self.keep:
                p.disk.unmount()  # the daemons have ended
        super().close()

    def _disk(self, peer, mib):
        disk = netns.Disk(peer.dir / "disk", mib)
        peer.options["peer"]["path"] = str(disk.path / "store")
        return disk

    def store_of(self, peer):
        return peer.disk.path / "store" if peer.disk else peer.dir / "state" / "peer"

    def stream_files(self, peer, job=None):
        return sorted((self.store_of(peer) / "streams").glob(f"{job or '*'}/*.cairn"))

    @staticmethod
    def step_of(path):
        return int(path.name.split(".")[0])

    def flip_bits(self, peer, random, count, job=None):
        """Damages stored bytes of one peer behind its back. Returns what unflip() takes: (file, offset, byte before, byte now)."""
        flips, files = [], self.stream_files(peer, job)
        for _ in range(count if files else 0):
            path = random.choice(files)
            try:
                with open(path, "r+b", buffering=0) as f:
                    at = random.randrange(max(1, os.fstat(f.fileno()).st_size))
                    before = os.pread(f.fileno(), 1, at)
                    if before:
                        now = bytes([before[0] ^ 1 << random.randrange(8)])
                        os.pwrite(f.fileno(), now, at)
                        flips.append((path, at, before, now))
            except FileNotFoundError:
                pass  # the daemon has just deleted it
        return flips

    @staticmethod
    def unflip(flips):
        """Puts back what nobody has repaired, rewritten or deleted meanwhile."""
        for path, at, before, now in reversed(flips):
            try:
                with open(path, "r+b", buffering=0) as f:
                    if os.pread(f.fileno(), 1, at) == now:
                        os.pwrite(f.fileno(), before, at)
            except FileNotFoundError:
                pass

    def heal(self):
        """Every cable whole, every disk with room, nobody stopped."""
        for host in self.net.hosts:
            host.heal()
        for d in [*self.nodes, *self.peers, *(self.etcd.members if self.etcd else [])]:
            if d.alive():
                d.thaw()
        for p in self.peers:
            if p.disk:
                p.disk.clear()
