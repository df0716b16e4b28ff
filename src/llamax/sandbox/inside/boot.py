"""The first lines of Python that run beside the program, in its own process: read it, run it, note what it asked for.

This text is handed to `python -c`. The program can undo everything here, and gains nothing by it: what is refused is
refused by the kernel. The notes only say in words which files were asked for.
"""

import errno
import os
import sys

PROGRAM, NOTES = 3, 4  # file descriptors
ONE = """open os.listdir os.scandir os.chdir os.mkdir os.rmdir os.remove os.truncate os.chmod os.chown os.utime os.exec
    os.posix_spawn subprocess.Popen"""  # events whose first argument is a path
TWO = "os.rename os.link os.symlink"  # events whose first two are
STARTS = ("os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen")
ENDED = {errno.ENOSPC: "DISK", errno.EDQUOT: "DISK", errno.EFBIG: "DISK", errno.EMFILE: "FILES"}  # by which limit
READ = dict.fromkeys(ONE.split(), 1) | dict.fromkeys(TWO.split(), 2)


def run(allowed: tuple[str, ...], paths: list[str], script: str = "program.py") -> None:
    """Run the program that waits in descriptor 3; end the process with its status.

    `allowed`: paths, and folders with a slash, that are there to be read. `paths`: where it may import from, too.
    """
    sys.path += paths
    with os.fdopen(PROGRAM, "rb") as file:
        source = file.read()
    os.environ.clear()
    allowed += tuple(sys.path)  # whether or not they are there: a traceback looks for its sources in them
    notes = NOTES
    separator, up = "/", ".."
    fspath, write = os.fspath, os.write
    started: set[str] = set()

    def listen(event: str, arguments: tuple) -> None:
        if event in STARTS:
            started.add(event)
        if event == "os.system":  # there is no shell
            write(notes, f"system {arguments[0][:300]!r}\n".encode())
        if event not in READ:
            return
        for path in arguments[: READ[event]]:
            try:
                text = fspath(path)
                text = text.decode(errors="replace") if isinstance(text, bytes) else text
                inside = not text.startswith(separator) and up not in text
                if inside or (text.startswith(allowed) and up not in text):
                    continue
                write(notes, f"{event.removeprefix('os.')} {text[:300]!r}\n".encode())
            except (TypeError, OSError, ValueError, AttributeError):
                continue

    sys.argv = [script]
    main = type(sys)("__main__")
    main.__builtins__ = __builtins__
    sys.modules["__main__"] = main
    sys.addaudithook(listen)
    try:
        exec(compile(source, script, "exec", dont_inherit=True), main.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        if limit := limit_of(error, bool(started)):
            write(notes, f"LIMIT {limit}\n".encode())
        sys.excepthook(type(error), error.with_traceback(error.__traceback__.tb_next), error.__traceback__)
        sys.exit(1)


def limit_of(error: BaseException, has_started: bool) -> str:
    """Which limit an error tells of; an empty text if none. `has_started`: processes, so that no more may be meant."""
    if isinstance(error, MemoryError):
        return "MEMORY"
    if isinstance(error, OSError):
        return "PROCESSES" if error.errno == errno.EAGAIN and has_started else ENDED.get(error.errno, "")
    return "THREADS" if isinstance(error, RuntimeError) and str(error) == "can't start new thread" else ""
