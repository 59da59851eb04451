"""How many bytes a process may still allocate, on the host or on a GPU."""

from __future__ import annotations

from pathlib import Path

# file names of the limit and the use of memory in the two versions of control groups
_GROUP_FILES = {
    "/sys/fs/cgroup": ("memory.max", "memory.current"),
    "/sys/fs/cgroup/memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def available_bytes(where: str = "") -> int | None:
    """Return the least of what the machine and the control groups of this process have free; None if unknown.

    Or, of a GPU by its name, what is free there and what torch holds of it without use.
    """
    if where:
        import torch

        reserved = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
        return int(torch.cuda.mem_get_info(where)[0] + reserved)
    free = [number for number in (_machine(), *_groups()) if number is not None]
    return min(free) if free else None


def _machine() -> int | None:
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _groups() -> list[int | None]:
    found = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = "/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup"
            limit, used = _GROUP_FILES[root]
            group = Path(root, path.lstrip("/"))
            # the limit of a parent binds its children, and a container may see only the root
            found += [_left(folder, limit, used) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return found


def _left(folder: Path, limit_file: str, used_file: str) -> int | None:
    limit, used = _read(folder / limit_file).strip(), _read(folder / used_file).strip()
    if not limit.isdigit() or not used.isdigit():
        return None
    return max(0, int(limit) - int(used) + _reclaimable(folder))


def _reclaimable(folder: Path) -> int:
    """Return the bytes of cached files, which the kernel drops before it refuses memory."""
    for line in _read(folder / "memory.stat").splitlines():
        name, _, number = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(number)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
