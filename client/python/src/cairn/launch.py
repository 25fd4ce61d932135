# SPDX-License-Identifier: Apache-2.0
"""Which rank this process is, of how many, and of which start of the job: from arguments, torch.distributed,
or the launcher's environment (torchrun, Slurm, Open MPI, PMI).

Sources are asked in this order, and the first that knows decides: rank and world_size together from the
caller (who may mean a world of its own: rank 0 alone saves what all replicas have), torch.distributed if it
is initialised, RANK and WORLD_SIZE, Slurm, Open MPI, PMI. Only one of the two from the caller must agree with
what the next source says. Of several launchers the inner one's variables are taken: torchrun runs inside a
Slurm allocation, never the other way round.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import sys
from collections.abc import Mapping
from typing import Optional

from .errors import InvalidError

_NAME_MAX = 128  # CAIRN_MAX_NAME
_NAME_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


@dataclasses.dataclass(frozen=True)
class Launch:
    """rank of world_size processes, local_rank among those of this node, and the start's name, equal on all
    ranks.

    source: where rank and world size come from, for messages. start_id is never None: a world of one without
    a launcher gets a new one from each find()."""

    rank: int
    world_size: int
    local_rank: int
    start_id: str
    source: str


# Launcher, then its variables for rank, world size and local rank.
_LAUNCHERS = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
# Launcher, then its variables for a run and for the count of its restarts.
_STARTS = (
    ("torchrun", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    ("slurm", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    ("mpi", "OMPI_MCA_ess_base_jobid", None),
    ("pmix", "PMIX_NAMESPACE", None),
    ("pmi", "PMI_JOBID", None),
)


def find(
    rank: Optional[int] = None,
    world_size: Optional[int] = None,
    start_id: Optional[str] = None,
    environ: Optional[Mapping[str, str]] = None,
) -> Launch:
    """Puts together who this process is. environ: os.environ by default. Raises InvalidError where sources
    contradict each other, where only half is known, and where a world of several ranks has no start id."""
    env = os.environ if environ is None else environ
    found = _from_arguments(rank, world_size) or _from_torch() or _from_launcher(env) or (0, 1, "no launcher")
    number, world, source = found
    if rank is None and world_size is not None and world != world_size:
        raise InvalidError(
            f"world_size is {world_size}, but {source} says {world}: pass rank and world_size, or neither"
        )
    if rank is not None and world_size is None and number != rank:
        raise InvalidError(
            f"rank is {rank}, but {source} says {number}: pass rank and world_size, or neither"
        )
    if not 0 <= number < world:
        raise InvalidError(
            f"rank {number} of a world of {world} ({source}): ranks go from 0 to world_size - 1"
        )
    return Launch(number, world, _local_rank(env, number), _start_id(start_id, world, env), source)


def _from_arguments(rank: Optional[int], world_size: Optional[int]) -> Optional[tuple[int, int, str]]:
    if rank is None or world_size is None:
        return None
    return _whole(rank, "rank"), _whole(world_size, "world_size"), "the arguments"


def _whole(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidError(f"{what} is {value!r}: a whole number is wanted")
    return value


def _from_torch() -> Optional[tuple[int, int, str]]:
    """What torch.distributed says, if the program has imported and initialised it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.get_rank(), distributed.get_world_size(), "torch.distributed"


def _from_launcher(env: Mapping[str, str]) -> Optional[tuple[int, int, str]]:
    for launcher, rank, world_size, _ in _LAUNCHERS:
        if rank not in env and world_size not in env:
            continue
        if launcher == "Slurm" and rank not in env:
            continue  # sbatch's own script: an allocation, but no task of it
        return (
            _number(env, rank, launcher),
            _number(env, world_size, launcher),
            f"{launcher} ({rank}, {world_size})",
        )
    return None


def _number(env: Mapping[str, str], variable: str, launcher: str) -> int:
    text = env.get(variable)
    if text is None:
        raise InvalidError(
            f"{launcher} has set only half of what says the rank: {variable} is missing; pass rank and "
            f"world_size"
        )
    if not text.isdecimal():
        raise InvalidError(
            f"{variable} is {text!r}: a number is wanted; pass rank and world_size, or correct it"
        )
    return int(text)


def _local_rank(env: Mapping[str, str], rank: int) -> int:
    for _, _, _, variable in _LAUNCHERS:
        if env.get(variable, "").isdecimal():
            return int(env[variable])
    return rank


def _start_id(given: Optional[str], world_size: int, env: Mapping[str, str]) -> str:
    if given is not None:
        if not is_name(given):
            raise InvalidError(
                f"start_id is {given!r}: 1 to {_NAME_MAX} characters of [A-Za-z0-9._-] are wanted"
            )
        return given
    for launcher, variable, restarts in _STARTS:
        run = env.get(variable, "")
        if run and run != "none":  # torchrun's default id is the same for every start
            return _as_name(launcher, run, (env.get(restarts) if restarts else None) or "0")
    if world_size == 1:
        return f"start-{secrets.token_hex(16)}"
    agreed = _agreed_start()
    if agreed is not None:
        return agreed
    raise InvalidError(
        f"a world of {world_size} ranks needs a start id, equal on all ranks and new at every start: pass "
        f"start_id, call torch.distributed.init_process_group() before, or run under torchrun with --rdzv-id, "
        f"Slurm, or mpirun"
    )


def _agreed_start() -> Optional[str]:
    """A start id through the store that torch.distributed has met in, for launchers that name no run
    (torchrun without --rdzv-id): whoever comes first puts it there, all others find it. None where nothing is
    initialised."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    store = distributed.distributed_c10d._get_default_store()
    mine = f"start-{secrets.token_hex(16)}"
    return store.compare_set("cairn/start", "", mine).decode()


def _as_name(launcher: str, run: str, restarts: str) -> str:
    """The name that libcairn gives to the same start, so that ranks in C and in Python find each other; an id
    that no name may be goes in as a digest."""
    name = f"{launcher}-{run}-{restarts}"
    if is_name(name):
        return name
    return f"{launcher}-{hashlib.blake2b(f'{run} {restarts}'.encode(), digest_size=16).hexdigest()}"


def is_name(text: str) -> bool:
    """Whether a job or a start may be called so."""
    return 0 < len(text) <= _NAME_MAX and text not in (".", "..") and _NAME_LETTERS.issuperset(text)
