"""Verify answers that are programs, by running them on tests in a sandbox.

A response passes if the last Python block after its thinking (`extract`) gives the expected output on every test
(`compare`), each within its time. Programs run in forks of a warm interpreter (`sandbox`, `server`, `run`), locked
in as far as the machine allows (`isolate`, `seccomp`, `landlock`). Always: a process of its own for each program,
an empty environment, an empty folder to work in, limits on memory, time, output, files and threads, a wall clock
outside of the program's reach, and the death of all that it started before the next program starts. A program's
tests run one after the other in its process; one that it fails there is run again in a new process, and only that
counts. The expected outputs stay in the judge's process: a program that takes over its process, or all of its
sandbox, can still only pass by printing the right output. Only a check, a test that is Python, is run in the program's
process, after the program; docs/code_verifier.md tells what that leaves open.

`isolation()` says which level this machine gives, strongest first:

- `namespaces` (root, or where users may make namespaces): a private, read-only root with the system's and Python's
  libraries in it and nothing else, no network, no sight of other processes; a seccomp filter; no rights and, as
  root, a user id of its own. Not protected from: flaws in the kernel's permitted calls, the processor's side
  channels, and use of what is shared (processor time; memory up to the limit).
- `landlock` (a container that forbids namespaces): files are out of reach but for the libraries, and the filter
  stops processes, signals and sockets. Not protected from: the above, and seeing names and sizes of files
  (`stat`); started as root from an interpreter that only root may read, programs find only the modules that are
  already loaded.
- `seccomp` (kernels before 5.13): as root, programs may read what everybody may; without root, all that the
  calling user may, and write it.
- `limits`: the same, and programs may start processes, use the network and, without root, signal the
  calling user's other processes. Not for untrusted programs.

Refused to honest programs at every level that has the filter: new processes (`os.fork`, `subprocess`,
`multiprocessing`); threads are fine.
"""

from verifiers.code.extract import extract_program
from verifiers.code.judge import isolation, require_isolation, verify_code
from verifiers.code.sandbox import Isolation, SandboxError, close_sandbox

__all__ = [
    "Isolation",
    "SandboxError",
    "close_sandbox",
    "extract_program",
    "isolation",
    "require_isolation",
    "verify_code",
]
