"""Tasks that wait for a worker, the one with the greatest expected cost first, and equals in their order."""

import heapq
import threading
import time
from concurrent.futures import Future

from verifiers.tasks import Task
from verifiers.verdict import Result


class Job:
    """A task, and the future that its result will be put into."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.attempts = 0
        self.submitted = time.monotonic()
        self.future: Future[Result] = Future()

    def cancel(self) -> None:
        """Cancel the future, whoever waits for it."""
        if self.future.cancel():
            self.future.set_running_or_notify_cancel()


class JobQueue:
    """A queue for several threads at both ends, until it is closed."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, Job]] = []
        self._serial = 0
        self._closed = False

    def put(self, job: Job) -> None:
        """Add a job. Raises RuntimeError if the queue is closed."""
        with self._condition:
            if self._closed:
                raise RuntimeError("the verifier pool is closed")
            self._serial += 1
            heapq.heappush(self._heap, (-job.task.expected_seconds, self._serial, job))
            self._condition.notify()

    def get(self) -> Job | None:
        """Wait for the next job; None once the queue is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._heap or self._closed)
            return None if self._closed else heapq.heappop(self._heap)[2]

    def close(self) -> list[Job]:
        """End the queue, and return what still waited in it."""
        with self._condition:
            self._closed = True
            jobs = [job for _, _, job in self._heap]
            self._heap.clear()
            self._condition.notify_all()
        return jobs
