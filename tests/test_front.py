"""The front of the command line: help, the other commands, and flags wherever they stand."""

import sys

import pytest

from sam_repro import __main__ as cli
from sam_repro import flags, front
from sam_repro.schema import CONF, GROUPS, UserError, options


def said(monkeypatch, capsys, *words):
    """The exit status of ``python -m sam_repro`` with these words, and what it prints."""
    monkeypatch.setattr(sys, "argv", ["sam-repro", *words])
    status = 0
    try:
        cli.main()
    except SystemExit as ended:
        status = ended.code or 0
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_help_is_a_page_with_every_command_and_option(monkeypatch, capsys):
    status, page, _ = said(monkeypatch, capsys, "--help")
    lines = page.splitlines()
    assert status == 0
    assert max(map(len, lines)) <= max(front.WIDTH, 130)  # what is written by hand is that wide at most
    for name in (*front.COMMANDS, *(one for group in front.GROUPS for one in options(group))):
        assert any(line.startswith(f"  {name} ") and len(line.split()) > 1 for line in lines), name
    for name in options("experiment"):
        assert name.rpartition("/")[2] in page.split(), name


def test_every_option_says_what_it_is():
    """In the comment at the head of its own file, which is where the page has it from."""
    for group in front.GROUPS:
        for name in options(group):
            assert front.first_sentence(group, name), f"{group}/{name}.yaml has no comment at its head"
    assert front.first_sentence("optimizer", "msam").startswith("mSAM (Behdin et al. 2023): each of m micro-batches")
    assert front.first_sentence("scale", "smoke") == "Does it run?"


def test_help_of_an_option_and_of_the_keys(monkeypatch, capsys):
    assert "rho: ${methods.sam.rho}" in said(monkeypatch, capsys, "optimizer=sam", "--help")[1]
    keys = said(monkeypatch, capsys, "--help", "keys")[1]
    assert "batch_size: 64" in keys
    assert "neutral:" not in keys
    assert "Did you mean 'sam'" in said(monkeypatch, capsys, "-h", "optimizer=sma")[2]
    assert "  ssam_d   " in said(monkeypatch, capsys, "--help", "optimizer")[1]
    assert all((CONF / group).is_dir() for group in GROUPS)


@pytest.mark.parametrize("name", front.COMMANDS)
def test_every_command_has_help_by_two_names(monkeypatch, capsys, name):
    for words in ([name, "--help"], ["help", name]):
        status, page, _ = said(monkeypatch, capsys, *words)
        assert status == 0
        assert f"sam_repro.{name}" in page


def test_a_command_is_found_by_its_name(monkeypatch, capsys, tmp_path):
    assert f"There are no runs in {tmp_path}" in said(monkeypatch, capsys, "runs", "list", f"runs_dir={tmp_path}")[1]
    status, _, error = said(monkeypatch, capsys, "rusn", "list")
    assert (status, "Did you mean 'runs'?" in error) == (1, True)


def test_flags_stand_anywhere():
    assert flags.in_order(["lr=1,2", "-m", "seed=0"]) == ["--multirun", "lr=1,2", "seed=0"]
    assert flags.in_order(["a=1", "-c", "job", "--resolve"]) == ["--cfg=job", "--resolve", "a=1"]
    assert flags.in_order(["-i", "a=1"]) == ["--info=all", "a=1"]
    assert flags.in_order(["-sc", "install=bash"]) == ["--shell-completion", "install=bash"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--hepl"], "There is no flag '--hepl'. Did you mean '--help'?"),
        (["-x"], "There is no flag '-x'"),
        (["-m", "--cfg", "job"], "--multirun and --cfg are two things to do"),
        (["--cfg"], "--cfg wants one of job, hydra, all"),
        (["--cfg=jb"], "--cfg wants one of job, hydra, all"),
        (["--multirun=3"], "--multirun takes no value"),
        (["--config-name"], "--config-name wants a value"),
        (["-sc", "foo"], "--shell-completion wants install=bash (or zsh, fish) behind it"),
        (["--experimental-rerun=/nope"], "--experimental-rerun=/nope: there is no such file."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_flag_that_does_not_fit_is_one_sentence(words, says):
    with pytest.raises(UserError) as error:
        flags.in_order(words)
    assert says in str(error.value)


def test_the_version_is_ours(monkeypatch, capsys):
    assert said(monkeypatch, capsys, "--version")[1].startswith("sam-repro ")
