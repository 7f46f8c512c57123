"""What a terminal gets: one line for a mistake, one for Ctrl-C, and no control characters of others."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hope_data.cli import main
from hope_data.console import INTERRUPTED, run
from hope_data.engines import _uninterrupted
from hope_data.errors import harmless

INTERRUPTS = int(os.environ.get("HOPE_INTERRUPTS", "2"))
START = "import sys; from hope_data.cli import main; print('on', flush=True); sys.exit(main())"


def interrupted(after: float, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a command and send SIGINT to all its processes, as a terminal does."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            START,
            *map(str, command),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.parametrize("step", ["filter", "shard", "tokenizer"])
def test_ctrl_c_is_one_line(step: str, data: Path, many: Path, tmp_path: Path) -> None:
    given = {
        "filter": [many / "raw" / "m", "--workers", 2],
        "shard": [many / "clean" / "m", "--tokenizer", many / "tokenizer", "--workers", 2],
        "tokenizer": [data / "clean", "--vocab-size", 380],
    }[step]
    draw = random.Random(0)
    for k in range(INTERRUPTS):
        # So little text takes less than half a second where nothing else runs.
        after = 0.3 + draw.random() if step == "filter" else 0.02 + 0.1 * draw.random()
        done = interrupted(after, step, *given, "--out", tmp_path / str(k))
        assert "Traceback" not in done.stderr, done.stderr
        # A signal while the interpreter shuts down, after the command, ends it by that signal.
        if done.returncode == 0 or (done.returncode == -signal.SIGINT and (tmp_path / str(k)).exists()):
            continue
        assert (done.returncode, done.stderr) == (130, f"{INTERRUPTED}\n")


def test_ctrl_c_while_a_module_in_c_begins_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def begin(cause: BaseException | None) -> None:
        raise ImportError("initialization failed") from cause

    assert run(lambda: begin(KeyboardInterrupt()), whole_process=False) == 130
    assert capsys.readouterr().err == f"{INTERRUPTED}\n"
    with pytest.raises(ImportError, match="initialization failed"):
        run(lambda: begin(None), whole_process=False)


def test_ctrl_c_ends_what_does_not_return_to_python() -> None:
    code = (
        "import sys, time; from hope_data import console; print('on', flush=True)\n"
        # As a long call of a library: the handler in Python has no turn.
        "import signal; signal.signal(signal.SIGINT, lambda *_: None)\n"
        "sys.exit(console.run(lambda: time.sleep(60), whole_process=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == f"{INTERRUPTED}\n"
    assert process.returncode == 130
    assert 1.5 < time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "error: the following arguments are required: STEP; see hope-data --help"),
        (["nosuch"], "error: argument STEP: invalid choice: 'nosuch'"),
        (
            ["shard", "x", "--workers", "0"],
            "error: argument --workers: '0' is no whole number from 1 to 10000; see",
        ),
        (["tasks", "parity", "--seed", "x"], "error: argument --seed: "),
        (
            ["tasks", "parity", "--length", "9" * 5000],
            "error: argument --length: '999999999999999999999999999999' is",
        ),
        (
            ["tokenizer", "x", "--out", "y", "--worse", "nan"],
            "error: argument --worse: 'nan' is no number from 0 to 1",
        ),
        (
            ["tokenizer", "x", "--out", "y", "--vocab-size", "1" + "0" * 12],
            "error: argument --vocab-size: '1000000000000'",
        ),
        (["acquire", "--out", "a\x1b[2Jb", "--x\x1b"], "error: "),
    ],
)
def test_wrong_arguments_are_one_line(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert error.startswith(message)
    assert "\x1b" not in error


def test_text_of_others_sends_the_terminal_no_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\x9b31m"
    (tmp_path / "a.jsonl").write_text('{"text": ' + json.dumps(f"{evil} 你好\u3000é\n\tend") + "}\n")
    (tmp_path / "m.yaml").write_text(
        f"kind: jsonl\nfiles: ['{tmp_path / 'a.jsonl'}']\nlicence: {json.dumps(evil)}\n"
    )
    assert main(["acquire", "--manifest", str(tmp_path / "m.yaml"), "--out", str(tmp_path / "o")]) == 0
    capsys.readouterr()
    assert main(["look", str(tmp_path / "o")]) == 0
    seen = capsys.readouterr().out
    assert not any(character in seen for character in "\x1b\x07\x9b\u202e")
    assert "\\x1b]0;owned\\x07\\x1b[2J\\u202egnp.exe\\x9b31m 你好\u3000é\n\tend" in seen
    assert main(["look", str(tmp_path / "no\nsuch\x1b")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/no\\nsuch\\x1b/provenance.json: ")
    assert error.count("\n") == 1
    assert harmless("a\nb\tc", keep="\n") == "a\nb\\tc"


def test_ctrl_c_waits_until_a_worker_has_been_told() -> None:
    """A library's thread may receive the signal that the main thread blocks: the start of a worker is still whole."""
    idle = threading.Event()
    receiver = threading.Thread(target=idle.wait)
    receiver.start()
    whole = []

    def start() -> None:
        with _uninterrupted():
            signal.pthread_kill(receiver.ident or 0, signal.SIGINT)
            time.sleep(0.1)
            whole.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        idle.set()
        receiver.join()
    assert whole == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
