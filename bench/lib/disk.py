# SPDX-License-Identifier: Apache-2.0
"""What the disk and loopback do alone: fio's 1 MiB direct I/O at depth 8, or the same by eight threads where there is no fio; a stream over
a TCP connection on loopback, as the fabric's provider uses one, and what it costs in CPU time."""
import concurrent.futures
import json
import mmap
import os
import resource
import shutil
import socket
import subprocess
import threading
import time

MIB, DEPTH = 1 << 20, 8


def _fio(directory, direction, mib):
    command = ["fio", "--name=floor", f"--directory={directory}", f"--size={mib}M", "--bs=1M", "--direct=1", "--ioengine=io_uring",
               f"--iodepth={DEPTH}", f"--rw={direction}", "--end_fsync=1", "--output-format=json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        return None
    job = json.loads(done.stdout)["jobs"][0]
    cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1e3
    return job[direction]["bw_bytes"], cpu / (mib * MIB)


def _threads(directory, direction, mib):
    """fsync is within the time of a write."""
    path = os.path.join(directory, "floor.0.0")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    buffers = [mmap.mmap(-1, MIB) for _ in range(DEPTH)]
    move = os.pwritev if direction == "write" else os.preadv

    def part(i):
        for at in range(i, mib, DEPTH):
            if move(fd, [buffers[i]], at * MIB) != MIB:
                raise OSError(f"{path}: a short {direction}")

    used, begin = time.process_time(), time.monotonic()
    try:
        with concurrent.futures.ThreadPoolExecutor(DEPTH) as pool:
            list(pool.map(part, range(DEPTH)))
        if direction == "write":
            os.fsync(fd)
    finally:
        os.close(fd)
    return mib * MIB / (time.monotonic() - begin), (time.process_time() - used) / (mib * MIB)


def measure(directory, direction, mib):
    """(bytes a second, CPU seconds a byte). A write lays the file out the first time; a read needs one written before."""
    result = _fio(directory, direction, mib) if shutil.which("fio") else None
    return result or _threads(directory, direction, mib)


def remove(directory):
    for name in os.listdir(directory):
        if name.startswith("floor."):
            os.unlink(os.path.join(directory, name))


def loopback(mib=1024):
    """(bytes a second, CPU seconds a byte of both ends): 1 MiB a call, two threads."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    into, block = bytearray(MIB), bytes(MIB)

    def receive():
        left = mib * MIB
        while left > 0:
            n = receiver.recv_into(into)
            if n == 0:
                return
            left -= n

    thread = threading.Thread(target=receive)
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    thread.start()
    with sender, receiver:
        for _ in range(mib):
            sender.sendall(block)
        thread.join(60)
        took, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return mib * MIB / took, cpu / (mib * MIB)
