"""A pool served over a socket: verdicts, secrets, several clients, servers that die and come back."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from waiting import eventually

from verifiers import frames, remote
from verifiers.connection import Refused, connect, listen, make_secret, parse_address, read_secret
from verifiers.isolation import IsolationLevel
from verifiers.remote import RemotePool
from verifiers.serve import VerifierServer
from verifiers.tasks import CodeTask, MathTask
from verifiers.verdict import Verdict

SECRET = b"a secret"
PATIENCE = 30.0
SLEEP = "</think>\n```python\nimport time\ntime.sleep({0})\nprint(input())\n```"


def boxed(answer: object) -> str:
    return rf"</think> \boxed{{{answer}}}"


def sleeper(seconds: float, word: str, verdict: bool = True) -> CodeTask:
    test = {"input": word, "output": word if verdict else "another", "testtype": "stdin"}
    return CodeTask(SLEEP.format(seconds), [test])


class running:
    """A server in this process, on a thread."""

    def __init__(self, address: str, workers: int = 2, secret: bytes = SECRET) -> None:
        self.log: list[str] = []
        self.server = VerifierServer(address, secret, workers, self.log.append)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> VerifierServer:
        self.thread.start()
        return self.server

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self.thread.join(PATIENCE)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("verifier-")], 5.0)


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"unix:{tmp_path}/s" if request.param == "unix" else "tcp:127.0.0.1:0"


def test_every_client_gets_its_own_verdicts(address: str) -> None:
    with running(address) as server:
        with RemotePool(server.address, SECRET) as one, RemotePool(server.address, SECRET) as other:
            assert one.workers == 2
            futures = [
                pool.submit(MathTask(boxed(i), str(i if i % 3 else i + 1))) for i in range(200) for pool in (one, other)
            ]
            results = [future.result(PATIENCE) for future in futures]
            assert [r.extracted for r in results] == [str(i) for i in range(200) for _ in range(2)]
            assert [r.verdict is Verdict.PASS for r in results] == [bool(i % 3) for i in range(200) for _ in range(2)]
            code = [one.submit(sleeper(0, "x", verdict)).result(PATIENCE).verdict for verdict in (True, False)]
            assert code == [Verdict.PASS, Verdict.WRONG]
            metrics = one.metrics()
            assert metrics.verdicts[Verdict.WRONG] == 67 + 1
            assert 0 < metrics.utilization <= 1
            assert 0 < metrics.seconds_p50 <= metrics.seconds_p99
            assert metrics.latency_p50 <= metrics.latency_p99
            assert metrics.max_queue_length > 100
            assert sum(one.metrics().verdicts.values()) == 0
        assert eventually(lambda: server.clients() == 0)
        assert sum(server.metrics().verdicts.values()) == 402


def test_another_secret_is_refused_at_once(address: str) -> None:
    with running(address) as server:
        start = time.monotonic()
        with pytest.raises(Refused, match="another secret"):
            RemotePool(server.address, b"guess")
        assert time.monotonic() - start < 5
        with socket.create_server(("127.0.0.1", 0)) as impostor:
            thread = threading.Thread(target=pretend, args=(impostor,))
            thread.start()
            with pytest.raises(Refused, match="does not know the secret"):
                connect(f"tcp:127.0.0.1:{impostor.getsockname()[1]}", SECRET, 5.0)
            thread.join(PATIENCE)
        with RemotePool(server.address, SECRET) as pool:
            assert pool.submit(MathTask(boxed(5), "5")).result(PATIENCE).verdict is Verdict.PASS


def pretend(listener: socket.socket) -> None:
    accepted, _ = listener.accept()
    with accepted:
        accepted.sendall(frames.pack_record({"nonce": "0"}))
        frames.receive_record(accepted)
        accepted.sendall(frames.pack_record({"workers": 1, "isolation": "namespaces", "proof": "0"}))


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff" * 4, b""])
def test_strangers_are_turned_away(noise: bytes, tmp_path: Path) -> None:
    with running(f"unix:{tmp_path}/s") as server:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(f"{tmp_path}/s")
            stranger.sendall(noise)
            stranger.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):  # what was not read resets the connection
                while stranger.recv(1 << 16):
                    pass
        with RemotePool(server.address, SECRET) as pool:
            assert pool.submit(MathTask(boxed(5), "5")).result(PATIENCE).verdict is Verdict.PASS


def test_a_task_that_no_server_understands_is_an_infra_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "to_record", lambda task: {"kind": "chess"})
    with running(f"unix:{tmp_path}/s") as server, RemotePool(server.address, SECRET) as pool:
        result = pool.submit(MathTask(boxed(5), "5")).result(PATIENCE)
        assert result.verdict is Verdict.INFRA_ERROR
        assert "unknown kind of task 'chess'" in result.detail


def test_less_isolation_than_demanded_is_refused(tmp_path: Path) -> None:
    with running(f"unix:{tmp_path}/s") as server:
        server.isolation = IsolationLevel.LIMITS
        with pytest.raises(ValueError, match="isolates programs by limits only, landlock is demanded"):
            RemotePool(server.address, SECRET, IsolationLevel.LANDLOCK)


def test_a_client_that_leaves_takes_its_waiting_tasks_along(tmp_path: Path) -> None:
    with running(f"unix:{tmp_path}/s", workers=1) as server:
        leaving = RemotePool(server.address, SECRET)
        futures = [leaving.submit(sleeper(0.5, "x")) for _ in range(20)]
        assert eventually(lambda: any(job for job in leaving._sent))
        leaving.close()
        for future in futures:
            with pytest.raises(CancelledError):
                future.result(PATIENCE)
        with pytest.raises(RuntimeError, match="closed"):
            leaving.submit(MathTask(boxed(5), "5"))
        start = time.monotonic()
        with RemotePool(server.address, SECRET) as pool:
            assert pool.submit(MathTask(boxed(5), "5")).result(PATIENCE).verdict is Verdict.PASS
        assert time.monotonic() - start < 5


def test_a_server_that_comes_back_loses_and_doubles_nothing(tmp_path: Path) -> None:
    where = f"unix:{tmp_path}/s"
    first = running(where)
    first.__enter__()
    with RemotePool(where, SECRET) as pool:
        done: list[str] = []
        futures = [pool.submit(sleeper(0.05, str(i))) for i in range(40)]
        for future in futures:
            future.add_done_callback(lambda f: done.append(f.result().verdict))
        assert eventually(lambda: len(done) > 3)
        first.__exit__()
        with running(where):
            results = [future.result(PATIENCE) for future in futures]
    assert [r.verdict for r in results] == [Verdict.PASS] * 40
    assert len(done) == 40


def test_without_a_server_what_waits_becomes_an_infra_error(tmp_path: Path) -> None:
    where = f"unix:{tmp_path}/s"
    with pytest.raises(ConnectionError, match=r"no verifier server at unix:.*/s within 0.1 s"):
        RemotePool(where, SECRET, patience=0.1)
    first = running(where)
    first.__enter__()
    with RemotePool(where, SECRET, patience=0.5) as pool:
        futures = [pool.submit(sleeper(0.4, str(i))) for i in range(6)]
        assert eventually(lambda: bool(pool._sent))
        first.__exit__()
        results = [future.result(PATIENCE) for future in futures]
        assert {r.verdict for r in results} <= {Verdict.PASS, Verdict.INFRA_ERROR}
        assert results[-1].verdict is Verdict.INFRA_ERROR
        assert "no verifier server" in results[-1].detail
        with running(where):
            assert pool.submit(MathTask(boxed(5), "5")).result(PATIENCE).verdict is Verdict.PASS


@pytest.mark.parametrize("address", ["", "unix:", "tcp:host", "tcp::1", "tcp:host:99999", "http://host:1", "tcp:h:x"])
def test_unusable_addresses_are_named(address: str) -> None:
    with pytest.raises(ValueError, match="write unix:/path/of/socket or tcp:HOST:PORT"):
        parse_address(address)


def test_a_port_needs_a_secret() -> None:
    with pytest.raises(ValueError, match="needs a secret"):
        VerifierServer("tcp:127.0.0.1:0", b"", 1)


def test_secret_files(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    with pytest.raises(FileNotFoundError, match="no such secret file"):
        read_secret(file)
    make_secret(file)
    secret = read_secret(file)
    assert len(secret) == 64
    make_secret(file)
    assert read_secret(file) == secret
    file.chmod(0o640)
    with pytest.raises(ValueError, match="mode 640 lets others read the secret; chmod 600"):
        read_secret(file)
    file.chmod(0o600)
    file.write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        read_secret(file)


def test_a_path_that_is_taken_is_refused_and_one_left_by_a_killed_server_is_not(tmp_path: Path) -> None:
    where = f"unix:{tmp_path}/s"
    with listen(where):
        assert (tmp_path / "s").stat().st_mode & 0o077 == 0
        with pytest.raises(ValueError, match="listens there already"):
            listen(where)
    listen(where).close()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="choose another"):
        listen(f"unix:{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_command_serves_and_ends_cleanly(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    command = [sys.executable, "-m", "megatron_rl", "verify", "serve", "--address", "tcp:127.0.0.1:0"]
    options = ["--secret-file", str(secret), "--workers", "1", "--report-seconds", "0.2", "--min-isolation", "limits"]
    with subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "1 workers at tcp:127.0.0.1:" in line
        address = line.split(" at ")[1].split(",")[0]
        source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text(r'{"id": 1, "response": "</think> \\boxed{5}", "answer": "5"}' + "\n")
        verify = [sys.executable, "-m", "megatron_rl", "verify", "math", str(source), "--out", str(out)]
        subprocess.run([*verify, "--address", address, "--secret-file", str(secret)], check=True, timeout=60)
        assert '"verdict": "pass"' in out.read_text()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert '"pass": 1' in output
