"""The machines of an existing Ray cluster, as a rehearsal reaches them: over a connection of its own."""

from typing import Any

from .chaos_faults import FaultNotDone
from .remote import ClusterProcess, Connection


class RemoteMachines:
    """Signals and cuts on machines of the cluster at `address`. The connection of the run waits for its workers, so this is another."""

    def __init__(self, address: str) -> None:
        self._connection = Connection(ClusterProcess(), address=address, num_cpus=0)

    def reach(self) -> None:
        """Join the cluster where that is still to be done, which takes seconds. Raises `FaultNotDone`."""
        if not self._connection.is_there():
            raise FaultNotDone("the Ray cluster does not answer")

    def signal(self, number: int, *, pid: int, host: str) -> None:
        """Send a signal to a process. Raises `FaultNotDone`."""
        question = {"do": "signal", "number": number, "pid": pid, "host": host}
        self._do(question, failed=f"process {pid} on {host} cannot be signalled")

    def cut(self, interface: str, *, seconds: float, host: str) -> None:
        """Take a network interface down for a while. Returns when that is about to begin. Raises `FaultNotDone`."""
        self._do(
            {"do": "cut", "interface": interface, "seconds": seconds, "host": host}, failed=f"{interface} of {host} cannot be taken down"
        )

    def close(self) -> None:
        """Leave the cluster."""
        self._connection.close()

    def _do(self, question: dict[str, Any], *, failed: str) -> None:
        self.reach()
        answer = self._connection.ask(question)
        reason = "the Ray cluster was lost" if answer is None else answer["reason"]
        if reason is not None:
            raise FaultNotDone(f"{failed}: {reason}")
