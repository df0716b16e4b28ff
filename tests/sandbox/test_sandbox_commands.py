"""`llamax execute` and `llamax doctor`."""

import pytest
from typer.testing import CliRunner

from llamax import cli
from llamax.sandbox import active, doctor

runner = CliRunner()


def test_execute_prints_output_status_and_what_was_refused(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("print('out')\nimport socket; socket.socket()")
    done = runner.invoke(cli.app, ["execute", str(file)])
    assert (done.exit_code, done.stdout) == (1, "out\n")
    assert "PermissionError" in done.stderr
    status, refused = done.stderr.splitlines()[-2:]
    assert status.startswith("status: denied (exit status 1); ")
    assert refused == "refused: socket"


def test_execute_is_status_0_only_for_ok():
    done = runner.invoke(cli.app, ["execute", "-"], input="print(2)")
    assert (done.exit_code, done.stdout) == (0, "2\n")
    assert done.stderr.startswith("status: ok; ")
    assert runner.invoke(cli.app, ["execute", "-"], input="raise SystemExit(2)").exit_code == 1


@pytest.mark.parametrize(
    ("options", "program", "status"),
    [
        (["--timeout", "1"], "while True: pass", "timeout (more than 1 s)"),
        (["--memory", "64"], "bytearray(64 << 20)", "memory (MemoryError at 67,108,864 bytes)"),
        (
            ["--disk", "1"],
            "open('a', 'wb').write(bytes(2 << 20))",
            "failed (exit status 1, at the limit of 1,048,576 bytes of disk)",
        ),
    ],
)
def test_limits(options, program, status):
    done = runner.invoke(cli.app, ["execute", "-", *options], input=program)
    assert done.exit_code == 1
    assert f"status: {status}" in done.stderr.replace("1 s of CPU time", "1 s")


def test_a_limit_that_is_none_is_a_misuse():
    assert runner.invoke(cli.app, ["execute", "-", "--timeout", "0"], input="").exit_code == 2


def test_doctor_says_what_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAX_DATA", str(tmp_path / "gone"))
    found = dict(doctor.findings())
    assert found["LLAMAX_DATA"] == f"{tmp_path / 'gone'}: no such folder"
    assert found["gradio"][0].isdigit()
    assert found["torch"][0].isdigit()
    here = {name for name in doctor.MECHANISMS if found[f"  {name}"].startswith("active: ")}
    assert here == active()
    printed = runner.invoke(cli.app, ["doctor"]).stdout
    assert [line.split(":")[0].strip() for line in printed.splitlines()] == [name.strip() for name in found]


def test_doctor_where_too_little_is_there(monkeypatch):
    monkeypatch.setattr(doctor, "active", lambda: frozenset({"landlock"}))
    monkeypatch.delenv("LLAMAX_SANDBOX", raising=False)
    assert (
        dict(doctor.findings())["sandbox"] == "nothing prevents use of the network: refused without LLAMAX_SANDBOX=weak"
    )
    monkeypatch.setenv("LLAMAX_SANDBOX", "weak")
    assert dict(doctor.findings())["sandbox"] == "nothing prevents use of the network: allowed by LLAMAX_SANDBOX=weak"


def test_a_program_that_is_not_there_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    for name, said in (("none.py", "none.py: no such file; give a Python"), ("", "is a folder; give a Python program")):
        monkeypatch.setattr("sys.argv", ["llamax", "execute", str(tmp_path / name)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
