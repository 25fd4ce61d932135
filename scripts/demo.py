# SPDX-License-Identifier: Apache-2.0
"""The demo: six peers, one node daemon, a training run of two ranks; everything on the node and two peers are killed; the run resumes and
ends bit-identical to one that nothing happened to. Uses the same process starter as the cluster tests. --cluster: see
demo_cluster.py; --torch: demo_torch.py."""
import argparse
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "lib"))
from cluster import Cluster, wait_until  # noqa: E402
from training import Run  # noqa: E402

RANKS, EVERY = 2, 10


def say(text):
    print(text, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--steps", type=int, help="default: 120, and 36 of --torch")
    parser.add_argument("--cluster", action="store_true", help="several nodes, every daemon on a host of its own")
    parser.add_argument("--nodes", type=int, default=3, help="of --cluster")
    parser.add_argument("--peers", type=int, default=6, help="of --cluster")
    parser.add_argument("--etcd", type=int, help="members, of --cluster (3); 0: a SQLite file")
    parser.add_argument("--torch", action="store_true", help="a GPT in PyTorch")
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp", help="of --torch")
    parser.add_argument("--python", help="of --torch: an interpreter that has torch; default: an environment made under build/")
    a = parser.parse_args()
    a.steps = a.steps or (36 if a.torch else 120)
    if a.torch:
        import demo_torch
        sys.exit(demo_torch.main(a))
    if a.cluster:
        import demo_cluster
        sys.exit(demo_cluster.main(a))
    begin = time.monotonic()
    with Cluster(a.build, peers=6, keep=a.keep) as c:
        say(f"1. reference: {a.steps} steps with {RANKS} ranks, no checkpoints, nothing happens to it")
        reference = Run(c, "reference", None, RANKS, a.steps, EVERY)
        reference.finish()
        say("2. six storage peers and one node daemon, as processes on loopback")
        c.start_all()
        say(f"3. the same training, saved every {EVERY} steps")
        first = Run(c, "run", "first", RANKS, a.steps, EVERY)
        saved = first.read_until(r"step %d: rank \d saved ([\d.]+) Mi?B, stall ([\d.]+) ms" % (a.steps // 2))
        say(f"   at step {a.steps // 2}: {saved.group(1)} MiB a rank, stall {saved.group(2)} ms; now, while that save is on its way:")
        first.kill_ranks()
        c.node.kill()
        for p in c.peers[:2]:
            p.kill()
        say("4. kill -9: both ranks, the node daemon (its shared memory is gone), two of the six peers")
        c.node.start()
        c.wait_peers_up(4)
        listed = wait_until("the list of checkpoints", lambda: c.query("list", "--job", "demo"))
        steps = [k["step"] for k in listed["checkpoints"] if k["state"] == "committed"]
        say(f"5. the node daemon is back with four peers; committed steps: {', '.join(map(str, steps))}")
        second = Run(c, "run", "second", RANKS, a.steps, EVERY)
        resumed = second.read_until(r"resume[sd] from step (\d+): ([\d.]+) Mi?B in ([\d.]+) ms")
        say(f"6. both ranks resume from step {resumed.group(1)}: {resumed.group(2)} MiB restored in {resumed.group(3)} ms, "
            "fragments of the dead peers rebuilt from parity")
        second.finish()
        say(f"7. trained to step {a.steps}; stalls {min(second.stalls()):.1f} to {max(second.stalls()):.1f} ms")
        same_loss = reference.loss.read_bytes() == second.loss.read_bytes()
        same_sum = reference.sum.read_bytes() == second.sum.read_bytes()
        lines = len(reference.loss.read_text().splitlines())
        say(f"8. compared with the reference: {lines} losses {'identical' if same_loss else 'DIFFER'} to the last bit, weights and Adam "
            f"state {'identical' if same_sum else 'DIFFER'}")
        if a.keep:
            say(f"   files are in {c.dir}")
        ok = same_loss and same_sum and lines == a.steps
    say(f"{'nothing was lost' if ok else 'SOMETHING WAS LOST'}; {time.monotonic() - begin:.0f} s, nothing is left running")
    sys.exit(0 if ok else 1)


main()
